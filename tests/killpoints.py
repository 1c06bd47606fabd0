"""`killpoints.py ARGUMENTS…` is `batchq ARGUMENTS…` with points at which it sends itself a signal when it is told to.

The points are around a wrapped store, its database and the executor of attempts; the package knows of none. KILLPOINTS
names a directory of the process's own, in which whoever started it writes `order`, and finds `runner` and `struck`.
Each call carries the mark of its attempt in its prompt, so that a provider that echoes it makes each answer one of
its own, and its ledger counts calls by attempt.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

AFTER_CLAIM = "after the claim"
BEFORE_CALL = "before the call"
DURING_CALL = "during the call"
AFTER_ANSWER = "after the answer"
INSIDE_COMMIT = "before COMMIT"
AFTER_COMMIT = "after COMMIT"
WORKER_POINTS = (AFTER_CLAIM, BEFORE_CALL, DURING_CALL, AFTER_ANSWER, INSIDE_COMMIT, AFTER_COMMIT)

INSIDE_ADDING = "adding, before COMMIT"
AFTER_ADDING = "adding, after COMMIT"
BEFORE_SEALING = "before sealing"
PRODUCER_POINTS = (INSIDE_ADDING, AFTER_ADDING, BEFORE_SEALING)

DIRECTORY = "KILLPOINTS"
# Shorter than any call that the point is meant for.
DURING_SECONDS = 0.05
# So few that an enqueue of some hundreds has a middle.
ROWS_PER_WRITE = 25


@dataclass(frozen=True)
class Order:
    """Send yourself this signal when you pass this point for the so-manieth time."""

    signal: signal.Signals
    point: str
    passing: int = 1


class Told:
    """What a process and whoever started it tell each other: files of one directory."""

    def __init__(self, directory: Path) -> None:
        self._order = directory / "order"
        self._runner = directory / "runner"
        self._struck = directory / "struck"

    def give(self, order: Order) -> None:
        """Order what is done at a point; whatever was done before is forgotten."""
        self._struck.unlink(missing_ok=True)
        _write(self._order, [order.signal.name, order.point, order.passing])

    def order(self) -> Order | None:
        """What is to be done."""
        text = _read(self._order)
        if not text:
            return None
        name, point, passing = json.loads(text)
        return Order(signal.Signals[name], point, passing)

    def strike(self, order: Order) -> None:
        """Do it, after it was told when."""
        self._order.unlink()
        _write(self._struck, time.time() * 1000)
        os.kill(os.getpid(), order.signal)

    def struck_at(self) -> int | None:
        """When the order was carried out, in ms."""
        text = _read(self._struck)
        return round(float(text)) if text else None

    def runs_as(self, runner: str) -> None:
        """Tell the id of the runner, which says that it is at work."""
        _write(self._runner, runner)

    def runner(self) -> str | None:
        """The id of the runner, once it is registered."""
        text = _read(self._runner)
        return json.loads(text) if text else None


def _write(path: Path, value: object) -> None:
    """Write a file that nobody ever sees in part."""
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(value))
    beside.replace(path)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


class Points:
    """The points of this process."""

    def __init__(self, told: Told) -> None:
        self.told = told
        self._passed: tuple[Order | None, int] = (None, 0)

    def reach(self, point: str) -> None:
        """Pass a point, or come no further."""
        order = self.told.order()
        if order is None or order.point != point:
            return
        before, times = self._passed
        times = times + 1 if order == before else 1
        self._passed = (order, times)
        if times >= order.passing:
            self.told.strike(order)


# The mark of an attempt, in its prompt and so in its answer.

_MARK = re.compile(r" #(\d+)/(\d+)$")


def marked(body: dict[str, Any], job_id: int, token: int) -> dict[str, Any]:
    """The body with the attempt's mark behind its last message."""
    *others, last = body["messages"]
    return {**body, "messages": [*others, {**last, "content": f"{last['content']} #{job_id}/{token}"}]}


def read_mark(text: str) -> tuple[str, tuple[int, int] | None]:
    """Take the mark off a prompt or an answer: the rest of it, and the job and token."""
    found = _MARK.search(text)
    if found is None:
        return text, None
    return text[: found.start()], (int(found[1]), int(found[2]))


# What is wrapped.


class DatabaseWithAPoint:
    """A database that passes a point at the end of a transaction, before its COMMIT, where there is one."""

    def __init__(self, database: Any, points: Points) -> None:
        self._wrapped = database
        self._points = points
        self._inside: str | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapped, name)

    @contextmanager
    def inside(self, point: str | None) -> Iterator[None]:
        """Have the writes of this block pass a point."""
        self._inside = point
        try:
            yield
        finally:
            self._inside = None

    async def write(self, body: Callable[[Any], T], **options: Any) -> T:
        if (point := self._inside) is None:
            return await self._wrapped.write(body, **options)

        def body_to_the_point(tx: Any) -> T:
            result = body(tx)
            self._points.reach(point)
            return result

        return await self._wrapped.write(body_to_the_point, **options)


def store_with_points(store_class: type, points: Points) -> type:
    """The class of stores that pass points."""

    class StoreWithPoints(store_class):
        rows_per_write = ROWS_PER_WRITE

        def __init__(self, database: Any) -> None:
            super().__init__(DatabaseWithAPoint(database, points))

        async def register(self, runner: Any) -> None:
            await super().register(runner)
            points.told.runs_as(runner.id)

        async def exchange(self, request: Any) -> Any:
            with self._database.inside(INSIDE_COMMIT if request.settlements else None):
                reply = await super().exchange(request)
            if request.settlements:
                points.reach(AFTER_COMMIT)
            if reply.claims:
                points.reach(AFTER_CLAIM)
            return reply

        async def add_jobs(self, *arguments: Any) -> Any:
            with self._database.inside(INSIDE_ADDING):
                added = await super().add_jobs(*arguments)
            points.reach(AFTER_ADDING)
            return added

        async def seal(self, batch: Any) -> None:
            points.reach(BEFORE_SEALING)
            await super().seal(batch)

    return StoreWithPoints


def execute_with_points(execute: Callable[..., Any], points: Points) -> Callable[..., Any]:
    """An executor whose calls are marked, and pass points."""

    async def execute_to_the_point(claim: Any, handler: Any, *rest: Any) -> Any:
        async def call(request: Any) -> Any:
            points.reach(BEFORE_CALL)
            halfway = asyncio.get_running_loop().call_later(DURING_SECONDS, points.reach, DURING_CALL)
            try:
                answer = await handler(replace(request, body=marked(request.body, claim.job_id, claim.token)))
            finally:
                halfway.cancel()
            points.reach(AFTER_ANSWER)
            return answer

        return await execute(claim, call, *rest)

    return execute_to_the_point


def main() -> None:
    """Be batchq, with points."""
    from batchq import cli, slots, store

    points = Points(Told(Path(os.environ[DIRECTORY])))
    store.Store = store_with_points(store.Store, points)
    slots.execute = execute_with_points(slots.execute, points)
    sys.argv[0] = "batchq"
    cli.main()


if __name__ == "__main__":
    main()
