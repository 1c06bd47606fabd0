"""Long runs with a reader in the way: what grows meanwhile, and whether the queue gets slower.

A read transaction keeps all that it may still look at: SQLite can't shorten its write-ahead log, and PostgreSQL
can't remove the versions of rows that were replaced since. So there are readers that let go now and then, as
those do that read in pages, and one that never does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

from scripts.benchmarks.filling import fill
from scripts.benchmarks.places import SQLITE, Home, Place, PostgresPlace, SqlitePlace
from scripts.benchmarks.processes import in_child
from scripts.benchmarks.queue import NOTHING, noop_seconds
from scripts.benchmarks.queues import make_queue, resume
from scripts.benchmarks.sizes import Plan, Sizes
from scripts.benchmarks.table import Row, count

# Four times what starts a checkpoint.
LOG_MB = 64
_SAMPLE_SECONDS = 0.1
_DEAD = "SELECT n_dead_tup FROM pg_stat_user_tables WHERE relname = 'jobs'"
_FINISHED = (
    "SELECT finished_at FROM jobs WHERE batch_id = 1 AND finished_at IS NOT NULL ORDER BY finished_at LIMIT 1 OFFSET $1"
)
_SIZE = "SELECT pg_total_relation_size('jobs') / 1048576.0"


@dataclass(frozen=True, slots=True)
class _Reader:
    """Holds a read transaction for `hold` seconds, lets go for `pause`, and so on."""

    hold: float
    pause: float
    told: str


@dataclass(frozen=True, slots=True)
class _Soaked:
    """What a run has shown: samples of what may grow, jobs/s of its second and of its last fifth."""

    samples: list[float]
    early: float
    late: float
    left: float

    @property
    def rates(self) -> str:
        return f"{self.late:,.0f} jobs/s in the last fifth, {self.early:,.0f} in the second"


def measure(plan: Plan) -> list[Row]:
    """No-op jobs through one process, as in `noop`, beside a reader: see above.

    SQLite: the size of the -wal file, sampled; PostgreSQL: dead rows and the size of the table with its indexes.
    On both: the rate at the end against that at the beginning, from the rows' own times.
    """
    rows: list[Row] = []
    for home in plan.homes:
        rows += _soak_sqlite(plan.sizes, home) if home.database == SQLITE else _soak_postgres(plan.sizes, home)
    return rows


def _readers(sizes: Sizes) -> tuple[tuple[int, _Reader], tuple[int, _Reader], tuple[int, _Reader]]:
    hold, pause = sizes.soak_hold, sizes.soak_pause
    return (
        (sizes.held_jobs, _Reader(0.02, 0.005, "reads pages without a break")),
        (sizes.soak_jobs, _Reader(hold, pause, f"holds for {hold:g} s and lets go for {pause:g}")),
        (sizes.held_jobs, _Reader(float("inf"), 0, "never lets go")),
    )


def _soak_sqlite(sizes: Sizes, home: Home) -> list[Row]:
    rows = []
    for jobs, reader in _readers(sizes):
        queue = home.place("queue")
        assert isinstance(queue, SqlitePlace)
        found = _soak(queue, jobs, reader, lambda log=queue.log: _megabytes(log))  # type: ignore[misc]
        title = f"{SQLITE}: {count(jobs)} no-op jobs while a reader {reader.told}: "
        rows += [_log_row(title, reader, found), _rate_row(title, found)]
    return rows


def _log_row(title: str, reader: _Reader, found: _Soaked) -> Row:
    half = len(found.samples) // 2
    first, second = max(found.samples[:half]), max(found.samples[half:])
    note = f"at most {first:.0f} MB in the first half, {second:.0f} in the second, {found.left:.0f} behind it"
    if not reader.pause:
        name = f"{title}the log when that has left, relative to {LOG_MB} MB"
        return Row(name, found.left / LOG_MB, 1, note, at_most=True)
    name = f"{title}the log in the second half, against the first or {LOG_MB} MB"
    return Row(name, second / max(first, LOG_MB), 1.5, note, at_most=True)


def _soak_postgres(sizes: Sizes, home: Home) -> list[Row]:
    rows = []
    for jobs, reader in _readers(sizes)[1:]:
        queue = home.place("queue")
        assert isinstance(queue, PostgresPlace)
        found = _soak(queue, jobs, reader, lambda place=queue: float(place.ask(_DEAD) or 0))  # type: ignore[misc]
        title = f"{home.database}: {count(jobs)} no-op jobs while a reader {reader.told}: "
        size = f"at most {max(found.samples):,.0f} dead rows; the table has {found.left:.0f} MB in the end"
        rows.append(_rate_row(title, found, size, judged=bool(reader.pause)))
    return rows


def _rate_row(title: str, found: _Soaked, more: str = "", *, judged: bool = True) -> Row:
    note = f"{found.rates}; {more}" if more else found.rates
    return Row(
        f"{title}jobs/s, the last fifth against the second", found.late / found.early, 0.8 if judged else None, note
    )


def _soak(queue: Place, jobs: int, reader: _Reader, sample: Callable[[], float]) -> _Soaked:
    make_queue(queue, NOTHING, {"main": ()})
    in_child(fill, queue.location, 0, jobs)
    samples: list[float] = []
    with _repeating(lambda: samples.append(sample()), _SAMPLE_SECONDS), _reading(queue, reader):
        in_child(noop_seconds, queue.location)
    # The next one to write, with nobody in the way: then SQLite's log is folded in.
    resume(queue, "main")
    left = _megabytes(queue.log) if isinstance(queue, SqlitePlace) else float(queue.ask(_SIZE))
    if len(samples) < 2:
        raise RuntimeError("it was over before anything could be seen: nothing was measured")
    return _Soaked(samples, _rate(queue, jobs, 1), _rate(queue, jobs, 4), left)


def _rate(queue: Place, jobs: int, fifth: int) -> float:
    """Return the jobs/s of one fifth of the jobs, from 0 to 4, by when they were finished."""
    first, last = (int(queue.ask(_FINISHED, min(jobs - 1, jobs * number // 5))) for number in (fifth, fifth + 1))
    return jobs / 5 * 1000 / max(1, last - first)


@contextmanager
def _reading(queue: Place, reader: _Reader) -> Iterator[None]:
    def read(over: Event) -> None:
        while not over.is_set():
            with queue.snapshot():
                over.wait(None if reader.hold == float("inf") else reader.hold)
            over.wait(reader.pause)

    with _thread(read):
        yield


@contextmanager
def _repeating(action: Callable[[], None], seconds: float) -> Iterator[None]:
    def repeat(over: Event) -> None:
        while not over.wait(seconds):
            action()

    with _thread(repeat):
        yield


@contextmanager
def _thread(body: Callable[[Event], None]) -> Iterator[None]:
    over = Event()
    thread = Thread(target=body, args=(over,))
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _megabytes(file: Path) -> float:
    try:
        return file.stat().st_size / 2**20
    except FileNotFoundError:
        return 0.0
