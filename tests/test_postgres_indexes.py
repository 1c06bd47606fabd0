"""Several processes that want the same index: one makes it, the others wait until it is there."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack

import pytest
from raw_connection import connect

from batchq.database.postgres import indexes
from batchq.errors import DatabaseBusy
from batchq.jobs import Reuse
from batchq.schema import ENDED_KEY
from batchq.store import open_store

pytestmark = pytest.mark.anyio

MAKERS = 4
DEADLINE = 30.0
MAKING = (
    "SELECT query FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    " AND state <> 'idle' AND (query LIKE 'CREATE INDEX%' OR query LIKE 'DROP INDEX%')"
)
INDEX = "SELECT indexrelid AS oid, indisvalid FROM pg_index WHERE indexrelid = to_regclass('job_ended_key')"
HOLDERS = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"


@pytest.fixture(params=["psycopg", "asyncpg"])
def queue(request, postgres_queue):
    return postgres_queue.replace("psycopg", request.param)


async def stores(stack, url, count=MAKERS, **options):
    return [await stack.enter_async_context(await open_store(url, **options)) for _ in range(count)]


async def until(condition):
    end = time.monotonic() + DEADLINE
    while not (found := condition()):
        assert time.monotonic() < end
        await asyncio.sleep(0.02)
    return found


def timeouts(transaction):
    asked = "SELECT current_setting('lock_timeout') || current_setting('statement_timeout')"
    return transaction.connection.exec_driver_sql(asked).scalar_one()


async def test_one_of_several_makes_an_index_and_the_others_wait_for_it(queue):
    async with AsyncExitStack() as stack:
        makers = await stores(stack, queue)
        raw = stack.enter_context(connect(queue))
        with connect(queue) as writer:
            writer.execute("BEGIN")
            writer.execute("LOCK TABLE jobs IN ROW EXCLUSIVE MODE")  # CONCURRENTLY waits for it
            making = [asyncio.create_task(store._prepare_reuse(Reuse())) for store in makers]
            await until(lambda: raw.execute(INDEX))
            (found,) = raw.execute(INDEX)
            assert not found["indisvalid"]
            for _ in range(20):
                await asyncio.sleep(0.05)
                (statement,) = (row["query"] for row in raw.execute(MAKING))
                assert statement.startswith("CREATE INDEX CONCURRENTLY")
            assert not any(task.done() for task in making)
            writer.execute("COMMIT")
        began = time.monotonic()
        await asyncio.gather(*making)
        assert time.monotonic() - began < 5
        assert raw.execute(INDEX) == [{"oid": found["oid"], "indisvalid": True}]
        assert raw.execute(HOLDERS) == []
        # Nobody is left with a session that has no timeouts.
        assert [await store._database.read(timeouts) for store in makers] == ["5s24s"] * MAKERS


async def test_what_was_left_half_made_is_made_anew(queue):
    async with AsyncExitStack() as stack:
        (store,) = await stores(stack, queue, 1)
        raw = stack.enter_context(connect(queue))
        await store._database.make_index(ENDED_KEY)
        (old,) = raw.execute(INDEX)
        await store._database.make_index(ENDED_KEY)
        assert raw.execute(INDEX) == [old]
        raw.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'job_ended_key'::regclass")
        await store._database.make_index(ENDED_KEY)
        (new,) = raw.execute(INDEX)
        assert new["indisvalid"]
        assert new["oid"] != old["oid"]


async def test_who_is_killed_while_he_makes_an_index_leaves_it_to_whoever_waits(queue):
    async with AsyncExitStack() as stack:
        makers = await stores(stack, queue, 2)
        raw = stack.enter_context(connect(queue))
        with connect(queue) as writer:
            writer.execute("BEGIN")
            writer.execute("LOCK TABLE jobs IN ROW EXCLUSIVE MODE")
            making = [asyncio.create_task(store._prepare_reuse(Reuse())) for store in makers]
            await until(lambda: raw.execute(INDEX))
            for row in raw.execute(HOLDERS):
                raw.execute("SELECT pg_terminate_backend(?)", (row["pid"],))
            writer.execute("COMMIT")
        await asyncio.gather(*making)
        (found,) = raw.execute(INDEX)
        assert found["indisvalid"]


async def test_a_long_wait_for_the_one_who_makes_an_index_is_told_once(queue, monkeypatch):
    monkeypatch.setattr(indexes, "LONG_SECONDS", 0.2)
    monkeypatch.setattr(indexes, "_POLL_SECONDS", 0.05)
    heard = []
    async with AsyncExitStack() as stack:
        (store,) = await stores(stack, queue, 1, on_locked=heard.append)
        with connect(queue) as other:
            other.execute("SELECT pg_advisory_lock(?)", (indexes.LOCK,))
            making = asyncio.create_task(store._prepare_reuse(Reuse()))
            await asyncio.sleep(1)
            assert len(heard) == 1
            assert "index" in heard[0]
            assert not making.done()
        await making


async def test_behind_a_pooler_it_is_made_in_one_transaction_by_one_of_several(queue):
    heard = []
    async with AsyncExitStack() as stack:
        makers = await stores(stack, queue, on_locked=heard.append)
        for store in makers:
            await store._database._do_without_sessions()
        raw = stack.enter_context(connect(queue))
        with connect(queue) as reader:
            reader.execute("BEGIN")
            reader.execute("LOCK TABLE jobs IN ROW EXCLUSIVE MODE")
            making = [asyncio.create_task(store._prepare_reuse(Reuse())) for store in makers]
            await until(lambda: raw.execute(MAKING))
            for _ in range(10):
                await asyncio.sleep(0.05)
                (statement,) = (row["query"] for row in raw.execute(MAKING))
                assert "CONCURRENTLY" not in statement
                assert len(raw.execute(HOLDERS)) == 1
            reader.execute("COMMIT")
        await asyncio.gather(*making)
        (made,) = raw.execute(INDEX)
        assert made["indisvalid"]
        raw.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'job_ended_key'::regclass")
        await makers[0]._database.make_index(ENDED_KEY)
        (new,) = raw.execute(INDEX)
        assert new["indisvalid"]
        assert new["oid"] != made["oid"]
        assert raw.execute(HOLDERS) == []


async def test_behind_a_pooler_nobody_is_held_up_for_long_by_who_waits_to_make_it(queue, monkeypatch):
    monkeypatch.setattr("batchq.database.postgres._INDEX_PATIENCE", 1.0)
    monkeypatch.setitem(indexes.SESSION, "lock_timeout", "200ms")
    async with AsyncExitStack() as stack:
        (store,) = await stores(stack, queue, 1)
        await store._database._do_without_sessions()
        with connect(queue) as writer:
            writer.execute("BEGIN")
            writer.execute("LOCK TABLE jobs IN ROW EXCLUSIVE MODE")
            began = time.monotonic()
            with pytest.raises(DatabaseBusy, match="waited 1 s"):
                await store._prepare_reuse(Reuse())
            assert 0.9 < time.monotonic() - began < 5
            writer.execute("COMMIT")
        await store._prepare_reuse(Reuse())
