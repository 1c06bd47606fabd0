"""What PostgreSQL refuses, by its codes, and what it tells of commits and of the time: the server's own words."""

from __future__ import annotations

import re
import time
from contextlib import closing

import anyio
import pytest
from raw_connection import connect
from sqlalchemy.exc import DBAPIError
from store_driver import fill, new_jobs, open_queue

from batchq.database import postgres
from batchq.errors import DatabaseUnavailable, DataRefused, NoDatabase, StoreError
from batchq.jobs import NewBatch, NewJob

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
    "42501": DatabaseUnavailable,
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
    with pytest.raises(REFUSALS[code]) as caught:
        await postgres_store._database.write(refuse(code))
    if REFUSALS[code] is not DBAPIError:
        assert "a prompt" not in str(caught.value)
        assert REFUSALS[code] is NoDatabase or "it says no" in str(caught.value)
    await postgres_store._database.write(lambda _transaction: None)


@pytest.mark.parametrize("code", ["40001", "40P01", "55P03"])
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
    monkeypatch.setattr(postgres, "_CONFLICT_SECONDS", (0.0, 0.001))
    with pytest.raises(StoreError, match="in the way 21 times"):
        await postgres_store._database.write(refuse("40P01"))


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
    monkeypatch.setattr(postgres.listening, "POLL_SECONDS", 60.0)
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
