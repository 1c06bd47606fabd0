"""What another transaction does between two statements of one: on PostgreSQL, where more than one writes at a time."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import contextmanager

import psycopg
import pytest
from sqlalchemy import event
from store_driver import SERVING, Hand, done, fill, new_jobs, rows

from batchq.errors import BatchConflict
from batchq.jobs import BatchState, FinishedPlace, NewBatch, Reuse
from batchq.pacing import Limits
from batchq.store import open_store, operate
from batchq.store.find import lane_name
from batchq.store.lanes import LaneBook

pytestmark = pytest.mark.anyio
LEASE_MS = 1_000
BASE_URL = SERVING[0].base_url


@pytest.fixture
async def store(postgres_url):
    async with await open_store(postgres_url, create=True) as opened:
        yield opened


@pytest.fixture
def other(postgres_url):
    """Another transaction, open until it commits."""
    with psycopg.connect(postgres_url.replace("+psycopg", "")) as connection:
        yield connection


async def waits_for_a_lock(other, task) -> None:
    """Wait until somebody stands behind the other transaction."""
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
    with psycopg.connect(other.info.dsn, autocommit=True) as looker:
        for _ in range(1_000):
            if looker.execute(waiting).fetchone()[0]:
                return
            assert not task.done(), "it did not wait"
            await asyncio.sleep(0.01)
    raise AssertionError("waited in vain for a lock to be waited for")


async def meanwhile(other, work, sql: str, hold_seconds: float = 0.0):
    """Let `work` wait for what the other transaction has changed; return what it says after the commit."""
    other.execute(sql)
    task = asyncio.create_task(work)
    await waits_for_a_lock(other, task)
    await asyncio.sleep(hold_seconds)
    other.commit()
    return await task


@contextmanager
def before(store, beginning: str, act):
    """Call `act` once, before the first statement that begins so."""
    engine = store._database._engine.sync_engine
    called = []

    def intervene(_connection, _cursor, statement, *_rest) -> None:
        if statement.startswith(beginning) and not called:
            called.append(statement)
            act()

    event.listen(engine, "before_cursor_execute", intervene)
    try:
        yield called
    finally:
        event.remove(engine, "before_cursor_execute", intervene)


NEWS = {
    "a halt": "halted_at = 1, probe_at = 9000000000000, ready_at = 9000000000000, epoch = epoch + 1",
    "a pause": "paused_until = 9000000000000, ready_at = 9000000000000, epoch = epoch + 1",
}


@pytest.mark.parametrize("news", NEWS)
async def test_news_of_a_lane_hold_for_a_claim_that_waited_for_them(store, other, news):
    await fill(store, 20)
    await store.set_limits("echo", BASE_URL, "", Limits(max_inflight=100))
    hand = Hand(store)
    reply = await meanwhile(other, hand.send(hand.request(slots=16)), f"UPDATE lanes SET {NEWS[news]}")
    assert reply.claims == ()


async def test_of_two_that_wait_for_a_halted_lane_one_probes_it(store, other):
    await fill(store, 20)
    await store.set_limits("echo", BASE_URL, "", Limits(max_inflight=100))
    rows(store, "UPDATE lanes SET halted_at = 1, probe_at = 1, ready_at = 1")
    first, second = Hand(store, "a"), Hand(store, "b")
    both = asyncio.gather(*(hand.send(hand.request(slots=16)) for hand in (first, second)))

    async def wait():
        return await both

    replies = await meanwhile(other, wait(), "SELECT 1 FROM lanes FOR UPDATE")
    assert sorted(len(reply.claims) for reply in replies) == [0, 1]


async def test_a_lease_begins_when_the_waiting_is_over(store, other):
    await fill(store, 4)
    await store.set_limits("echo", BASE_URL, "", Limits(max_inflight=4))
    hand = Hand(store, lease_ms=LEASE_MS)
    await meanwhile(other, hand.claim(4), "SELECT 1 FROM lanes FOR UPDATE", hold_seconds=1.5 * LEASE_MS / 1000)
    assert len(hand.held) == 4
    assert await Hand(store, "thief").claim(4) == ()


async def test_a_cancel_leaves_a_batch_alone_that_is_revived_meanwhile(store, other):
    batch = await fill(store, 5)
    rows(store, "UPDATE batches SET state = 'cancelled'")
    moved = await meanwhile(
        other, store._write(lambda tx: operate.cancel_chunk(tx, batch.id)), "UPDATE batches SET state = 'open'"
    )
    assert moved == (0, False)
    assert (await store.progress("demo")).counts.pending == 5


async def test_a_batch_that_is_purged_meanwhile_is_not_opened(store, other):
    await fill(store, 5)
    with pytest.raises(BatchConflict, match="purged"):
        await meanwhile(other, store.open_batch(NewBatch("demo", "echo")), "UPDATE batches SET state = 'purging'")


async def test_a_batch_that_is_deleted_meanwhile_is_made_anew(store, other):
    old = await store.open_batch(NewBatch("demo", "echo"))
    new = await meanwhile(other, store.open_batch(NewBatch("demo", "echo")), "DELETE FROM batches")
    assert (new.id > old.id, new.state) == (True, BatchState.OPEN)


GONE = {"purged": "DELETE FROM jobs WHERE batch_id = 1", "sent back": "UPDATE jobs SET state = 'pending', result = NULL, "
        "finished_at = NULL, attempts = 0 WHERE batch_id = 1"}  # fmt: skip


@pytest.mark.parametrize("fate", GONE)
async def test_an_answer_that_is_gone_before_it_is_reused_is_asked_for(store, other, fate):
    await fill(store, 3)
    hand = Hand(store)
    claims = await hand.claim(3)
    await hand.settle(*(done(claim) for claim in claims))
    batch = await store.open_batch(NewBatch("again", "echo"))

    def take_away() -> None:
        other.execute(GONE[fate])
        other.commit()

    with before(store, "WITH copied", take_away) as happened:
        added = await store.add_jobs(batch, new_jobs(3), Reuse())
    assert happened
    assert (added.jobs, added.reused) == (3, 0)
    counts = (await store.progress("again")).counts
    assert (counts.pending, counts.done) == (3, 0)
    assert await store.recount(batch) == {"pending": 3}


async def test_what_another_is_committing_is_not_passed_over_by_who_follows_a_batch(store, other):
    batch = await fill(store, 2)
    hand = Hand(store)
    first, second = await hand.claim(2)
    ending = "UPDATE jobs SET state = 'done', result = '1', finished_at = {} WHERE id = %s"
    before_it = "(EXTRACT(EPOCH FROM clock_timestamp()) * 1000)::bigint"
    other.execute(ending.format(before_it), (first.job_id,))
    await hand.settle(done(second))
    page = await store.finished(batch, FinishedPlace(), running=True)
    other.commit()
    found = list(page.results)
    for _ in range(300):
        page = await store.finished(batch, page.place, running=True)
        found += page.results
        if len(found) == 2:
            break
        await asyncio.sleep(0.01)
    assert [result.position for result in found] == [0, 1]


async def test_lanes_are_locked_in_one_order_whatever_the_language_of_the_database(postgres, postgres_connection):
    """Names in capital and small letters: bytes and English order them the other way round."""
    name = f"english_{uuid.uuid4().hex}"
    postgres_connection.execute(
        f"CREATE DATABASE {name} TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'en-US' LOCALE 'C.UTF-8'"
    )
    models = ("openai/x", "Qwen/x")
    try:
        async with await open_store(postgres.url(name), create=True) as store:
            for model in models:
                await store.set_limits("echo", BASE_URL, model, Limits(max_inflight=1))
            assert [
                row["name"].rpartition(" ")[2] for row in rows(store, "SELECT name FROM lanes ORDER BY name")
            ] == list(models)
            locked = await store._database.write(names_as_locked)
            assert locked == sorted(locked)
    finally:
        postgres.drop_database(name)


def names_as_locked(tx) -> list[str]:
    book = LaneBook(tx)
    book.read([lane_name("echo", BASE_URL, model) for model in ("openai/x", "Qwen/x")])
    return list(book._states)


async def test_of_two_that_settle_at_once_the_second_claims_by_the_costs_of_both(store, other):
    await fill(store, 100, budget=1_000)
    hand, beside = Hand(store), Hand(store, "beside")
    first, *rest = await hand.claim(3)
    await hand.settle(done(first, cost=1), *map(done, rest))
    held = await beside.claim(8)

    def settle() -> None:
        other.execute("UPDATE tallies SET cost = 1000 WHERE cost > 0")
        other.commit()

    with before(store, "SELECT batches.id \nFROM batches", settle) as called:
        assert (len(held), await hand.claim(8), len(called)) == (8, (), 1)


async def test_who_meets_another_at_the_budget_of_a_batch_claims_nothing_and_looks_again_soon(store, other):
    await fill(store, 100, budget=1_000)
    hand = Hand(store)
    first, *_ = await hand.claim(3)
    await hand.settle(done(first, cost=1))
    other.execute("SELECT 1 FROM batches FOR NO KEY UPDATE")
    reply = await hand.send(hand.request(slots=8))
    assert (reply.claims, reply.wake_in_ms) == ((), 100)
    other.commit()
    assert len(await hand.claim(8)) == 8
