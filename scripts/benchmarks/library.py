"""What a call of the library costs where the worker takes no time, and how fast results come out again.

Each run is a process of its own. Its peak memory is what the system has counted for it at the end. The fastest
of some rounds counts, but 1 M jobs are run once.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from batchq import prompt_map
from batchq.collecting import Output, collect
from batchq.store import open_store
from scripts.benchmarks.filling import fill
from scripts.benchmarks.memory import LIMIT_MB, peak_bytes
from scripts.benchmarks.processes import in_child
from scripts.benchmarks.queues import make_queue, prompts
from scripts.benchmarks.sizes import Plan, interleaved
from scripts.benchmarks.table import Row, count

SLOTS = 64
# Rows that are returned are all held in memory at once.
MOST_RETURNED = 100_000
BARE = "bare"
FORMATS = ("jsonl", "csv", "txt", "openai", "parquet")

_SELECT = (
    "SELECT position, custom_id, state, attempts, result, error, error_class, finish_reason, input_tokens,"
    " output_tokens, cost FROM jobs WHERE batch_id = 1 ORDER BY position"
)


@dataclass(frozen=True, slots=True)
class _Run:
    """One run over so many jobs: its seconds, in parts as they follow each other, and its peak."""

    jobs: int
    parts: dict[str, float]
    peak_mb: float

    @property
    def rate(self) -> float:
        return self.jobs / sum(self.parts.values())

    def told(self, unit: str) -> str:
        """Say how fast it was, where the time went, and how much memory it took."""
        shown = " + ".join(f"{seconds:.1f} s {part}" for part, seconds in self.parts.items())
        parts = f" ({shown})" if len(self.parts) > 1 else ""
        return f"{count(self.jobs)}: {self.rate:,.0f} {unit}/s{parts}, {self.peak_mb:.0f} MB"


def measure(plan: Plan) -> list[Row]:
    """Prompts in and answers out by `prompt_map`, then results out by `collect`."""
    return [*measure_prompt_map(plan), *measure_collect(plan)]


def measure_prompt_map(plan: Plan) -> list[Row]:
    """`prompt_map` with prompts from a generator and an async function that returns at once, 64 slots.

    From the call to its return. Its answers go into a JSON Lines file; up to 100,000 of them also come back
    as a list of texts. Parts of the time: until the last prompt was taken from the generator (spool), until
    the first call of the worker (check, hash and enqueue), until its last (work), and until the return.
    """
    sizes, written, returned = plan.sizes.library_jobs, [], []
    for jobs in sizes:
        into_file, as_list = (partial(_mapped, plan.directory, jobs, returned=given) for given in (False, True))
        if jobs > MOST_RETURNED:
            written.append(into_file())
            continue
        files, lists = interleaved(plan.sizes.rounds, into_file, as_list)
        written.append(_fastest(files))
        returned.append(_fastest(lists))
    last, same = returned[-1], written[len(returned) - 1]
    rows = [
        Row("prompt_map, rows returned: jobs/s against rows in a file", last.rate / same.rate, 0.8, _told(returned)),
        _peak_row("prompt_map, rows in a file", written, "jobs"),
    ]
    return rows if len(sizes) == 1 else [_growth_row("prompt_map, rows in a file: jobs/s", written, "jobs"), *rows]


def measure_collect(plan: Plan) -> list[Row]:
    """`collect` of a finished batch into a file of each format, against a bare loop that writes JSON Lines.

    Baseline: bare sqlite3, one SELECT of the columns in order, `json.dumps` and `write` for each row. Both
    are timed with all their modules loaded.
    """
    found: dict[str, list[_Run]] = {chosen: [] for chosen in (BARE, *FORMATS)}
    queue = plan.directory / "collected.db"
    for jobs in plan.sizes.library_jobs:
        make_queue(queue, "echo", {"main": ()})
        in_child(fill, str(queue), jobs, 0)
        rounds = plan.sizes.rounds if jobs <= MOST_RETURNED else 1
        measures = [partial(_written, queue, jobs, chosen) for chosen in found]
        for runs, taken in zip(found.values(), interleaved(rounds, *measures), strict=True):
            runs.append(_fastest(taken))
    bare = found.pop(BARE)
    rows = [
        Row(
            f"collect as {chosen}: rows/s against a bare loop that writes JSON Lines",
            runs[-1].rate / bare[-1].rate,
            0.1,
            f"{_told(runs, 'rows')}; bare {bare[-1].rate:,.0f} rows/s",
        )
        for chosen, runs in found.items()
    ]
    worst = max(found.values(), key=lambda runs: runs[-1].peak_mb)
    rows.append(_peak_row("collect, of the format that takes most", worst, "rows"))
    if len(bare) > 1:
        slowest = min(found.values(), key=lambda runs: runs[-1].rate / runs[0].rate)
        rows.append(_growth_row("collect, of the format that slows most: rows/s", slowest, "rows"))
    return rows


def mapped_seconds(directory: str, jobs: int, returned: bool) -> tuple[dict[str, float], int]:
    """Return the parts of the time that a `prompt_map` takes, and the peak of this process."""
    watch = _Watch()
    out = None if returned else str(Path(directory, "out.jsonl"))
    call: Any = partial(prompt_map, return_dtype=list[str], out=out)
    queue = str(Path(directory, "queue.db"))
    watch.note("began")
    found = asyncio.run(
        call(watch.taken(prompts(jobs)), worker=watch.answer, concurrency=SLOTS, db_url=queue, verbose=False)
    )
    watch.note("ended")
    if (len(found) if returned else found.done) != jobs:
        raise RuntimeError(f"{jobs} prompts, and not as many answers: nothing was measured")
    return watch.parts(), peak_bytes()


def collect_seconds(queue: str, out: str, chosen: str) -> tuple[dict[str, float], int]:
    """Return how long the results of a batch take to be written, and the peak of this process."""
    if chosen == "parquet":
        import_module("pyarrow.parquet")

    async def main() -> float:
        async with await open_store(queue) as store:
            began = time.perf_counter()
            await collect(store, "main", Output(Path(out), chosen))
            return time.perf_counter() - began

    return {"write": asyncio.run(main())}, peak_bytes()


def bare_seconds(queue: str, out: str) -> tuple[dict[str, float], int]:
    """Return how long a loop with no batchq takes to write a batch's rows, and the peak of this process."""
    began = time.perf_counter()
    with closing(sqlite3.connect(queue)) as connection, open(out, "w") as file:  # noqa: PTH123 - as anybody would
        rows = connection.execute(_SELECT)
        names = [column[0] for column in rows.description]
        file.writelines(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows)
    return {"write": time.perf_counter() - began}, peak_bytes()


