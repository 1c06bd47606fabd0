"""What PostgreSQL refuses, by its codes, and what it tells of commits and of the time: the server's own words."""

from __future__ import annotations

import asyncio
import re
import time
from contextlib import asynccontextmanager, closing

import anyio
import pytest
from raw_connection import connect
from sqlalchemy.exc import DBAPIError
from store_driver import fill, new_jobs, open_queue

from batchq.database.postgres import engine, listening, waiting
from batchq.errors import (
    ConfigurationError,
    DatabaseBusy,
    DatabaseUnavailable,
    DataRefused,
    NoDatabase,
    StoreError,
)
from batchq.jobs import NewBatch, NewJob
from batchq.store import open_store

pytestmark = pytest.mark.anyio


def refuse(code: str):
    """Return a body that has the server refuse with this code."""

    def body(transaction) -> None:
        transaction.connection.exec_driver_sql(
            f"DO $$ BEGIN RAISE EXCEPTION 'it says no' USING ERRCODE = '{code}', DETAIL = 'a prompt'; END $$"
        )

    return body


REFUSALS = {
    "08006": DatabaseUnavailable,
    "22003": DataRefused,
    "22021": DataRefused,
    "22P05": DataRefused,
    "23502": DataRefused,
    "23505": DataRefused,
    "23514": DataRefused,
    "25006": DatabaseUnavailable,
    "3F000": ConfigurationError,
    "42501": ConfigurationError,
    "42P01": NoDatabase,
    "53100": DatabaseUnavailable,
    "53200": DatabaseUnavailable,
    "53300": DatabaseUnavailable,
    "54000": DataRefused,
    "57014": DatabaseUnavailable,
    "57P01": DatabaseUnavailable,
    "57P03": DatabaseUnavailable,
    "58030": DatabaseUnavailable,
    "XX001": DatabaseUnavailable,
    "0A000": DBAPIError,
    "21000": DBAPIError,
    "42601": DBAPIError,
    "42703": DBAPIError,
}


@pytest.mark.parametrize("code", REFUSALS)
async def test_what_the_server_refuses_is_told_by_its_code(postgres_store, code):
    patience = 60.0 if REFUSALS[code] is ConfigurationError else None  # which it has no use for
    with anyio.fail_after(20), pytest.raises(REFUSALS[code]) as caught:
        await postgres_store._database.write(refuse(code), patience=patience)
    if REFUSALS[code] is not DBAPIError:
        assert "a prompt" not in str(caught.value)
        assert REFUSALS[code] is NoDatabase or "it says no" in str(caught.value)
    await postgres_store._database.write(lambda _transaction: None)


@pytest.mark.parametrize("code", ["40001", "40P01"])
async def test_what_lost_to_another_is_done_again_whole(postgres_store, code):
    tries = []

    def body(transaction) -> str:
        tries.append(transaction.now)
        transaction.connection.exec_driver_sql(f"INSERT INTO meta VALUES ('mark {len(tries)}', '')")
        if len(tries) < 3:
            refuse(code)(transaction)
        return "done"

    assert await postgres_store._database.write(body) == "done"
    with connect(postgres_store.location) as raw:
        assert raw.tuples("SELECT name FROM meta WHERE name LIKE 'mark%'") == [("mark 3",)]


async def test_what_loses_again_and_again_gives_up(postgres_store, monkeypatch):
    monkeypatch.setattr(waiting, "_CONFLICT_SECONDS", (0.0, 0.001))
    with pytest.raises(StoreError, match="in the way 21 times"):
        await postgres_store._database.write(refuse("40P01"))


# Locks of others


@asynccontextmanager
async def locked_out(queue, *, lock_timeout="200ms", **options):
    """A store whose writers wait for a lock that another session holds, and that session."""
    async with await open_store(f"{queue}?options=-clock_timeout%3D{lock_timeout}", **options) as store:
        with connect(queue) as other:
            await store.open_batch(NewBatch("demo", "echo"))
            other.lock_out_writers()
            yield store, other


def change(transaction) -> None:
    transaction.connection.exec_driver_sql("UPDATE batches SET priority = priority + 1")


DRIVERS = pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])


@DRIVERS
async def test_a_lock_is_waited_for_as_long_as_patience_allows(postgres_queue, driver):
    async with locked_out(postgres_queue.replace("psycopg", driver)) as (store, other):
        began = time.monotonic()
        with pytest.raises(DatabaseBusy, match=r"locked by others; waited 1 s"):
            await store._database.write(change, patience=1.0)
        assert 0.9 < time.monotonic() - began < 4
        writing = asyncio.create_task(store._database.write(change, patience=60.0))
        await asyncio.sleep(1)
        other.execute("ROLLBACK")
        await writing
        assert other.tuples("SELECT priority FROM batches") == [(1,)]


