"""A process's connections: how many there are, what their sessions are told, and when a silent one is cut."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager

import pytest
from raw_connection import connect
from store_driver import new_jobs
from tcp_proxy import tcp_proxy

from batchq.database.postgres import engine, silence
from batchq.errors import DatabaseUnavailable
from batchq.jobs import NewBatch, NewJob, Reuse
from batchq.store import open_store

pytestmark = pytest.mark.anyio

DRIVERS = ["psycopg", "asyncpg"]
MINE = (
    "SELECT count(*) AS count FROM pg_stat_activity"
    " WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
)


@pytest.fixture(params=DRIVERS)
def queue(request, postgres_queue):
    return postgres_queue.replace("psycopg", request.param)


def asked(statement):
    return lambda tx: tx.connection.exec_driver_sql(statement).scalar_one()


async def shown(store, name):
    return await store._database.read(asked(f"SHOW {name}"))


# What sessions are told.


async def test_options_of_the_url_add_to_our_own(queue):
    with connect(queue) as raw:
        raw.execute("CREATE SCHEMA bq")
    url = f"{queue}?options=-csearch_path%3Dbq"
    async with await open_store(url, create=True) as store:
        for name, value in engine.SESSION.items():
            assert await shown(store, name) == value
        assert await shown(store, "search_path") == "bq"
        await store.open_batch(NewBatch("b", "echo"))
        watcher = store.watch()
        await asyncio.sleep(0.3)
        watcher.close()
        with connect(queue) as raw:
            assert raw.tuples("SELECT name FROM bq.batches") == [("b",)]
            assert raw.tuples("SELECT count(*) FROM public.batches") == [(0,)]
            told = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND datname = current_database()"
            assert raw.tuples(told) == [(1,)]
    assert store._database.location == url


async def test_what_the_url_says_itself_counts(queue):
    several = f"{queue}?options=-c%20statement_timeout%3D7s&options=-cjit%3Don"
    async with await open_store(several) as store:
        found = [await shown(store, name) for name in ("statement_timeout", "jit", "lock_timeout")]
    assert found == ["7s", "on", engine.SESSION["lock_timeout"]]


async def test_what_the_environment_says_of_options_counts_too(queue, monkeypatch):
    monkeypatch.setenv("PGOPTIONS", "-c work_mem=5MB")
    async with await open_store(queue) as store:
        assert await shown(store, "work_mem") == "5MB"
        assert await shown(store, "statement_timeout") == engine.SESSION["statement_timeout"]


# How many there are.


async def test_a_process_holds_three_connections_at_most_however_much_it_does_at_once(queue):
    async with await open_store(queue) as store:
        watcher = store.watch()
        batch = await store.open_batch(NewBatch("b", "echo"))
        with connect(queue) as raw:
            busy = [store.batches() for _ in range(10)] + [store.keep_alive(batch) for _ in range(10)]
            busy += [store._prepare_reuse(Reuse()), store._database.read(asked("SELECT pg_sleep(0.3)::text"))]
            working = asyncio.gather(*map(asyncio.ensure_future, busy))
            most = 0
            while not working.done():
                most = max(most, raw.execute(MINE)[0]["count"])
                await asyncio.sleep(0.02)
            await working
        watcher.close()
    assert 2 <= most <= 3


# When they are cut.


async def test_a_transaction_that_goes_on_is_not_cut_however_long_it_takes(queue, monkeypatch):
    async with await open_store(queue) as store:
        monkeypatch.setattr(silence, "SILENCE_SECONDS", 1.0)

        def body(tx):
            for _ in range(4):
                tx.connection.exec_driver_sql("SELECT pg_sleep(0.5)")
            return tx.connection.exec_driver_sql("SELECT 1").scalar_one()

        assert await store._database.write(body) == 1
        with pytest.raises(DatabaseUnavailable):
            await store._database.write(asked("SELECT pg_sleep(30)::text"))


@asynccontextmanager
async def slow_link(queue):
    """A proxy before the server, and the queue's URL there."""
    with connect(queue) as raw, tcp_proxy(int(raw.execute("SHOW port")[0]["port"])) as proxy:
        before, _, after = queue.rpartition("/")
        yield proxy, f"{before.rpartition(':')[0]}:{proxy.port}/{after}"


def big_rows(count):
    text = '"' + "x" * (3_000_000 // count) + '"'
    return [NewJob(number, str(number), str(number), text) for number in range(count)]


@pytest.mark.parametrize("rows", [200, 1], ids=["many rows", "one row"])
async def test_rows_on_their_way_are_not_cut_while_they_move(queue, monkeypatch, rows):
    async with (
        slow_link(queue) as (proxy, url),
        await open_store(f"{url}?options=-c%20statement_timeout%3D1s") as store,
    ):
        batch = await store.open_batch(NewBatch("b", "echo"))
        monkeypatch.setattr(silence, "SILENCE_SECONDS", 1.0)
        proxy.delay = 0.05  # for each 64 kB
        began = time.monotonic()
        assert (await store.add_jobs(batch, big_rows(rows))).jobs == rows
        assert time.monotonic() - began > 1.5
        proxy.delay = 0.0
        assert await shown(store, "statement_timeout") == "1s"
        await store.add_jobs(batch, new_jobs(3, start=rows))


async def test_a_copy_that_nobody_takes_in_is_cut(queue, monkeypatch):
    async with slow_link(queue) as (proxy, url), await open_store(url) as store:
        batch = await store.open_batch(NewBatch("b", "echo"))
        monkeypatch.setattr(silence, "SILENCE_SECONDS", 1.0)
        monkeypatch.setattr("batchq.store.OPERATOR_PATIENCE", 0.0)
        proxy.delay = 0.05
        adding = asyncio.create_task(store.add_jobs(batch, big_rows(200)))
        await asyncio.sleep(0.7)
        proxy.go_silent("up", "down")
        began = time.monotonic()
        with pytest.raises(DatabaseUnavailable):
            await adding
        # What the proxy still takes in counts as a move.
        assert time.monotonic() - began < 8


async def test_who_has_stood_still_himself_reads_first_what_has_come_meanwhile(queue, monkeypatch):
    async with await open_store(queue) as store:
        monkeypatch.setattr(silence, "SILENCE_SECONDS", 0.5)
        asking = asyncio.create_task(store._database.write(asked("SELECT pg_sleep(0.2)::text")))
        await asyncio.sleep(0.1)
        time.sleep(1.5)  # as a process that was stopped, or a machine that slept
        await asking
