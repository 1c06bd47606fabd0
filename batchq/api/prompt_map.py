"""`prompt_map`: prompts in, a row for each of them out, as durable as the queue that they go through."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack, overload

from batchq.api.answers import AnswerRow, Reader, Summary, converted, dtype_of
from batchq.api.call import Call, make_ready
from batchq.api.options import CallOptions, Frame, Pairs, Rows, Shape, Texts
from batchq.api.running import Shown, run_batch
from batchq.api.spool import Prompts
from batchq.api.teardown import take_down
from batchq.api.workers import WorkerLike
from batchq.collecting import Output, write_results
from batchq.collecting.checks import check_places
from batchq.database import sqlite_path
from batchq.errors import UsageError
from batchq.formats import AtomicFile
from batchq.formats.template import PromptTemplate
from batchq.generations import Synchronised
from batchq.jobs import NANO, Json
from batchq.store import Store, open_store

if TYPE_CHECKING:
    from pydantic import BaseModel

_ROWS = list[dict[str, Any]]
_SHAPES = ("original", "unique")


@overload
async def prompt_map(
    prompts: Prompts, *, return_dtype: Rows = ..., out: None = None, **options: Unpack[CallOptions]
) -> list[AnswerRow]: ...
@overload
async def prompt_map(
    prompts: Prompts, *, return_dtype: Texts, out: None = None, **options: Unpack[CallOptions]
) -> list[str]: ...
@overload
async def prompt_map(
    prompts: Prompts, *, return_dtype: Pairs, out: None = None, **options: Unpack[CallOptions]
) -> list[tuple[str, str]]: ...
@overload
async def prompt_map(
    prompts: Prompts,
    *,
    return_dtype: type[Frame],
    out: None = None,
    **options: Unpack[CallOptions],
) -> Frame: ...
@overload
async def prompt_map(
    prompts: Prompts,
    *,
    return_dtype: Literal["polars", "pandas"],
    out: None = None,
    **options: Unpack[CallOptions],
) -> Any: ...  # noqa: ANN401 - a DataFrame of a library that may not be there
@overload
async def prompt_map(
    prompts: Prompts, *, return_dtype: object = ..., out: str | Path, **options: Unpack[CallOptions]
) -> Summary: ...
async def prompt_map(
    prompts: Prompts,
    *,
    worker: WorkerLike | None = None,
    model_name: str | None = None,
    openrouter_api_key: str | None = None,
    base_url: str | None = None,
    response_model: type[BaseModel] | None = None,
    concurrency: int = 32,
    max_attempts: int = 8,
    rpm_limit: float | None = None,
    db_url: str | None = None,
    progress_every: int = 200,
    teardown: bool = False,
    output_shape: Shape = "original",
    return_dtype: object = _ROWS,
    verbose: bool = True,
    fresh: bool = False,
    out: str | Path | None = None,
    batch: str | None = None,
    system: str | None = None,
    params: Mapping[str, Json] | None = None,
    template: str | None = None,
    budget: Decimal | float | None = None,
) -> Any:
    """Ask a model, or any worker, about each prompt; return one row for each, in order.

    Run again after a crash it goes on where it was; with other prompts it pays only for those that are new. A
    prompt that fails has its reason in its row. Raises what keeps all of them from being asked, and keeps what
    is done: BadInput for what is no prompt, ConfigurationError for a missing key, model or worker, CannotGoOn
    where somebody has to act first (no credit, a spent budget, a paused batch).

    - `prompts`: strings, requests (`{"messages": [...]}`, `{"body": {...}}`), rows for a `template`, from any
      iterable, async or not; a pandas, polars or Arrow table; or a file, as a Path.
    - `worker`: a function of yours, async or not, a Plugin, or the name of one; else the model `model_name`
      (or `MODEL`) at OpenRouter, with `openrouter_api_key` (or `OPENROUTER_API_KEY`), or at `base_url`.
    - `system`, `params`: the system prompt, and what else goes into each request, e.g. `{"temperature": 0}`.
    - `response_model`: a Pydantic type; answers are held to it, and rows hold its instances.
    - `concurrency`: calls at once; `max_attempts`: tries per prompt; `rpm_limit`: requests per minute, of all
      processes on this queue together (None leaves it as it is); `budget`: dollars that the batch may cost.
    - `db_url`: the queue, a path or URL; else `BATCHQ_DB`, else `runs.db`. `batch`: its name for these prompts;
      else that of the script and a hash of the settings. `fresh`: ask again what was answered before.
    - `output_shape`: `original`, a row for each prompt, or `unique`, one for each that is different (equal ones
      are asked once either way). `return_dtype`: `list[dict]`, `list[str]`, `list[tuple[str, str]]`, `"polars"`
      or `"pandas"`. `out`: a file to write instead (.jsonl, .csv, .txt, .parquet); then a `Summary` is returned.
    - `teardown`: when everything was answered, delete the batch, and the queue's file if nothing else is in it.
    - `verbose`: show progress on stderr, a line for every `progress_every` answers where there is no terminal.
    """
    dtype = dtype_of(return_dtype)
    if output_shape not in _SHAPES:
        raise UsageError(f"output_shape is {output_shape!r}; it can be {' or '.join(_SHAPES)}")
    ready = make_ready(
        Call(
            prompts, worker, model_name, openrouter_api_key, base_url, response_model, concurrency, max_attempts,
            rpm_limit, db_url, fresh, batch, system, params, PromptTemplate(template, "template") if template else None,
            budget,
        )
    )  # fmt: skip
    target = None if out is None else Path(out)
    if target is not None:
        check_places(Output(target), database=sqlite_path(ready.settings.db))
    store = await open_store(ready.settings.db, create=True)
    async with store:
        found = await ready.enqueue(store)
        if found is None:
            return converted([], dtype) if target is None else _write_nothing(target)
        progress = await run_batch(store, ready, found, Shown(verbose, progress_every))
        unique = output_shape == "unique"
        reader = Reader(response_model)
        result = (
            converted(await _rows(store, found, reader, unique=unique), dtype)
            if target is None
            else await _write(store, found, target)
        )
        if teardown:
            await take_down(store, found, progress)
        return result


async def _rows(store: Store, found: Synchronised, reader: Reader, *, unique: bool) -> list[AnswerRow]:
    """Read the rows of the prompts; what others have added to the batch meanwhile is theirs."""
    total = found.enqueued.total
    results = store.results(found.batch, with_prompt=True, unique=unique)
    return [reader.row(result) async for result in results if result.position < total]


async def _write(store: Store, found: Synchronised, target: Path) -> Summary:
    collected = await write_results(store, found.batch.name, Output(target, with_prompt=True))
    counts, progress = collected.counts, collected.progress
    return Summary(
        batch=found.batch.name,
        path=str(target),
        done=counts.done,
        failed=counts.failed,
        cancelled=counts.cancelled,
        input_tokens=progress.usage.input_tokens or 0,
        output_tokens=progress.usage.output_tokens or 0,
        cost=None if progress.cost is None else progress.cost / NANO,
    )


def _write_nothing(target: Path) -> Summary:
    """Write the file of no prompts."""
    with AtomicFile(target):
        return Summary("", str(target), 0, 0, 0, 0, 0, None)
