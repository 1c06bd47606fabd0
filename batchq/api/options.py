"""The parameters that `prompt_map`, `prompt_map_sync` and `prompt_stream` share, for type checkers."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, TypedDict, TypeVar

from batchq.api.workers import WorkerLike
from batchq.errors import UsageError
from batchq.jobs import Json

if TYPE_CHECKING:
    from pydantic import BaseModel

Shape: TypeAlias = Literal["original", "unique"]
_SHAPES = ("original", "unique")

# What `return_dtype` may be.
Rows: TypeAlias = type[list[dict[str, Any]]] | Literal["list[dict]"]
Texts: TypeAlias = type[list[str]] | Literal["list[str]"]
Pairs: TypeAlias = type[list[tuple[str, str]]] | Literal["list[tuple[str,str]]"]


class Tabular(Protocol):
    """What DataFrames of polars and pandas have, neither of which is a dependency."""

    @property
    def shape(self) -> tuple[int, int]:
        """How many rows and columns there are."""
        ...


Frame = TypeVar("Frame", bound=Tabular)


class CallOptions(TypedDict, total=False):
    """Parameters of all calls; `prompt_map` tells what they mean."""

    worker: WorkerLike | None
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
    budget: Decimal | float | None


def is_unique(shape: object) -> bool:
    """Whether rows are wanted for different prompts only. Raises UsageError for what is no shape."""
    if shape not in _SHAPES:
        raise UsageError(f"output_shape is {shape!r}; it can be {' or '.join(_SHAPES)}")
    return shape == "unique"
