"""`out=` of `prompt_map`: answers go into a file, which is checked before anything is asked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from batchq.api.answers import Summary, shown_prompt
from batchq.collecting import Output, check_not_source, check_output, whole_results, write_results
from batchq.errors import UsageError
from batchq.formats import AtomicFile
from batchq.formats.rendering import Entry
from batchq.formats.rendering.text import TextRenderer
from batchq.generations import Synchronised
from batchq.jobs import NANO, JobState, Result
from batchq.store import Store

_WITH_PROMPT = frozenset({"jsonl", "csv", "tsv", "parquet"})
_WAY_OUT = "name another file with out=, or move that one away"


def output_of(out: str | Path, *, unique: bool) -> Output:
    """Return what is to be written: prompts stand beside the answers where the format has a place for them."""
    output = Output(Path(out), unique=unique)
    return replace(output, with_prompt=output.actual_format in _WITH_PROMPT)


def check_file(output: Output, database: Path | None) -> None:
    """Raise UsageError where a file can't be written, or holds what are no results. Text never tells what it is."""
    check_output(output, overwrite=output.actual_format == "txt", database=database, way_out=_WAY_OUT)


async def check_for(output: Output, store: Store, found: Synchronised) -> None:
    """Raise UsageError where a file is what the prompts were read from, or is a text that answers nothing of them."""
    check_not_source(output, found.batch)
    path = output.path
    if output.actual_format != "txt" or path is None or not path.is_file() or not path.stat().st_size:
        return
    text = await _compared(path, store, found, unique=output.unique)
    if not text.is_ours:
        raise UsageError(
            f"{path} exists, and nothing tells that its {text.lines:,} lines are answers: {_WAY_OUT}; a .jsonl or"
            " .csv file would tell"
        )


async def write_answers(output: Output, store: Store, found: Synchronised) -> Summary:
    """Write the rows of a call; what others have added to its batch meanwhile is theirs."""
    name = found.batch.name
    collected = await write_results(store, name, replace(output, most=found.enqueued.total))
    counts, progress = collected.counts, collected.progress
    return Summary(
        batch=name,
        path=str(output.path),
        done=counts.done,
        failed=counts.failed,
        cancelled=counts.cancelled,
        input_tokens=progress.usage.input_tokens or 0,
        output_tokens=progress.usage.output_tokens or 0,
        cost=None if progress.cost is None else progress.cost / NANO,
    )


def write_nothing(output: Output) -> Summary:
    """Write the file of no prompts."""
    path = output.path or Path()
    with AtomicFile(path):
        return Summary("", str(path), 0, 0, 0, 0, 0, None)


@dataclass(slots=True)
class _Text:
    """A text that is there, held against the rows that are to take its place."""

    lines: int = 0
    rows: int = 0
    answers: int = 0
    others: int = 0
    differs_from_prompts: bool = False

    @property
    def is_ours(self) -> bool:
        """Whether it may be replaced: it begins with what was answered before, or has a line for each row.

        A list of the very prompts has one, too, and is no answer.
        """
        if self.lines > self.rows:
            return False
        return bool(self.answers and not self.others) or (self.lines == self.rows and self.differs_from_prompts)

    def compare(self, line: bytes, answer: bytes, result: Result) -> None:
        """Take the next line, and the row that it would answer."""
        prompt = None if result.payload is None else shown_prompt(result.prompt)
        self.differs_from_prompts |= not (isinstance(prompt, str) and prompt.encode(errors="replace") == line)
        if result.state is JobState.DONE:
            self.answers += bool(line) and line == answer
            self.others += line != answer


async def _compared(path: Path, store: Store, found: Synchronised, *, unique: bool) -> _Text:
    text, renderer = _Text(), TextRenderer()
    batch = await store.batch(found.batch.name)
    with path.open("rb") as file:
        async for result in whole_results(store, batch, with_prompt=True, unique=unique, most=found.enqueued.total):
            text.rows += 1
            if line := file.readline():
                text.lines += 1
                text.compare(line.rstrip(b"\r\n"), renderer.row(Entry(result)).rstrip(b"\n"), result)
        text.lines += sum(1 for _ in file)
    return text
