"""The disk refuses a write, a sync or a read at any moment: nothing is lost, doubled or charged, and the work goes on."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from sqlite_disk import watched_disk
from store_driver import SERVING, Clock, Hand, answered, check_tallies, done, fill, make_tables, open_queue

from batchq import conversation
from batchq.conversation import Conversation
from batchq.database.sqlite import checkpoint
from batchq.errors import DatabaseUnavailable
from batchq.jobs import Ended, Held, Succeeded, Wants
from batchq.request import encode

JOBS = 5
IOERR = sqlite3.SQLITE_IOERR
# What each kind of access may be refused with.
REFUSALS = {
    "write": (sqlite3.SQLITE_FULL, IOERR | 3 << 8),
    "sync": (IOERR | 4 << 8,),
    "truncate": (IOERR | 6 << 8,),
    "read": (IOERR | 1 << 8,),
    "open": (sqlite3.SQLITE_CANTOPEN,),
    "delete": (IOERR | 10 << 8,),
}
# So that the suite is soon over.
STRIDES = {"write": 7, "read": 13, "open": 2}


class BadDisk:
    """Refuses the n-th access of a kind, and the two behind it."""

    def __init__(self, kind: str, number: int, code: int) -> None:
        self._kind, self._number, self._code = kind, number, code
        self.seen = 0

    def __call__(self, kind: str, _name: str) -> int:
        self.seen += kind == self._kind
        return self._code if kind == self._kind and 0 <= self.seen - 1 - self._number < 3 else 0


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    monkeypatch.setattr(conversation, "_FIRST_DELAY", 0.001)
    monkeypatch.setattr(conversation, "_LAST_DELAY", 0.01)
    monkeypatch.setattr(checkpoint, "CHECKPOINT_BYTES", 48 * 1024)


@pytest.fixture(scope="module")
def empty_queue(tmp_path_factory):
    path = tmp_path_factory.mktemp("empty") / "queue.db"
    asyncio.run(make_tables(str(path)))
    return path


async def work(path: Path) -> None:
    """Enqueue and answer jobs; a command that is refused is run again, as its message says, and a runner waits."""
    async with await again(lambda: open_queue(path, Clock())) as store:
        await again(lambda: fill(store, JOBS))
        hand = Hand(store)
        speaker = Conversation(store, hand.runner, lambda: 0, lambda: None)
        await speaker.register()
        ended: list[Ended] = []
        while True:
            held = [Held(item.claim.job_id, item.claim.token, renew=False) for item in ended]
            reply = await speaker.exchange(ended, held, Wants(2, SERVING))
            ended = [
                Ended(claim, Succeeded(answered(encode("x" * 9_000 + str(claim.position)))), 5)
                for claim in reply.claims
            ]
            if not ended:
                break


async def check_counts(path: Path) -> None:
    async with await open_queue(path, Clock()) as store:
        await check_tallies(store, await store.batch("demo"))


async def again(action):
    for _ in range(20):
        try:
            return await action()
        except DatabaseUnavailable:
            continue
    raise AssertionError("it never went on")


def run_on(path: Path, kind: str, number: int, code: int) -> BadDisk:
    bad = BadDisk(kind, number, code)
    with watched_disk(path.parent) as disk:
        disk.fault = bad
        asyncio.run(work(path))
    asyncio.run(check_counts(path))
    with closing(sqlite3.connect(path)) as connection:
        ask = connection.execute
        assert ask("PRAGMA integrity_check").fetchall() == [("ok",)]
        found = ask("SELECT position, state, attempts, substr(result, 9002) FROM jobs ORDER BY 1").fetchall()
        assert found == [(position, "done", 1, f'{position}"') for position in range(JOBS)]
        assert ask("SELECT outcome, charged, late, count(*) FROM attempts GROUP BY 1, 2, 3").fetchall() == [
            ("succeeded", 1, 0, JOBS)
        ]
    return bad


def stride(kind: str) -> int:
    """How many accesses to go on to the next one: by one if the environment has EVERY_ACCESS."""
    return 1 if os.environ.get("EVERY_ACCESS") else STRIDES.get(kind, 1)


@pytest.mark.parametrize("kind", REFUSALS)
def test_a_disk_that_refuses_for_a_while_costs_nothing(empty_queue, tmp_path, kind):
    path = tmp_path / "queue.db"
    number, refused = 0, 0
    while True:
        for file in tmp_path.iterdir():
            file.unlink()
        shutil.copy(empty_queue, path)
        codes = REFUSALS[kind]
        bad = run_on(path, kind, number, codes[refused % len(codes)])
        if bad.seen <= number:
            break
        number, refused = number + stride(kind), refused + 1
    assert refused > 0


@pytest.mark.anyio
async def test_what_can_not_be_folded_in_stays_in_the_log_until_it_can(tmp_path):
    """The log has room and the file has none: commits go on, and a later checkpoint does what these could not."""
    path = tmp_path / "queue.db"
    with watched_disk(tmp_path) as disk:
        async with await open_queue(path, Clock()) as store:
            batch = await fill(store, 40)
            hand, refused = Hand(store), []

            def refuse(kind: str, name: str) -> int:
                is_file = (kind, name) == ("write", "queue.db")
                refused.extend([name] * is_file)
                return sqlite3.SQLITE_FULL if is_file else 0

            disk.fault = refuse
            size = path.stat().st_size
            for _ in range(10):
                await hand.settle(*(done(claim, "x" * 9_000) for claim in await hand.claim(2)))
            assert refused
            assert path.stat().st_size <= size + 4096
            disk.fault = lambda _kind, _name: 0
            while claims := await hand.claim(2):
                await hand.settle(*(done(claim, "x" * 9_000) for claim in claims))
            assert path.stat().st_size > 40 * 9_000
            assert (await store.progress("demo")).counts.done == 40
            await check_tallies(store, batch)
