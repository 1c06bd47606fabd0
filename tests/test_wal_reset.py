"""No checkpoint runs beside a writer: on the SQLite of most systems that loses what was committed.

sqlite.org/wal.html#walresetbug: 3.7.0 to 3.51.2, but for 3.44.6 and 3.50.7. What is done beside a checkpoint here is
done at the worst moment: when it has looked at the log, and not acted upon that.
"""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

import pytest
from sqlite_disk import watched_disk
from store_driver import Clock, Hand, check_tallies, done, fill, open_queue
from wal_soak import soak

from batchq.database.sqlite import checkpoint

pytestmark = pytest.mark.anyio


def is_affected(version: tuple[int, ...]) -> bool:
    if version[:2] in {(3, 44), (3, 50)}:
        return version < {(3, 44): (3, 44, 6), (3, 50): (3, 50, 7)}[version[:2]]
    return (3, 7, 0) <= version < (3, 51, 3)


def connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, timeout=0)
    connection.execute("PRAGMA wal_autocheckpoint=0")
    return connection


def insert(connection: sqlite3.Connection) -> int:
    """Commit a row; return how many were."""
    return connection.execute("INSERT INTO notes (note) VALUES (?)", ("x" * 3_000,)).rowcount


def is_whole(path: Path, rows: int) -> bool:
    with closing(connect(path)) as fresh:
        try:
            return fresh.execute("SELECT count(*) FROM notes").fetchone() == (rows,)
        except sqlite3.DatabaseError:
            return False


def test_without_discipline_an_affected_sqlite_loses_what_was_committed(path):
    with (
        watched_disk(path.parent) as disk,
        closing(connect(path)) as writer,
        closing(connect(path)) as first,
        closing(connect(path)) as second,
    ):
        writer.execute("PRAGMA journal_mode=WAL")
        writer.execute("CREATE TABLE notes (id INTEGER PRIMARY KEY, note)")
        first.execute("SELECT * FROM notes").fetchall()
        committed = sum(insert(writer) for _ in range(20))
        second.execute("PRAGMA wal_checkpoint(PASSIVE)")  # now a writer may begin the log anew

        def write_beside(kind: str, _name: str) -> int:
            nonlocal committed
            if kind == "unfetch":
                disk.fault = lambda _kind, _name: 0
                with suppress(sqlite3.OperationalError):  # a sound version may not let it in
                    committed += insert(writer)
            return 0

        disk.fault = write_beside
        first.execute("PRAGMA wal_checkpoint(PASSIVE)")
        assert disk.fault is not write_beside
        committed += sum(insert(writer) for _ in range(10))
        assert is_whole(path, committed) is not is_affected(sqlite3.sqlite_version_info)


async def test_no_writer_gets_in_between_while_the_log_is_folded_in(path, monkeypatch):
    monkeypatch.setattr(checkpoint, "CHECKPOINT_BYTES", 48 * 1024)
    tried = {"checkpoint": 0, "unfetch": 0, "write": 0}
    got_in = []

    def try_to_write(kind: str, name: str) -> int:
        if kind in tried and name == "queue.db":
            tried[kind] += 1
            disk.fault = lambda _kind, _name: 0
            with closing(connect(path)) as other:
                try:
                    other.execute("BEGIN IMMEDIATE")
                    got_in.append(kind)
                except sqlite3.OperationalError as error:
                    assert error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
            disk.fault = try_to_write
        return 0

    async def answer(hand: Hand) -> None:
        while claims := await hand.claim(2):
            await hand.settle(*(done(claim, "x" * 5_000) for claim in claims))

    with watched_disk(path.parent) as disk:
        async with await open_queue(path, Clock()) as one, await open_queue(path, Clock()) as other:
            batch = await fill(one, 60)
            disk.fault = try_to_write
            async with asyncio.TaskGroup() as group:
                for store in (one, other):
                    group.create_task(answer(Hand(store, f"runner {id(store)}")))
            disk.fault = lambda _kind, _name: 0
            await check_tallies(one, batch)
            assert (await one.progress("demo")).counts.done == 60
    assert tried["checkpoint"] >= 5
    assert tried["write"] >= 20
    assert got_in == []


def test_processes_that_all_write_and_fold_in_the_log_lose_nothing(path):
    found = soak(path, jobs=600, processes=2, seconds=1.5)
    assert found.wrong == ()
    assert found.reported >= 30
    assert found.checkpoints >= 5


def test_affected_versions():
    affected = [(3, 7, 0), (3, 40, 1), (3, 44, 5), (3, 46, 1), (3, 50, 6), (3, 51, 2)]
    sound = [(3, 6, 23), (3, 44, 6), (3, 50, 7), (3, 51, 3), (3, 54, 1)]
    assert all(map(is_affected, affected))
    assert not any(map(is_affected, sound))
