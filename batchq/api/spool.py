"""Makes what a caller hands over, however it comes, an input that can be read twice."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from io import FileIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias, cast

import anyio.lowlevel
import anyio.to_thread

from batchq.errors import BadInput, OutputFailed, UsageError
from batchq.formats import ReadOptions
from batchq.formats.tables import rows_of_table
from batchq.jobs import Json
from batchq.request import encode
from batchq.source import Source, open_source
from batchq.survey import Survey, survey_source

Prompts: TypeAlias = Iterable[object] | AsyncIterable[object] | Path

_LINES_AT_ONCE = 200
_BREATH_SECONDS = 0.02
_DEEPEST = 100
_SHOWN = 3
# Of a request to a chat API, beside its messages.
_PARAMETERS = frozenset(
    {"max_completion_tokens", "max_tokens", "model", "reasoning", "reasoning_effort", "response_format", "seed", "stop",
     "temperature", "tools", "top_p"}
)  # fmt: skip


@asynccontextmanager
async def spooled(
    prompts: Prompts, options: ReadOptions | None = None, *, name: str = "prompts"
) -> AsyncIterator[Source]:
    """Make prompts readable twice, as long as the block lasts.

    `prompts` are strings, request dicts or lists of messages, from any iterable, async or not, as they come; the
    rows of a table; or a file, by its Path. Memory does not grow with their number, and others have the event
    loop now and then. What has no items is no error here: see `is_empty`. Raises BadInput, naming
    `prompts[index]`, for what is no prompt, UsageError for what holds none.
    """
    options = options or ReadOptions()
    if isinstance(prompts, Path):
        with ExitStack() as stack:
            # In a thread: a pipe lasts as long as its writer.
            yield await anyio.to_thread.run_sync(stack.enter_context, open_source(prompts, options))
        return
    items = _items_of(prompts, name)
    options = replace(options, input_format="jsonl", image_root=options.image_root or Path())
    with TemporaryDirectory(prefix="batchq-") as directory:
        path = Path(directory, "prompts.jsonl")
        await _write(items, path, name)
        yield Source(path, name, options, is_copy=True, is_items=True).signed()


def is_empty(source: Source) -> bool:
    """Whether a caller's own list held nothing; a file without prompts is for its reader to refuse."""
    return source.is_items and not source.path.stat().st_size


@asynccontextmanager
async def surveyed(source: Source, *, model: str | None = None) -> AsyncIterator[Survey]:
    """Check all prompts of a source, in a thread. Raises BadInput, whose message names the first bad ones."""
    with ExitStack() as stack:
        survey = partial(stack.enter_context, survey_source(source, model=model))
        try:
            found = await anyio.to_thread.run_sync(survey)
        except BadInput as error:
            raise _told(error, source) from None
        yield found


def _told(error: BadInput, source: Source) -> BadInput:
    """Put the examples into the message, since a traceback shows nothing else."""
    if not error.examples:
        return error
    what = "1 prompt" if error.count == 1 else f"{error.count:,} prompts"
    more = error.count - len(error.examples[:_SHOWN])
    told = [*error.examples[:_SHOWN], *([f"{more:,} more"] if more else [])]
    where = "" if source.is_items else f" of {source.name}"
    return BadInput(
        f"{what}{where} can't be asked, and nothing was enqueued: {'; '.join(told)}",
        error.examples,
        error.count,
    )


def _items_of(prompts: object, name: str) -> Iterable[object] | AsyncIterable[object]:
    if isinstance(prompts, str | bytes | bytearray):
        raise UsageError(f"{name} is a single prompt: put it in a list; a file is given as a pathlib.Path")
    if isinstance(prompts, Mapping):
        raise UsageError(f"{name} is a single request: put it in a list")
    table = rows_of_table(prompts)
    if table is not None:
        return table
    if isinstance(prompts, Iterable | AsyncIterable):
        return prompts
    raise UsageError(f"{name} is {_kind(prompts)}: give a list, any other iterable, a table or a pathlib.Path")


async def _write(items: Iterable[object] | AsyncIterable[object], path: Path, name: str) -> None:
    """Write a line for each item as they come."""
    lines: list[str] = []
    index, breath = 0, time.monotonic()
    with path.open("ab", buffering=0) as file:
        async for item in items if isinstance(items, AsyncIterable) else _each(items):
            lines.append(_line(item, name, index))
            index += 1
            if len(lines) == _LINES_AT_ONCE or time.monotonic() - breath > _BREATH_SECONDS:
                _flush(lines, file, path)
                await anyio.lowlevel.checkpoint()
                breath = time.monotonic()
        _flush(lines, file, path)


def _flush(lines: list[str], file: FileIO, path: Path) -> None:
    data = memoryview("".join(lines).encode("ascii"))
    lines.clear()
    try:
        while data:
            data = data[file.write(data) :]
    except OSError as error:
        raise OutputFailed.to(path, error) from error


async def _each(items: Iterable[object]) -> AsyncIterator[object]:
    for item in items:
        yield item


def _line(item: object, name: str, index: int) -> str:
    try:
        return encode(_json_of(item)) + "\n"
    except _Unfit as error:
        reason = str(error)
    except (TypeError, ValueError, RecursionError) as error:
        reason = next(_misfits(item), str(error))
    place = f"{name}[{index}]"
    raise BadInput(f"{place} can't be asked: {reason}", [f"{place}: {reason}"], 1)


class _Unfit(Exception):
    """The reason why an item is no prompt."""


def _json_of(item: object) -> Json:
    if isinstance(item, str):
        return item
    if isinstance(item, Mapping):
        _refuse_parameters(item)
        return cast("Json", item if isinstance(item, dict) else dict(item))
    if isinstance(item, list | tuple):
        if item and all(isinstance(message, Mapping) for message in item):
            return {"messages": [cast("Json", dict(message)) for message in item]}
        raise _Unfit("it is a list, and not of messages like {'role': 'user', 'content': '…'}")
    raise _Unfit(f"it is {_kind(item)}; a prompt is a string, a request dict, or a list of messages")


def _refuse_parameters(item: Mapping[object, object]) -> None:
    """Raise _Unfit for what looks like a whole request: of a dict with messages nothing else would be sent."""
    given = sorted(_PARAMETERS & item.keys()) if "messages" in item and "body" not in item else []
    if given:
        raise _Unfit(
            f"beside its messages it has {', '.join(map(str, given))}, which would not be sent: give parameters and"
            " model for all prompts together, or each request as an OpenAI Batch line"
        )


def _misfits(value: object, path: str = "", depth: int = 0) -> Iterator[str]:
    """Yield what JSON can't hold of a value, each with its place in it."""
    what = f"`{path}` is" if path else "it is"
    if depth > _DEEPEST:
        yield "it is nested too deep, or holds itself"
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            if not isinstance(name, str | int | float | None):
                yield f"{what} a dict with a key that is {_kind(name)}"
            yield from _misfits(inner, f"{path}.{name}" if path else str(name), depth + 1)
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _misfits(inner, f"{path}[{index}]", depth + 1)
    elif isinstance(value, float) and not math.isfinite(value):
        yield f"{what} {float(value)}, which JSON does not know"
    elif not isinstance(value, str | int | float | None):
        yield f"{what} {_kind(value)}, which JSON does not know"


def _kind(value: object) -> str:
    return "None" if value is None else f"a value of type {type(value).__qualname__}"
