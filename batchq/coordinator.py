"""Watches a batch and assembles its ordered output. Reads only, so any number may run beside each other."""

from __future__ import annotations

import re
import sys
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO, cast

import anyio

from batchq.errors import OutputFailed, Purged, TimedOutWaiting, UsageError
from batchq.formats import AtomicFile, refuse_queue, render_jsonl, same_file
from batchq.jobs import Batch, BatchState, Counts, ErrorGroup, Progress
from batchq.store import Store
from batchq.waiting import why_waiting

POLL_SECONDS = 0.1
MAX_SILENCE_SECONDS = 1.0
WINDOW_SECONDS = 30.0
_PAGE_ROWS = 500
_RESULT_LINE = re.compile(rb'\{"custom_id":(?:null|"(?:[^"\\]|\\.)*"),"position":\d+,')

OnProgress = Callable[[Progress], None]


async def watch(store: Store, name: str) -> AsyncIterator[Progress]:
    """Yield where a batch stands until it is finished: at each change, and at least once a second."""
    with closing(store.watch()) as watcher:
        while True:
            watcher.changed()  # what is committed from here on is seen by the next round
            progress = await store.progress(name)
            yield progress
            if progress.finished:
                return
            deadline = time.monotonic() + MAX_SILENCE_SECONDS
            while time.monotonic() < deadline:
                await anyio.sleep(POLL_SECONDS)
                if watcher.changed():
                    break


async def wait_until_finished(
    store: Store, name: str, *, wait_timeout: float | None = None, on_progress: OnProgress | None = None
) -> Progress:
    """Return when every job of a complete batch has ended.

    Raises TimedOutWaiting after a while, Purged for a batch that is being deleted.
    """
    progress: Progress | None = None
    with anyio.move_on_after(wait_timeout):
        async for progress in watch(store, name):
            _refuse_purged(progress.batch)
            if on_progress is not None:
                on_progress(progress)
    if progress is None:
        progress = await store.progress(name)
    if progress.finished:
        return progress
    counts = progress.counts
    why = why_waiting(progress, store.location)
    raise TimedOutWaiting(
        f"{name} is not finished: {counts.final:,} of {counts.total:,} jobs have ended" + (f"; {why}" if why else "")
    )


@dataclass(frozen=True, slots=True)
class Collected:
    """What was written of a batch: `counts` are the lines by state, `errors` how jobs failed."""

    batch: Batch
    progress: Progress
    counts: Counts
    errors: tuple[ErrorGroup, ...]


async def collect(
    store: Store,
    name: str,
    out: Path | None,
    *,
    with_prompt: bool = False,
    wait_timeout: float | None = None,
    on_progress: OnProgress | None = None,
) -> Collected:
    """Wait until a batch is finished, then write its results. Raises TimedOutWaiting, UnknownBatch."""
    await wait_until_finished(store, name, wait_timeout=wait_timeout, on_progress=on_progress)
    return await write_results(store, name, out, with_prompt=with_prompt)


async def write_results(store: Store, name: str, out: Path | None, *, with_prompt: bool = False) -> Collected:
    """Write every job of a batch as it stands now, in input order, one line each.

    `out` is replaced whole or not at all; None is standard output. Raises UnknownBatch, Purged, and UsageError
    where `out` is the queue itself or the batch's own input.
    """
    progress = await store.progress(name)
    _refuse_purged(progress.batch)
    if out is not None:
        refuse_queue(out, Path(store.location))
        check_not_source(out, progress.batch)
    states: Counter[str] = Counter()
    lines: list[str] = []
    with _sink(out) as sink:
        async for result in store.results(progress.batch, with_prompt=with_prompt, page_rows=_PAGE_ROWS):
            states[result.state.value] += 1
            lines.append(render_jsonl(result, with_prompt=with_prompt))
            if len(lines) == _PAGE_ROWS:
                _write_lines(sink, lines)
        if states.total() < progress.batch.size:
            raise Purged(
                f"{name} has lost jobs while they were read ({states.total():,} of {progress.batch.size:,}"
                " are left): somebody purges it"
            )
        _write_lines(sink, lines)
    return Collected(progress.batch, progress, Counts(**states), tuple(await store.errors(progress.batch)))


def _refuse_purged(batch: Batch) -> None:
    if batch.state is BatchState.PURGING:
        raise Purged(f"{batch.name} is being purged: what is left of it is no whole; `batchq purge` completes that")


def check_output(path: Path, *, overwrite: bool = False, database: Path | None = None) -> None:
    """Raise UsageError, before anybody waits, if results should not or could not be written to `path`.

    A file that is there is replaced only if it holds results: an input is not lost to a slip of the hand.
    `overwrite` lifts that, but nothing lets results replace the queue's `database`.
    """
    if database is not None:
        refuse_queue(path, database)
    if not path.parent.is_dir():
        raise UsageError(f"can't write {path}: the directory {path.parent} does not exist; create it first")
    if path.is_dir():
        raise UsageError(f"can't write {path}: it is a directory; name a file in it")
    if path.is_file() and not overwrite:
        _check_holds_results(path)
    AtomicFile(path).check()


def _check_holds_results(path: Path) -> None:
    try:
        with path.open("rb") as file:
            start = file.read(1 << 16)
    except OSError as error:
        raise UsageError(f"can't write {path}: {error.strerror or error}") from error
    if start and not _RESULT_LINE.match(start):
        raise UsageError(f"{path} exists and does not hold results: choose another file, or overwrite with --force")


def check_not_source(path: Path, batch: Batch) -> None:
    """Raise UsageError if `path` is the file that the batch's rows were read from."""
    if batch.source is not None and same_file(path, Path(batch.source)):
        raise UsageError(f"{path} is the input of {batch.name} itself: name another file with -o")


class Pace:
    """How fast a batch moves, from what ended in the last half minute."""

    def __init__(self) -> None:
        """Start with nothing seen."""
        self._seen: deque[tuple[float, int]] = deque()

    def note(self, progress: Progress, now: float | None = None) -> None:
        """Take note of one moment; `now` is in seconds on any steady clock."""
        moment = time.monotonic() if now is None else now
        final = progress.counts.final
        if self._seen and final < self._seen[-1][1]:
            self._seen.clear()  # a retry sent some back
        self._seen.append((moment, final))
        while len(self._seen) > 2 and self._seen[1][0] < moment - WINDOW_SECONDS:
            self._seen.popleft()

    @property
    def per_second(self) -> float | None:
        """Jobs that ended per second; None until that is known."""
        if len(self._seen) < 2:
            return None
        (began, before), (ended, after) = self._seen[0], self._seen[-1]
        return (after - before) / (ended - began) if ended > began else None

    def seconds_left(self, progress: Progress) -> float | None:
        """Return the time that the rest will take at this rate; None if nothing moves."""
        rate = self.per_second
        return progress.counts.live / rate if rate else None


@contextmanager
def _sink(out: Path | None) -> Iterator[TextIO]:
    if out is None:
        yield cast("TextIO", _Stdout())
        return
    with AtomicFile(out) as file:
        yield file


class _Stdout:
    """Standard output, whose failed writes say so."""

    def write(self, text: str) -> int:
        try:
            written = sys.stdout.write(text)
            sys.stdout.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputFailed.to("to standard output", error) from error
        return written


def _write_lines(sink: TextIO, lines: list[str]) -> None:
    if lines:
        sink.write("\n".join(lines) + "\n")
        lines.clear()
