"""`prompt_map` and `export_jsonl` for code that is not async: the same calls, in an event loop of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, Unpack, cast, overload

from anyio.from_thread import start_blocking_portal

from batchq.api.answers import AnswerRow, Summary
from batchq.api.export import export_jsonl
from batchq.api.options import CallOptions, Frame, Pairs, Rows, Texts
from batchq.api.prompt_map import prompt_map
from batchq.api.spool import Prompts
from batchq.process import run_event_loop

T = TypeVar("T")


@overload
def prompt_map_sync(
    prompts: Prompts, *, return_dtype: Rows = ..., out: None = None, **options: Unpack[CallOptions]
) -> list[AnswerRow]: ...
@overload
def prompt_map_sync(
    prompts: Prompts, *, return_dtype: Texts, out: None = None, **options: Unpack[CallOptions]
) -> list[str]: ...
@overload
def prompt_map_sync(
    prompts: Prompts, *, return_dtype: Pairs, out: None = None, **options: Unpack[CallOptions]
) -> list[tuple[str, str]]: ...
@overload
def prompt_map_sync(
    prompts: Prompts,
    *,
    return_dtype: type[Frame],
    out: None = None,
    **options: Unpack[CallOptions],
) -> Frame: ...
@overload
def prompt_map_sync(
    prompts: Prompts,
    *,
    return_dtype: Literal["polars", "pandas"],
    out: None = None,
    **options: Unpack[CallOptions],
) -> Any: ...  # noqa: ANN401 - a DataFrame of a library that may not be there
@overload
def prompt_map_sync(
    prompts: Prompts, *, return_dtype: object = ..., out: str | Path, **options: Unpack[CallOptions]
) -> Summary: ...
def prompt_map_sync(prompts: Prompts, **options: Any) -> Any:
    """Do what `prompt_map` does, with the same parameters, from code that is not async.

    Where an event loop runs already, as in a notebook, it waits in its place for one in another thread.
    """
    return _run(partial(prompt_map, prompts, **options))


def export_jsonl_sync(db_url: str | None = None, *, out: str | Path, batch: str | None = None) -> int:
    """Do what `export_jsonl` does, from code that is not async."""
    return _run(partial(export_jsonl, db_url, out=out, batch=batch))


def _run(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return run_event_loop(main)
    with start_blocking_portal() as portal:
        return cast("T", portal.call(main))
