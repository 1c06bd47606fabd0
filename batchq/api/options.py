"""The parameters that `prompt_map`, `prompt_map_sync` and `prompt_stream` share, for type checkers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict

from batchq.jobs import Json
from batchq.worker import Plugin, WorkerFunction

if TYPE_CHECKING:
    from pydantic import BaseModel

Shape: TypeAlias = Literal["original", "unique"]
Worker: TypeAlias = WorkerFunction | Plugin | str

# What `return_dtype` may be.
Rows: TypeAlias = type[list[dict[str, Any]]] | Literal["list[dict]"]
Texts: TypeAlias = type[list[str]] | Literal["list[str]"]
Pairs: TypeAlias = type[list[tuple[str, str]]] | Literal["list[tuple[str,str]]"]


class CallOptions(TypedDict, total=False):
    """Parameters of all calls; `prompt_map` tells what they mean."""

    worker: Worker | None
    model_name: str | None
    openrouter_api_key: str | None
    base_url: str | None
    response_model: type[BaseModel] | None
    concurrency: int
    max_attempts: int
    rpm_limit: float | None
    db_url: str | None
    progress_every: int
    teardown: bool
    output_shape: Shape
    verbose: bool
    fresh: bool
    batch: str | None
    system: str | None
    params: Mapping[str, Json] | None
    template: str | None
    budget: float | None
