"""Whether a claim, a look at the status, and the first row of the results take longer the more rows there are."""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial

from sqlalchemy import Connection, Engine, event

from batchq.collecting import whole_results
from batchq.overview import look_at
from batchq.store import Store, open_store
from scripts.benchmarks.filling import fill
from scripts.benchmarks.places import Home
from scripts.benchmarks.processes import BATCHQ, in_child, running
from scripts.benchmarks.queues import make_queue
from scripts.benchmarks.single_steps import claim_request
from scripts.benchmarks.sizes import Plan, Sizes, interleaved
from scripts.benchmarks.table import Row, count

CLAIM = 16
# Before psycopg prepares a statement, and before the server has made up its mind about a plan for it.
WARM_UP = 12
STATUS_MS = 100


def measure(plan: Plan) -> list[Row]:
    """Times in queues with more and more finished rows, the largest with many waiting ones, against the smallest.

    All queues of a database are open in one process and looked at in turn; medians. A claim is a
    `store.exchange` that takes 16 jobs, up to COMMIT: all that batchq and the database do to find and take
    the rows; the write to the disk is in the note. `status` is all that the command reads; `collect` reads
    what it does before the first row, and that row. Whole commands, with their start, are in the notes.
    """
    return [row for home in plan.homes for row in _measure(plan.sizes, home)]


def _measure(sizes: Sizes, home: Home) -> list[Row]:
    few = (sizes.claims + WARM_UP + 1) * CLAIM
    waiting = [*(few for _ in sizes.ladder[1:]), max(few, sizes.waiting_rows)]
    locations = []
    for finished, left in zip(sizes.ladder, waiting, strict=True):
        place = home.place(f"rows_{finished}")
        make_queue(place, "echo", {"main": ()})
        in_child(fill, place.location, finished, left)
        locations.append(place.location)
    looks = in_child(look_times, locations, sizes.claims)
    claims = in_child(claim_times, locations, sizes.claims)
    rows = f"{count(sizes.ladder[-1])} finished + {count(waiting[-1])} waiting rows"
    return [
        _claim_row(home, sizes, claims, rows),
        *_look_rows(home, sizes, "status", looks, rows, _commands(["status"], locations, sizes)),
        *_look_rows(home, sizes, "collect", looks, rows, _commands(["collect", "main", "--no-wait"], locations, sizes)),
    ]


def _claim_row(home: Home, sizes: Sizes, found: dict[str, list[float]], rows: str) -> Row:
    times, whole = found["to commit"], found["whole"]
    note = (
        f"{_ladder(sizes, times)}; with COMMIT {whole[-1]:.2f} against {whole[0]:.2f} ms"
        f" ({whole[-1] / whole[0]:.2f} ×); median of {sizes.claims}"
    )
    name = f"{home.database}: claim of {CLAIM} with {rows}, against {count(sizes.ladder[0])}"
    return Row(name, times[-1] / times[0], 1.5, note, at_most=True)


def _look_rows(
    home: Home, sizes: Sizes, what: str, found: dict[str, list[float]], rows: str, commands: list[float]
) -> list[Row]:
    times, title = found[what], {"status": "status", "collect": "collect's first row"}[what]
    note = f"{_ladder(sizes, times)}; the whole command {commands[-1]:.0f} against {commands[0]:.0f} ms"
    flat = Row(
        f"{home.database}: {title} with {rows}, against {count(sizes.ladder[0])}",
        times[-1] / times[0], 1.5, f"{note}; median of {sizes.claims}", at_most=True,
    )  # fmt: skip
    if what != "status":
        return [flat]
    name = f"{home.database}: {title} with {rows}, relative to {STATUS_MS} ms"
    return [flat, Row(name, max(times) / STATUS_MS, 1, f"{max(times):.1f} ms", at_most=True)]


def _ladder(sizes: Sizes, times: list[float]) -> str:
    return ", ".join(f"{time:.2f} ms at {count(rows)}" for rows, time in zip(sizes.ladder, times, strict=True))


def _commands(command: list[str], locations: list[str], sizes: Sizes) -> list[float]:
    found = interleaved(sizes.commands, *(partial(_first_line_ms, command, location) for location in locations))
    return [statistics.median(times) for times in found]


def _first_line_ms(command: list[str], location: str) -> float:
    """Return how long a command takes to print its first line."""
    began = time.perf_counter()
    with running([BATCHQ, *command, f"--db={location}"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        if not process.stdout.readline():
            raise RuntimeError(f"{' '.join(command)} printed nothing: nothing was measured")
        return (time.perf_counter() - began) * 1000


def look_times(locations: list[str], looks: int) -> dict[str, list[float]]:
    """Return the median milliseconds of `status` and of `collect`'s first row in each queue."""
    watches: dict[str, Callable[[Store], Awaitable[object]]] = {"status": _status, "collect": _first_row}
    return {what: asyncio.run(_look_times(locations, looks, look)) for what, look in watches.items()}


async def _look_times(locations: list[str], looks: int, look: Callable[[Store], Awaitable[object]]) -> list[float]:
    stores = [await open_store(location) for location in locations]
    found: list[list[float]] = [[] for _ in stores]
    for _ in range(looks + WARM_UP):
        for store, times in zip(stores, found, strict=True):
            began = time.perf_counter()
            await look(store)
            times.append((time.perf_counter() - began) * 1000)
    for store in stores:
        await store.close()
    return [statistics.median(times[WARM_UP:]) for times in found]


async def _status(store: Store) -> object:
    return await look_at(store)


async def _first_row(store: Store) -> object:
    batch = (await store.progress("main")).batch
    await store.has_custom_ids(batch)
    async with aclosing(whole_results(store, batch)) as results:
        return await anext(results)


def claim_times(locations: list[str], claims: int) -> dict[str, list[float]]:
    """Return for each queue the median milliseconds of a claim, up to COMMIT and with it."""
    watch = _CommitWatch()
    event.listen(Engine, "commit", watch.note)
    event.listen(Engine, "before_cursor_execute", watch.note_statement)
    found = asyncio.run(_claim_times(locations, claims, watch))
    return {
        "to commit": [statistics.median(times.to_commit[WARM_UP:]) for times in found],
        "whole": [statistics.median(times.whole[WARM_UP:]) for times in found],
    }


@dataclass(slots=True)
class _CommitWatch:
    """Notes when a transaction is about to be committed."""

    at: float = 0.0

    def note(self, _connection: Connection) -> None:
        self.at = time.perf_counter()

    def note_statement(self, connection: Connection, _cursor: object, statement: str, *_others: object) -> None:
        if statement == "COMMIT":
            self.note(connection)


@dataclass(slots=True)
class _Times:
    to_commit: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)


async def _claim_times(locations: list[str], claims: int, watch: _CommitWatch) -> list[_Times]:
    request = claim_request("echo", CLAIM)
    stores = [await open_store(location) for location in locations]
    found = [_Times() for _ in stores]
    for _ in range(claims + WARM_UP):
        for store, times in zip(stores, found, strict=True):
            began = time.perf_counter()
            reply = await store.exchange(request)
            ended = time.perf_counter()
            if len(reply.claims) != CLAIM:
                raise RuntimeError(f"claimed {len(reply.claims)} jobs instead of {CLAIM}: nothing was measured")
            times.to_commit.append((watch.at - began) * 1000)
            times.whole.append((ended - began) * 1000)
    for store in stores:
        await store.close()
    return found