async def test_a_lock_is_waited_for_more_often_than_a_lost_race_is_repeated(postgres_queue):
    tries = []

    def counted(transaction) -> None:
        tries.append(transaction)
        change(transaction)

    async with locked_out(postgres_queue, lock_timeout="10ms") as (store, other):
        writing = asyncio.create_task(store._database.write(counted, patience=60.0))
        with anyio.fail_after(30):
            while len(tries) < 25:
                await anyio.sleep(0.05)
        other.execute("ROLLBACK")
        await writing


@DRIVERS
async def test_who_has_no_patience_hears_of_a_lock_at_once(postgres_queue, driver):
    async with locked_out(postgres_queue.replace("psycopg", driver)) as (store, _):
        for impatient in ({}, {"patience": 0}):
            began = time.monotonic()
            with pytest.raises(DatabaseUnavailable, match="locked by others"):
                await store._database.write(change, **impatient)
            assert time.monotonic() - began < 2


async def test_a_long_wait_for_a_lock_is_told_once(postgres_queue, monkeypatch):
    monkeypatch.setattr(waiting, "_LONG_SECONDS", 0.5)
    heard = []
    async with locked_out(postgres_queue, on_locked=heard.append) as (store, other):
        writing = asyncio.create_task(store._database.write(change, patience=60.0))
        await asyncio.sleep(0.3)
        assert heard == []
        await asyncio.sleep(2)
        other.execute("ROLLBACK")
        await writing
    assert heard == [f"{store._database.location} is locked by others; waiting for it"]


async def test_a_reader_that_meets_a_lock_waits_as_for_a_server(postgres_queue):
    async with await open_store(f"{postgres_queue}?options=-clock_timeout%3D100ms") as store:
        with connect(postgres_queue) as other:
            other.execute("BEGIN")
            other.execute("LOCK TABLE batches IN ACCESS EXCLUSIVE MODE")
            reading = asyncio.create_task(store.batches())
            await asyncio.sleep(1)
            assert not reading.done()
            with pytest.raises(DatabaseUnavailable, match="locked by others"):
                body = lambda tx: tx.connection.exec_driver_sql("SELECT count(*) FROM batches").scalar_one()  # noqa: E731
                await store._database.read(body, patience=0)
            other.execute("ROLLBACK")
            assert await reading == []


def test_nobody_waits_for_a_lock_without_being_told():
    assert float(engine.SESSION["lock_timeout"].removesuffix("s")) <= waiting._LONG_SECONDS


async def test_a_refused_chunk_tells_nothing_of_its_rows(postgres_store):
    batch = await postgres_store.open_batch(NewBatch("demo", "echo"))
    with pytest.raises(DataRefused) as caught:
        await postgres_store.add_jobs(batch, [NewJob(0, "same", "key", '"a prompt"'), NewJob(1, "same", "key", '"b"')])
    assert re.search("same|prompt", str(caught.value)) is None


async def test_a_text_that_no_column_holds_is_refused_as_data(postgres_store):
    batch = await postgres_store.open_batch(NewBatch("demo", "echo"))
    for custom_id in ("with NUL \0", "half \ud800"):
        with pytest.raises(DataRefused):
            await postgres_store.add_jobs(batch, [NewJob(0, custom_id, "key", '"x"')])
    assert (await postgres_store.add_jobs(batch, new_jobs(1))).jobs == 1


async def test_a_commit_is_as_durable_as_the_server_makes_it(postgres_store):
    def set_by(transaction) -> str:
        named = "SELECT source FROM pg_settings WHERE name = 'synchronous_commit'"
        return transaction.connection.exec_driver_sql(named).scalar_one()

    assert await postgres_store._database.write(set_by) in {"default", "configuration file", "command line"}


# Commits of others


async def until_changed(watcher, seconds: float = 5.0) -> float:
    began = time.monotonic()
    with anyio.fail_after(seconds):
        while not watcher.changed():
            await anyio.sleep(0.005)
    return time.monotonic() - began


async def test_what_others_enqueue_is_noticed_at_once(postgres_store, postgres_queue, clock, monkeypatch):
    monkeypatch.setattr(listening, "POLL_SECONDS", 60.0)
    async with await open_queue(postgres_queue, clock) as other:
        with closing(postgres_store.watch()) as watcher, closing(postgres_store.watch()) as second:
            await until_changed(watcher)  # it listens from now on
            second.changed()
            assert not watcher.changed()
            await fill(other, 1)
            assert await until_changed(watcher) < 2
            assert second.changed(), "another watcher took its news"
            await anyio.sleep(0.3)
            watcher.changed()
            await fill(postgres_store, 1, "own")
            assert watcher.changed()


async def test_what_nobody_announces_is_noticed_by_a_look_every_second(postgres_store):
    with closing(postgres_store.watch()) as watcher:
        await until_changed(watcher)
        assert 0.5 < await until_changed(watcher) < 3