class _Watch:
    """The worker of a `prompt_map`, and the clock beside it."""

    def __init__(self) -> None:
        self._at: dict[str, float] = {}
        self._last = 0.0

    def note(self, moment: str) -> None:
        """Keep when a moment came for the first time."""
        self._at.setdefault(moment, time.perf_counter())

    def taken(self, texts: Iterator[str]) -> Iterator[str]:
        """Yield prompts, and note when the last one was taken."""
        yield from texts
        self.note("taken")

    async def answer(self, _prompt: str) -> str:
        """Answer at once."""
        self._last = time.perf_counter()
        self._at.setdefault("called", self._last)
        return "ok"

    def parts(self) -> dict[str, float]:
        """Return the seconds between the moments."""
        at = self._at
        moments = (at["began"], at["taken"], at["called"], self._last, at["ended"])
        names = ("spool", "enqueue", "work", "rest")
        return {name: moments[number + 1] - moments[number] for number, name in enumerate(names)}


def _mapped(parent: Path, jobs: int, *, returned: bool) -> _Run:
    with TemporaryDirectory(dir=parent) as directory:
        return _run_of(jobs, in_child(mapped_seconds, directory, jobs, returned))


def _written(queue: Path, jobs: int, chosen: str) -> _Run:
    out = str(queue.with_suffix(".out"))
    if chosen == BARE:
        return _run_of(jobs, in_child(bare_seconds, str(queue), out))
    return _run_of(jobs, in_child(collect_seconds, str(queue), out, chosen))


def _fastest(runs: list[_Run]) -> _Run:
    return max(runs, key=lambda run: run.rate)


def _run_of(jobs: int, found: tuple[dict[str, float], int]) -> _Run:
    parts, peak = found
    return _Run(jobs, parts, peak / 2**20)


def _peak_row(name: str, runs: list[_Run], unit: str) -> Row:
    worst = max(runs, key=lambda run: run.peak_mb)
    note = f"{', '.join(f'{run.peak_mb:.0f} MB for {count(run.jobs)}' for run in runs)} {unit}"
    return Row(f"{name}: peak memory, relative to {LIMIT_MB} MB", worst.peak_mb / LIMIT_MB, 1, note, at_most=True)


def _growth_row(name: str, runs: list[_Run], unit: str) -> Row:
    small, large = runs[0], runs[-1]
    title = f"{name} of {count(large.jobs)} against {count(small.jobs)}"
    return Row(title, large.rate / small.rate, 0.8, _told(runs, unit))


def _told(runs: list[_Run], unit: str = "jobs") -> str:
    return "; ".join(run.told(unit) for run in runs)
