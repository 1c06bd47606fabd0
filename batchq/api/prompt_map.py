"""`prompt_map`: prompts in, a row for each of them out, as durable as the queue that they go through."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack, overload

from batchq.api.answers import AnswerRow, Dtype, Reader, Summary, converted, dtype_of
from batchq.api.call import Call, make_ready
from batchq.api.options import CallOptions, Frame, Pairs, Rows, Shape, Texts, is_unique
from batchq.api.out import check_file, check_for, output_of, write_answers, write_nothing
from batchq.api.running import Shown, run_batch, working
from batchq.api.spool import Prompts
from batchq.api.teardown import take_down
from batchq.api.workers import WorkerLike
from batchq.collecting import Output, whole_results
from batchq.database import database_file
from batchq.formats.template import PromptTemplate
from batchq.generations import Synchronised
from batchq.jobs import Json
from batchq.store import Store, open_store

if TYPE_CHECKING:
    from pydantic import BaseModel

_ROWS = list[dict[str, Any]]


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

    - `prompts`: strings, requests (`{"messages": [...]}`, OpenAI Batch lines), rows for a `template`, from any
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
      or `"pandas"`. `out`: a file to write instead (.jsonl, .csv, .tsv, .txt, .parquet), which replaces only earlier
      answers; then a `Summary` is returned.
    - `teardown`: when everything was answered, delete the batch, and the queue's file if nothing else is in it.
    - `verbose`: show progress on stderr, a line for every `progress_every` answers where there is no terminal.
    """
    unique = is_unique(output_shape)
    wanted = _Wanted(
        dtype=dtype_of(return_dtype),
        output=None if out is None else output_of(out, unique=unique),
        unique=unique,
        teardown=teardown,
        shown=Shown(verbose, progress_every),
    )
    call = Call(
        prompts=prompts,
        worker=worker,
        model_name=model_name,
        openrouter_api_key=openrouter_api_key,
        base_url=base_url,
        response_model=response_model,
        concurrency=concurrency,
        max_attempts=max_attempts,
        rpm_limit=rpm_limit,
        db_url=db_url,
        fresh=fresh,
        batch=batch,
        system=system,
        params=params,
        prompt_template=PromptTemplate(template, "template") if template else None,
        budget=budget,
    )
    return await _mapped(call, wanted)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What is to become of the answers."""

    dtype: Dtype
    output: Output | None
    unique: bool
    teardown: bool
    shown: Shown


async def _mapped(call: Call, wanted: _Wanted) -> Any:  # noqa: ANN401 - the overloads of prompt_map tell
    ready = make_ready(call)
    output = wanted.output
    if output is not None:
        check_file(output, database_file(ready.settings.db))
    async with await open_store(ready.settings.db, create=True) as store:
        found = await ready.enqueue(store)
        if found is None:
            return converted([], wanted.dtype) if output is None else write_nothing(output)
        if output is not None:
            await check_for(output, store, found)
        async with working(store, ready, found) as runner:
            await run_batch(store, runner, found, wanted.shown)
            if output is not None:
                summary = await write_answers(output, store, found)
                result, complete = summary, summary.done == summary.total
            else:
                rows = await _rows(store, found, Reader(call.response_model), unique=wanted.unique)
                result, complete = converted(rows, wanted.dtype), all(row["status"] == "done" for row in rows)
        if wanted.teardown:
            await take_down(store, found, complete=complete)
        return result


async def _rows(store: Store, found: Synchronised, reader: Reader, *, unique: bool) -> list[AnswerRow]:
    """Read the rows of the prompts; what others have added to the batch meanwhile is theirs."""
    batch, total = await store.batch(found.batch.name), found.enqueued.total
    results = whole_results(store, batch, with_prompt=True, unique=unique, most=total)
    return [reader.row(result) async for result in results]
