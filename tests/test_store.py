"""The contract of the store: what DESIGN 2 and 5 promise, on real files and on a real PostgreSQL."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import sqlite3
import threading
import time
from collections import Counter
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import anyio
import pytest
from raw_connection import INTEGRITY_ERRORS, connect
from sqlalchemy.exc import DBAPIError
from store_driver import (
    LEASE_MS,
    SERVING,
    Clock,
    Hand,
    check_tallies,
    done,
    failed,
    fill,
    halt,
    halted,
    identity,
    job_row,
    log_of,
    new_jobs,
    open_at_once,
    open_queue,
    positions,
    released,
    retry,
    rows,
    states,
    throttled,
)

from batchq.database import sqlite as database
from batchq.database.sqlite import checkpoint
from batchq.errors import (
    BatchConflict,
    ConfigurationError,
    DatabaseBusy,
    DatabaseUnavailable,
    DataRefused,
    NoDatabase,
    NotABatchqDatabase,
    SchemaMismatch,
    UnknownBatch,
)
from batchq.jobs import (
    BatchState,
    Claim,
    Ended,
    Failed,
    FinishedPlace,
    JobState,
    NewBatch,
    NewJob,
    Reason,
    Serving,
    Usage,
)
from batchq.request import encode
from batchq.schema import SCHEMA_VERSION
from batchq.settlement import Settlement, settle
from batchq.store import Store, open_store, operate

pytestmark = pytest.mark.anyio


async def drain(hand: Hand, slots: int = 16) -> list[Claim]:
    """Answer until nothing is due; return the claims in their order."""
    taken: list[Claim] = []
    while claims := await hand.claim(slots):
        taken += claims
        await hand.settle(*map(done, claims))
    return taken


# Claims


async def test_two_claimers_never_get_one_job(store, location, clock):
    await fill(store, 20)
    async with await open_queue(location, clock) as other:
        first = await Hand(store, "a").claim(12)
        second = await Hand(other, "b").claim(12)
    assert len(first) == 12
    assert sorted(positions(first + second)) == list(range(20))


async def test_concurrent_exchanges_claim_each_job_once(store, location, clock):
    batch = await fill(store, 300)
    async with await open_queue(location, clock) as other:
        hands = [Hand((store, other)[index % 2], f"runner-{index}") for index in range(8)]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(drain(hand, 7)) for hand in hands]
    assert sorted(claim.position for task in tasks for claim in task.result()) == list(range(300))
    assert {row["token"] for row in rows(store, "SELECT token FROM jobs")} == {1}
    await check_tallies(store, batch)


async def test_a_claim_carries_what_the_job_needs(store, clock):
    batch = await fill(store, 1, model="m", settings={"params": {"temperature": 0}}, max_attempts=3)
    (claim,) = await Hand(store).claim()
    assert claim.batch == batch
    assert (claim.position, claim.custom_id, claim.payload) == (0, None, '"prompt 0"')
    assert (claim.token, claim.attempts, claim.losses, claim.throttles, claim.probe) == (1, 1, 0, 0, False)
    assert claim.lane == "echo http://localhost/v1 m"
    row = job_row(store, claim.job_id)
    assert (row["state"], row["claimed_by"], row["claimable_at"]) == ("inflight", "runner", clock.now + LEASE_MS)


async def test_claims_come_in_order_of_position(store):
    await fill(store, 50)
    assert list(positions(await Hand(store).claim(20))) == list(range(20))


async def test_nothing_is_claimed_of_a_worker_that_is_not_served(store):
    await fill(store, 1)
    for serving in (
        Serving("other", "default", "http://localhost/v1", opened=True),
        Serving("echo", "elsewhere", "http://localhost/v1", opened=True),
    ):
        reply = await Hand(store).send(Hand(store).request(slots=5, serving=(serving,)))
        assert (reply.claims, reply.unopened, reply.wake_in_ms) == ((), (), None)


async def test_a_worker_with_due_jobs_is_opened_before_they_are_claimed(store):
    await fill(store, 1)
    unopened = replace(SERVING[0], opened=False)
    reply = await Hand(store).send(Hand(store).request(slots=5, serving=(unopened,)))
    assert (reply.claims, reply.unopened) == ((), (unopened,))


async def test_claims_are_narrowed_to_the_batches_asked_for(store):
    await fill(store, 3, "a")
    wanted = await fill(store, 3, "b")
    claims = await Hand(store).claim(9, batch_ids={wanted.id})
    assert [claim.batch.name for claim in claims] == ["b"] * 3


async def test_looking_for_work_in_an_idle_queue_writes_nothing(store):
    await fill(store, 2)
    hand = Hand(store)
    await hand.claim(2)
    with connect(store.location) as lock:
        lock.lock_out_writers()
        with anyio.fail_after(5):
            reply = await hand.send(hand.request(slots=5))
        lock.execute("ROLLBACK")
    assert reply.wake_in_ms == LEASE_MS


async def test_the_wake_up_is_the_next_time_that_something_is_due(store, clock):
    await fill(store, 1)
    hand = Hand(store)
    (claim,) = await hand.claim()
    await hand.settle(retry(claim, after=7.5))
    clock.advance(2_500)
    assert (await hand.send(hand.request(slots=1))).wake_in_ms == 5_000


# Leases


async def test_a_lease_is_respected_until_its_last_millisecond(store, clock):
    await fill(store, 1)
    await Hand(store, "a").claim()
    clock.advance(LEASE_MS - 1)
    assert await Hand(store, "b").claim() == ()
    clock.advance(1)
    assert len(await Hand(store, "b").claim()) == 1


async def test_an_expired_lease_comes_before_thousands_of_fresh_rows(store, clock):
    await fill(store, 4_000)
    await Hand(store, "dead").claim(2)
    clock.advance(LEASE_MS)
    rescued = await Hand(store, "b").claim(2)
    assert list(positions(rescued)) == [0, 1]
    assert [claim.losses for claim in rescued] == [1, 1]


async def test_an_expired_lease_comes_before_the_fresh_rows_of_another_batch_of_equal_priority(store, clock):
    await fill(store, 1, "small")
    await Hand(store, "dead").claim(1)
    await fill(store, 4_000, "big")
    clock.advance(LEASE_MS)
    claims = await Hand(store, "b").claim(2)
    assert sorted(claim.batch.name for claim in claims) == ["big", "small"]


async def test_a_first_loss_is_claimed_again_at_once_and_logged(store, clock):
    batch = await fill(store, 1)
    (lost,) = await Hand(store, "dead").claim()
    clock.advance(LEASE_MS)
    (again,) = await Hand(store, "b").claim()
    assert (again.token, again.attempts, again.losses) == (2, 2, 1)
    (entry,) = log_of(store, lost.job_id)
    assert (entry["token"], entry["number"], entry["runner"], entry["outcome"]) == (1, 1, "dead", "lost")
    assert (entry["charged"], entry["late"], entry["ended_at"]) == (1, 0, clock.now)
    await check_tallies(store, batch)


async def test_a_second_loss_sends_the_job_back_with_back_off(store, clock):
    batch = await fill(store, 1)
    hand = Hand(store, "dead")
    for _ in range(2):
        (claim,) = await hand.claim()
        hand.forget()
        clock.advance(LEASE_MS)
    assert await Hand(store, "b").claim() == ()
    row = job_row(store, claim.job_id)
    assert (row["state"], row["losses"], row["attempts"], row["token"]) == ("pending", 2, 2, 2)
    assert clock.now <= row["claimable_at"] < clock.now + 4_000
    clock.advance(4_000)
    (third,) = await Hand(store, "b").claim()
    assert (third.attempts, third.token) == (3, 3)
    await check_tallies(store, batch)


async def test_a_job_whose_worker_died_in_every_attempt_fails_and_says_how_often(store, clock):
    batch = await fill(store, 1, max_attempts=3)
    hand = Hand(store, "dead")
    for _ in range(3):
        if not await hand.claim():
            clock.advance(4_000)
            assert len(await hand.claim()) == 1
        hand.forget()
        clock.advance(LEASE_MS)
    assert await hand.claim() == ()
    result, log = await store.job(batch, 0)
    assert (result.state, result.error_class, result.attempts) == (JobState.FAILED, "worker_died", 3)
    assert "died (3×)" in result.error
    assert [attempt.outcome for attempt in log] == ["lost"] * 3
    assert (await store.progress("demo")).finished
    await check_tallies(store, batch)


async def test_a_job_that_kills_its_worker_fails_alone(store, clock):
    batch = await fill(store, 16, max_attempts=8)
    culprit = 5
    for life in range(400):
        if (await store.progress("demo")).finished:
            break
        hand = Hand(store, f"life-{life}")
        while claims := await hand.claim(16):
            if culprit in positions(claims):
                clock.advance(LEASE_MS)
                break
            await hand.settle(*map(done, claims))
        clock.advance(1_000)
    assert states(store, batch) == {"done": 15, "failed": 1}
    result, _ = await store.job(batch, culprit)
    assert (result.error_class, result.attempts) == ("worker_died", 8)
    await check_tallies(store, batch)


async def make_suspects(store: Store, clock: Clock, count: int) -> None:
    """Lose the first jobs of a batch twice."""
    hand = Hand(store, "dead")
    for _ in range(2):
        assert len(await hand.claim(count)) == count
        hand.forget()
        clock.advance(LEASE_MS)
    assert not any(claim.position < count for claim in await hand.claim(count))
    await hand.settle(*map(released, hand.held.values()))
    clock.advance(4_000)


async def test_a_runner_holds_one_suspect_at_a_time(store, clock):
    await fill(store, 5)
    await make_suspects(store, clock, 3)
    hand, other = Hand(store), Hand(store, "b")
    claims = await hand.claim(9)
    assert sorted(claim.is_suspect for claim in claims) == [False, False, True]
    (suspect,) = (claim for claim in claims if claim.is_suspect)
    assert await hand.claim(9) == ()
    assert [claim.is_suspect for claim in await other.claim(9)] == [True]
    await hand.settle(done(suspect))
    assert [claim.is_suspect for claim in await hand.claim(9)] == [True]
    assert {row["state"] for row in rows(store, "SELECT state FROM jobs")} == {"done", "inflight"}


async def test_suspects_of_several_batches_count_together(store, clock):
    for name in ("a", "b", "c"):
        await fill(store, 1, name)
    await make_suspects(store, clock, 3)
    hand = Hand(store)
    assert len(await hand.claim(9)) == 1
    assert await hand.claim(9) == ()


async def test_a_suspect_waits_for_the_jobs_that_nobody_suspects(store, clock):
    await fill(store, 30)
    await make_suspects(store, clock, 2)
    claims = await Hand(store).claim(16)
    assert not any(claim.is_suspect for claim in claims)


async def test_whoever_holds_a_suspect_does_not_wake_for_another(store, clock):
    await fill(store, 2)
    await make_suspects(store, clock, 2)
    hand = Hand(store)
    assert len(await hand.claim(9)) == 1
    with connect(store.location) as lock:
        lock.lock_out_writers()
        with anyio.fail_after(5):
            reply = await hand.send(hand.request(slots=9))
        lock.execute("ROLLBACK")
    assert (reply.claims, reply.wake_in_ms) == ((), LEASE_MS)


@pytest.mark.parametrize(
    ("location", "killers", "count"),
    [("sqlite", 1, 16), ("sqlite", 3, 40), ("sqlite", 6, 40), ("postgresql", 3, 40)],
    indirect=["location"],
)
async def test_jobs_that_kill_their_process_take_no_neighbour_along_however_long_it_runs(store, clock, killers, count):
    """A culprit kills its process at once, the others need 50 s; somebody restarts the process each time."""
    batch = await fill(store, count)
    if store.file is not None:
        await store._database._writer.call(lambda connection: connection.exec_driver_sql("PRAGMA synchronous=OFF"))
    hand, began = Hand(store, "life-0"), {}
    for step in range(2_000):
        ripe = [claim for claim in hand.held.values() if clock.now - began[claim.job_id] >= 50_000]
        if any(claim.position < killers for claim in hand.held.values()):
            hand, began = Hand(store, f"life-{step}"), {}
        elif (await store.progress("demo")).finished:
            break
        else:
            free = 16 - len(hand.held) + len(ripe)
            reply = await hand.send(hand.request(map_done(ripe), free, renew=step % 2 == 0))
            began |= {claim.job_id: clock.now for claim in reply.claims}
        clock.advance(5_000)
    failures = rows(store, "SELECT position, error_class FROM jobs WHERE state = 'failed' ORDER BY position")
    assert [dict(row) for row in failures] == [
        {"position": position, "error_class": "worker_died"} for position in range(killers)
    ]
    assert states(store, batch) == {"failed": killers, "done": count - killers}
    await check_tallies(store, batch)


def map_done(claims: list[Claim]) -> list[Settlement]:
    return [done(claim) for claim in claims]


async def test_whoever_slept_claims_no_expired_row(store, clock):
    await fill(store, 3)
    (lost,) = await Hand(store, "dead").claim()
    clock.advance(LEASE_MS)
    hand = Hand(store, "sleeper")
    claims = await hand.claim(5, expired_too=False)
    assert list(positions(claims)) == [1, 2]
    assert await hand.claim(5, expired_too=False) == ()
    assert job_row(store, lost.job_id)["token"] == 1


async def test_an_expired_row_is_no_reason_to_wake_for_whoever_slept(store, clock):
    await fill(store, 1)
    await Hand(store, "dead").claim()
    clock.advance(LEASE_MS)
    hand = Hand(store, "sleeper")
    assert (await hand.send(hand.request(slots=1, expired_too=False))).wake_in_ms is None
    assert (await hand.send(hand.request(slots=1, expired_too=False, beat=True))).wake_in_ms is None


async def test_an_expired_job_in_hand_is_not_claimed_by_its_own_runner(store, clock):
    await fill(store, 1)
    hand = Hand(store)
    await hand.claim()
    clock.advance(LEASE_MS)
    assert await hand.claim() == ()
    assert len(await Hand(store, "b").claim()) == 1


async def test_a_job_given_back_by_another_is_not_claimed_while_it_is_still_in_hand(store, clock):
    await fill(store, 1)
    frozen, other = Hand(store, "frozen"), Hand(store, "other")
    await frozen.claim()
    clock.advance(LEASE_MS)
    (claim,) = await other.claim()
    await other.settle(released(claim))
    reply = await frozen.send(frozen.request(slots=1))
    assert reply.claims == ()
    assert reply.wake_in_ms > 0, "it would spin"
    frozen.forget()
    assert len(await frozen.claim()) == 1


# Renewal


async def test_renewal_extends_the_lease(store, clock):
    await fill(store, 1)
    hand = Hand(store)
    await hand.claim()
    clock.advance(LEASE_MS - 1)
    assert (await hand.renew()).lost == frozenset()
    clock.advance(LEASE_MS - 1)
    assert await Hand(store, "b").claim() == ()


async def test_an_expired_lease_that_nobody_took_can_be_renewed(store, clock):
    await fill(store, 1)
    hand = Hand(store)
    await hand.claim()
    clock.advance(3 * LEASE_MS)
    assert (await hand.renew()).lost == frozenset()
    assert await Hand(store, "b").claim() == ()


async def test_renewal_tells_which_jobs_were_lost(store, clock):
    batch = await fill(store, 4)
    doomed = await fill(store, 1, "doomed")
    purged = await fill(store, 1, "purged")
    hand = Hand(store)
    claims = {(claim.batch.name, claim.position): claim.job_id for claim in await hand.claim(6)}
    await store.cancel(doomed)
    await store.purge(purged)
    clock.advance(LEASE_MS)
    await Hand(store, "b").claim(1, batch_ids={batch.id})
    reply = await hand.renew()
    assert reply.lost == {claims["demo", 0], claims["doomed", 0], claims["purged", 0]}


async def test_renewal_does_not_touch_the_lease_of_who_took_over(store, clock):
    await fill(store, 1)
    hand, other = Hand(store), Hand(store, "b")
    await hand.claim()
    clock.advance(LEASE_MS)
    (claim,) = await other.claim()
    clock.advance(1_000)
    await hand.renew()
    assert job_row(store, claim.job_id)["claimable_at"] == clock.now - 1_000 + LEASE_MS


@pytest.mark.parametrize("outcome", [done, failed, retry, throttled, released])
async def test_renewal_never_resurrects_a_settled_job(store, outcome):
    await fill(store, 1)
    hand = Hand(store)
    (claim,) = await hand.claim()
    request = hand.request(renew=True)
    await hand.settle(outcome(claim))
    before = dict(job_row(store, claim.job_id))
    assert (await store.exchange(request)).lost == {claim.job_id}
    assert dict(job_row(store, claim.job_id)) == before


# Settling


async def test_a_result_is_kept_with_its_usage_cost_and_log(store, clock):
    batch = await fill(store, 1)
    hand = Hand(store)
    (claim,) = await hand.claim()
    clock.advance(1_200)
    await hand.settle(done(claim, {"a": [1]}, cost=1_500, usage=Usage(10, 20, 5, 7)))
    result, (attempt,) = await store.job(batch, 0)
    assert (result.state, result.result, result.cost) == (JobState.DONE, '{"a":[1]}', 1_500)
    assert result.usage == attempt.usage == Usage(10, 20, 5, 7)
    assert (attempt.started_at, attempt.ended_at) == (clock.now - 1_200, clock.now)
    assert (attempt.outcome, attempt.charged, attempt.late, attempt.cost) == ("succeeded", True, False, 1_500)
    progress = await store.progress("demo")
    assert (progress.cost, progress.usage, progress.attempts) == (1_500, Usage(10, 20, 5, 7), 1)


async def test_an_unknown_cost_is_not_zero(store):
    batch = await fill(store, 1)
    hand = Hand(store)
    await hand.settle(*map(done, await hand.claim()))
    result, (attempt,) = await store.job(batch, 0)
    assert (result.cost, attempt.cost, (await store.progress("demo")).cost) == (None, None, None)


async def test_a_stale_token_settles_nothing_and_is_logged_as_late_with_its_cost(store, clock):
    batch = await fill(store, 1)
    (stale,) = await Hand(store, "frozen").claim()
    clock.advance(LEASE_MS)
    (current,) = await Hand(store, "b").claim()
    reply = await Hand(store, "frozen").settle(done(stale, "stale", cost=70))
    assert reply.late == 1
    row = job_row(store, stale.job_id)
    assert (row["state"], row["token"], row["result"]) == ("inflight", current.token, None)
    await Hand(store, "b").settle(done(current, "fresh", cost=30))
    result, (first, second) = await store.job(batch, 0)
    assert (result.result, result.cost) == ('"fresh"', 30)
    assert (first.token, first.late, first.cost, first.outcome) == (stale.token, True, 70, "lost")
    assert (second.token, second.late, second.cost, second.outcome) == (current.token, False, 30, "succeeded")
    assert log_of(store, stale.job_id)[0]["late_result"] == '"stale"'
    assert (await store.progress("demo")).cost == 100
    await check_tallies(store, batch)


@pytest.mark.parametrize("outcome", [done, failed, retry, throttled, released])
async def test_a_late_outcome_of_any_kind_changes_no_finished_row(store, clock, outcome):
    batch = await fill(store, 1)
    frozen, other = Hand(store, "frozen"), Hand(store, "b")
    (stale,) = await frozen.claim()
    clock.advance(LEASE_MS)
    await drain(other)
    before = dict(job_row(store, stale.job_id))
    assert (await frozen.settle(outcome(stale))).late == 1
    assert dict(job_row(store, stale.job_id)) == before
    await check_tallies(store, batch)


async def test_a_late_answer_is_accepted_if_nobody_claimed_the_job_again(store, clock):
    batch = await fill(store, 1)
    hand = Hand(store)
    (claim,) = await hand.claim()
    clock.advance(100 * LEASE_MS)
    assert (await hand.settle(done(claim, "paid for"))).late == 0
    result, (attempt,) = await store.job(batch, 0)
    assert (result.result, attempt.late) == ('"paid for"', False)


async def test_a_late_answer_is_refused_once_its_job_went_back_to_pending(store, clock):
    batch = await fill(store, 1)
    frozen = Hand(store, "frozen")
    (first,) = await frozen.claim()
    clock.advance(LEASE_MS)
    (second,) = await Hand(store, "b").claim()
    clock.advance(LEASE_MS)
    assert await Hand(store, "c").claim() == ()
    assert (await frozen.settle(done(first), done(second))).late == 2
    assert states(store, batch) == {"pending": 1}
    await check_tallies(store, batch)


async def test_a_stale_and_a_current_outcome_of_one_job_in_one_exchange_count_once(store, clock):
    batch = await fill(store, 1)
    hand = Hand(store)
    (stale,) = await hand.claim()
    hand.forget()
    clock.advance(LEASE_MS)
    (current,) = await hand.claim()
    reply = await hand.settle(done(stale, "stale", cost=1), done(current, "fresh", cost=2))
    assert reply.late == 1
    assert (await store.job(batch, 0))[0].result == '"fresh"'
    await check_tallies(store, batch)


async def test_an_exchange_repeated_after_an_unknown_commit_settles_once(store):
    batch = await fill(store, 6)
    hand = Hand(store)
    claims = await hand.claim(6)
    request = hand.request(
        [
            done(claims[0], cost=5),
            failed(claims[1]),
            retry(claims[2], after=10, cost=3),
            throttled(claims[3]),
            released(claims[4]),
            halted(claims[5]),
        ]
    )
    await store.exchange(request)
    before = await store.progress("demo"), rows(store, "SELECT * FROM jobs"), rows(store, "SELECT * FROM attempts")
    reply = await store.exchange(request)
    after = await store.progress("demo"), rows(store, "SELECT * FROM jobs"), rows(store, "SELECT * FROM attempts")
    assert reply.late == 0
    assert after == before
    await check_tallies(store, batch)


async def test_a_late_outcome_that_is_repeated_is_counted_once(store, clock):
    batch = await fill(store, 1)
    frozen = Hand(store, "frozen")
    (stale,) = await frozen.claim()
    clock.advance(LEASE_MS)
    await drain(Hand(store, "b"))
    request = frozen.request([done(stale, cost=9)])
    assert [(await store.exchange(request)).late for _ in range(2)] == [1, 0]
    assert (await store.progress("demo")).cost == 9
    await check_tallies(store, batch)


async def test_an_outcome_of_a_purged_job_is_dropped(store):
    batch = await fill(store, 1)
    hand = Hand(store)
    (claim,) = await hand.claim()
    await store.purge(batch)
    assert (await hand.settle(done(claim, cost=1))).late == 0
    assert rows(store, "SELECT * FROM attempts") == rows(store, "SELECT * FROM tallies") == []


async def test_adopt_returns_the_claims_that_are_not_in_hand(store, clock):
    batch = await fill(store, 4)
    hand = Hand(store)
    kept = await hand.claim(1)
    unconfirmed = await store.exchange(hand.request(slots=2))
    await Hand(store, "b").claim(1)
    reply = await hand.send(hand.request(slots=2, adopt=True))
    assert [(claim.job_id, claim.token, claim.batch) for claim in reply.claims] == [
        (claim.job_id, claim.token, batch) for claim in unconfirmed.claims
    ]
    assert set(hand.held) == {claim.job_id for claim in kept + unconfirmed.claims}
    assert (await hand.settle(*map(done, hand.held.values()))).late == 0


async def test_what_is_adopted_has_a_fresh_lease(store, clock):
    await fill(store, 1)
    hand = Hand(store)
    await store.exchange(hand.request(slots=1))
    clock.advance(LEASE_MS + 1)
    (claim,) = await hand.claim(1, adopt=True)
    assert await Hand(store, "b").claim(1) == ()
    assert job_row(store, claim.job_id)["claimable_at"] == clock.now + LEASE_MS


async def test_what_is_adopted_carries_its_lane(store, clock):
    batch = await fill(store, 5, model="m")
    hand = Hand(store)
    await halt(store, hand)
    await store.resume(batch)
    (unconfirmed,) = (await store.exchange(hand.request(slots=1))).claims
    (claim,) = await hand.claim(1, adopt=True)
    assert claim == unconfirmed
    assert (claim.lane, claim.epoch, claim.probe) == ("echo http://localhost/v1 m", 2, False)
    await hand.settle(halted(claim))
    assert (await store.lanes())[0].halted_at is not None


async def test_a_probe_that_is_adopted_reopens_its_lane(store, clock):
    await fill(store, 5)
    hand = Hand(store)
    await halt(store, hand)
    clock.now = (await store.lanes())[0].probe_at
    await store.exchange(hand.request(slots=5))
    (claim,) = await hand.claim(5, adopt=True)
    assert claim.probe
    await hand.settle(done(claim))
    assert (await store.lanes())[0].halted_at is None


async def test_a_suspect_that_is_adopted_is_the_only_one(store, clock):
    await fill(store, 2)
    await make_suspects(store, clock, 2)
    hand = Hand(store)
    await store.exchange(hand.request(slots=1))
    assert len(await hand.claim(9, adopt=True)) == 1


# Attempts


async def test_attempts_count_claims_and_the_refunded_ones_do_not_charge(store, clock):
    await fill(store, 1, max_attempts=3)
    hand = Hand(store)
    for outcome, charged in ((throttled, 0), (released, 0), (retry, 1), (released, 1), (throttled, 1), (retry, 2)):
        (claim,) = await hand.claim()
        await hand.settle(outcome(claim))
        assert job_row(store, claim.job_id)["attempts"] == charged
        clock.advance(60_000)
    assert [row["charged"] for row in log_of(store, claim.job_id)] == [0, 0, 1, 0, 0, 1]


async def test_being_halted_costs_no_attempt(store):
    await fill(store, 1, max_attempts=1)
    hand = Hand(store)
    (claim,) = await hand.claim()
    await hand.settle(halted(claim))
    row = job_row(store, claim.job_id)
    assert (row["state"], row["attempts"], row["token"]) == ("pending", 0, 1)


async def test_a_job_throttled_a_hundred_times_keeps_its_attempts(store, clock):
    batch = await fill(store, 1, max_attempts=1)
    hand = Hand(store)
    for _ in range(100):
        (claim,) = await hand.claim()
        await hand.settle(throttled(claim))
        clock.advance(60_000)
    (claim,) = await hand.claim()
    assert (claim.attempts, claim.throttles, claim.token) == (1, 100, 101)
    await hand.settle(done(claim))
    assert states(store, batch) == {"done": 1}
    await check_tallies(store, batch)


async def test_a_retry_waits_for_its_time(store, clock):
    await fill(store, 1)
    hand = Hand(store)
    (claim,) = await hand.claim()
    await hand.settle(retry(claim, after=3))
    clock.advance(2_999)
    assert await hand.claim() == ()
    clock.advance(1)
    assert len(await hand.claim()) == 1


async def test_a_retry_that_names_no_time_backs_off_below_its_ceiling(store, clock):
    await fill(store, 40)
    hand = Hand(store)
    claims = await hand.claim(40)
    await hand.settle(*(retry(claim, after=None) for claim in claims))
    waits = [row["claimable_at"] - clock.now for row in rows(store, "SELECT claimable_at FROM jobs")]
    assert 0 <= min(waits) < max(waits) <= 1_000


async def test_a_retry_without_attempts_left_fails(store):
    batch = await fill(store, 1, max_attempts=2)
    hand = Hand(store)
    for _ in range(2):
        (claim,) = await hand.claim()
        await hand.settle(retry(claim, cost=4))
    result, _ = await store.job(batch, 0)
    assert (result.state, result.error_class, result.attempts) == (JobState.FAILED, "timeout", 2)
    assert result.error == "took too long (gave up after 2 attempts)"
    assert (await store.progress("demo")).cost == 8
    await check_tallies(store, batch)


# Pause, resume, cancel


async def test_no_claim_starts_after_a_pause_and_resume_lets_them_through(store):
    batch = await fill(store, 3)
    hand = Hand(store)
    (claim,) = await hand.claim(1)
    await store.pause(batch)
    assert await hand.claim(5) == ()
    assert (await hand.renew()).lost == frozenset()
    assert (await hand.settle(done(claim))).late == 0
    await store.resume(batch)
    assert len(await hand.claim(5)) == 2


async def test_an_expired_job_of_a_paused_batch_waits(store, clock):
    batch = await fill(store, 1)
    await Hand(store, "dead").claim()
    await store.pause(batch)
    clock.advance(LEASE_MS)
    assert await Hand(store).claim() == ()
    assert log_of(store, 1) == []


async def test_a_pause_or_resume_does_not_revive_a_cancelled_batch(store):
    batch = await fill(store, 3)
    paused = await fill(store, 3, "paused")
    await store.pause(paused)
    stale = await store.batch("paused")
    await store.cancel(batch)
    await store.cancel(paused)
    await store.pause(batch)
    await store.resume(stale)
    assert {(await store.batch(name)).state for name in ("demo", "paused")} == {BatchState.CANCELLED}


async def test_cancelling_ends_what_waits_and_what_runs(store, clock):
    batch = await fill(store, 5)
    hand = Hand(store)
    claims = await hand.claim(2)
    await hand.settle(done(claims[0]))
    assert await store.cancel(batch) == 4
    assert states(store, batch) == {"done": 1, "cancelled": 4}
    assert (await hand.renew()).lost == {claims[1].job_id}
    assert (await Hand(store).settle(done(claims[1], cost=11))).late == 1
    assert states(store, batch) == {"done": 1, "cancelled": 4}
    (entry,) = log_of(store, claims[1].job_id)
    assert (entry["late"], entry["cost"], entry["outcome"], entry["charged"]) == (1, 11, "cancelled", 0)
    progress = await store.progress("demo")
    assert (progress.finished, progress.cost) == (True, 11)
    await check_tallies(store, batch)


async def test_what_a_cancel_takes_away_is_in_the_log_and_refunded(store, clock):
    batch = await fill(store, 2)
    hand = Hand(store)
    (claim,) = await hand.claim()
    clock.advance(700)
    await store.cancel(batch)
    result, (attempt,) = await store.job(batch, claim.position)
    assert (result.state, result.attempts) == (JobState.CANCELLED, 0)
    assert (attempt.token, attempt.number, attempt.runner) == (claim.token, 1, "runner")
    assert (attempt.started_at, attempt.ended_at) == (clock.now - 700, clock.now)
    assert (attempt.outcome, attempt.charged, attempt.late) == ("cancelled", False, False)
    request = hand.request([done(claim, cost=5)])
    assert [(await store.exchange(request)).late for _ in range(2)] == [1, 0]
    assert (await store.progress("demo")).cost == 5
    await check_tallies(store, batch)


async def test_cancelling_a_finished_batch_changes_no_job(store):
    batch = await fill(store, 3)
    await drain(Hand(store))
    before = rows(store, "SELECT * FROM jobs")
    assert await store.cancel(batch) == 0
    assert rows(store, "SELECT * FROM jobs") == before


async def test_a_cancel_that_its_operator_abandoned_is_finished_by_others(store):
    batch = await fill(store, 3)
    with connect(store.location) as operator:
        operator.execute("UPDATE batches SET state = 'cancelled'")
    assert await Hand(store).claim(3) == ()
    await store.finish_cancels()
    assert states(store, batch) == {"cancelled": 3}
    await check_tallies(store, batch)


async def test_finishing_a_cancel_does_not_touch_a_batch_that_was_revived(store):
    batch = await fill(store, 3)
    await store.cancel(batch)
    await store.retry(await store.batch("demo"))
    await store._finish_cancel(batch)
    assert states(store, batch) == {"pending": 3}


# Priority and fairness


async def test_higher_priority_comes_first(store):
    for name, priority in (("low", -1), ("high", 5), ("normal", 0)):
        await fill(store, 10, name, priority=priority)
    hand = Hand(store)
    taken = [Counter(claim.batch.name for claim in await hand.claim(10)) for _ in range(3)]
    assert taken == [{"high": 10}, {"normal": 10}, {"low": 10}]


async def test_what_a_priority_leaves_goes_to_the_next(store):
    await fill(store, 3, "high", priority=5)
    await fill(store, 10, "low")
    claims = await Hand(store).claim(8)
    assert Counter(claim.batch.name for claim in claims) == {"high": 3, "low": 5}


async def test_equal_batches_share_the_slots(store):
    for name in "abcd":
        await fill(store, 50, name)
    claims = await Hand(store).claim(40)
    assert Counter(claim.batch.name for claim in claims) == dict.fromkeys("abcd", 10)


async def test_a_small_batch_is_not_stuck_behind_a_big_one(store):
    await fill(store, 2_000, "big")
    await fill(store, 3, "small")
    claims = await Hand(store).claim(8)
    assert Counter(claim.batch.name for claim in claims)["small"] == 3


async def test_more_batches_than_one_exchange_serves_all_get_their_turn(store):
    for index in range(20):
        await fill(store, 40, f"batch-{index}")
    hand = Hand(store)
    for _ in range(30):
        await hand.claim(8)
    assert len({claim.batch.name for claim in hand.held.values()}) == 20


# Tallies, runners, finished


async def test_tallies_agree_with_a_recount_before_and_after_runners_leave(store, clock):
    batch = await fill(store, 30, max_attempts=2)
    hands = [Hand(store, name) for name in ("a", "b", "c")]
    for hand in hands:
        await store.register(hand.runner)
    outcomes = (done, failed, retry, throttled, released)
    for index in range(25):
        hand = hands[index % 3]
        claims = await hand.claim(3)
        await hand.settle(*(outcomes[(index + offset) % 5](claim) for offset, claim in enumerate(claims[:2])))
        clock.advance(9_000)
        await check_tallies(store, batch)
    for hand in hands:
        await store.retire(hand.runner)
        await check_tallies(store, batch)
    assert [row["runner"] for row in rows(store, "SELECT DISTINCT runner FROM tallies")] == [""]


async def test_tallies_of_a_runner_that_went_silent_are_folded_by_the_next(store, clock):
    batch = await fill(store, 3)
    hand = Hand(store, "silent")
    await store.register(hand.runner)
    await hand.settle(*map(done, await hand.claim(3)))
    clock.advance(21 * LEASE_MS)
    await store.register(identity("next"))
    assert [row["runner"] for row in rows(store, "SELECT runner FROM tallies")] == [""]
    await check_tallies(store, batch)


async def test_tallies_of_a_runner_with_a_long_lease_are_folded_before_it_is_forgotten(store, clock):
    batch = await fill(store, 3)
    hand = Hand(store, "silent", lease_ms=3 * 3_600_000)
    await store.register(hand.runner)
    await hand.settle(*map(done, await hand.claim(3)))
    clock.advance(25 * 3_600_000)
    await store.register(identity("next"))
    assert [row["id"] for row in rows(store, "SELECT id FROM runners")] == ["next"]
    assert [row["runner"] for row in rows(store, "SELECT runner FROM tallies")] == [""]
    await check_tallies(store, batch)


async def test_runners_are_seen_until_they_say_goodbye(store, clock):
    hand = Hand(store)
    await store.register(hand.runner)
    await fill(store, 2)
    await hand.send(hand.request(slots=2, beat=True))
    (info,) = await store.runners()
    assert (info.id, info.in_flight, info.live) == ("runner", 2, True)
    clock.advance(LEASE_MS + 1)
    assert [info.live for info in await store.runners()] == [False]
    await store.retire(hand.runner)
    assert await store.runners() == ()


async def test_a_batch_is_finished_only_when_sealed_and_without_a_live_row(store):
    batch = await fill(store, 2, seal=False)
    hand = Hand(store)
    await drain(hand)
    assert not (await store.progress("demo")).finished
    await store.add_jobs(batch, new_jobs(1, start=2))
    await store.seal(batch)
    assert not (await store.progress("demo")).finished
    claims = await hand.claim()
    assert not (await store.progress("demo")).finished
    await hand.settle(*map(done, claims))
    assert (await store.progress("demo")).finished


async def test_an_empty_batch_is_finished_once_it_is_sealed(store):
    batch = await fill(store, 0, seal=False)
    assert not (await store.progress("demo")).finished
    await store.seal(batch)
    assert (await store.progress("demo")).finished


async def test_a_producer_that_goes_silent_is_no_longer_enqueueing(store, clock):
    await fill(store, 1, seal=False)
    assert (await store.progress("demo")).enqueueing
    clock.advance(30_000)
    assert not (await store.progress("demo")).enqueueing


# Results


@pytest.mark.parametrize("page_rows", [1, 2, 7, 20, 21, 500])
async def test_results_come_in_input_order_by_pages_of_any_size(store, page_rows):
    batch = await fill(store, 20)
    hand = Hand(store)
    claims = await hand.claim(15)
    await hand.settle(*(done(claim, claim.position) for claim in reversed(claims)))
    found = [result async for result in store.results(batch, page_rows=page_rows, with_prompt=True)]
    assert [result.position for result in found] == list(range(20))
    assert [result.result for result in found] == [*map(str, range(15)), *[None] * 5]
    assert {result.payload for result in found} == {f'"prompt {position}"' for position in range(20)}


async def test_results_without_prompts_leave_the_payload_out(store):
    batch = await fill(store, 1)
    assert [result.payload async for result in store.results(batch)] == [None]


async def test_failures_are_grouped_by_class_with_an_example(store):
    batch = await fill(store, 5)
    hand = Hand(store)
    a, b, c, d, _ = await hand.claim(5)
    await hand.settle(
        failed(a, "first", "timeout"), failed(b, "x", "refused"), failed(c, "y", "timeout"), failed(d, "z", "timeout")
    )
    assert [(group.error_class, group.count, group.example) for group in await store.errors(batch)] == [
        ("timeout", 3, "first"),
        ("refused", 1, "x"),
    ]


async def test_an_unknown_batch_is_named_with_its_nearest(store):
    await fill(store, 1, "reviews")
    with pytest.raises(UnknownBatch, match="did you mean 'reviews'"):
        await store.batch("reviews2")
    assert await store.find_batch("nothing like it") is None


async def test_a_position_that_does_not_exist_has_no_job(store):
    assert await store.job(await fill(store, 1), 1) is None


# Retry and purge


async def test_retry_sends_failed_and_cancelled_jobs_back_with_fresh_attempts_and_a_growing_token(store, clock):
    batch = await fill(store, 4, max_attempts=2)
    hand = Hand(store)
    first, second = await hand.claim(2)
    await hand.settle(done(first, "kept"), failed(second))
    await store.cancel(batch)
    kept = dict(job_row(store, first.job_id))
    assert await store.retry(await store.batch("demo")) == 3
    assert states(store, batch) == {"done": 1, "pending": 3}
    row = job_row(store, second.job_id)
    assert (row["attempts"], row["token"], row["error"], row["finished_at"]) == (0, 1, None, None)
    claims = {claim.job_id: claim for claim in await hand.claim(5)}
    assert (claims[second.job_id].token, claims[second.job_id].attempts) == (2, 1)
    assert (await Hand(store).settle(done(second, "stale"))).late == 0
    assert job_row(store, second.job_id)["state"] == "inflight"
    await hand.settle(*map(done, claims.values()))
    assert dict(job_row(store, first.job_id)) == kept
    await check_tallies(store, batch)


async def test_an_answer_of_before_a_cancel_and_a_retry_is_refused(store):
    batch = await fill(store, 1)
    (stale,) = await Hand(store, "frozen").claim()
    await store.cancel(batch)
    await store.retry(batch)
    (current,) = await Hand(store, "b").claim()
    assert (await Hand(store, "frozen").settle(done(stale, "stale"))).late == 1
    assert (await Hand(store, "b").settle(done(current, "fresh"))).late == 0
    assert (await store.job(batch, 0))[0].result == '"fresh"'
    await check_tallies(store, batch)


async def test_retry_leaves_running_and_waiting_jobs_alone(store, clock):
    batch = await fill(store, 3)
    hand = Hand(store)
    running, failing = await hand.claim(2)
    await hand.settle(failed(failing))
    before = dict(job_row(store, running.job_id))
    assert await store.retry(batch) == 1
    assert dict(job_row(store, running.job_id)) == before
    assert (await hand.settle(done(running))).late == 0


async def test_retry_can_be_narrowed_to_one_class_of_error(store):
    batch = await fill(store, 3)
    hand = Hand(store)
    a, b, c = await hand.claim(3)
    await hand.settle(failed(a, "x", "timeout"), failed(b, "x", "refused"), failed(c, "x", "timeout"))
    assert await store.retry(batch, error_class="timeout") == 2
    assert states(store, batch) == {"failed": 1, "pending": 2}


async def test_retry_after_a_cancel_works_with_a_batch_read_before_it(store):
    batch = await fill(store, 2)
    await store.cancel(batch)
    assert await store.retry(batch) == 2
    assert len(await Hand(store).claim(5)) == 2


async def test_resume_after_a_pause_works_with_a_batch_read_before_it(store):
    batch = await fill(store, 2)
    await store.pause(batch)
    await store.resume(batch)
    assert len(await Hand(store).claim(5)) == 2


async def test_purge_removes_everything_of_a_batch_and_nothing_else(store):
    gone, kept = await fill(store, 2_500, "gone"), await fill(store, 3, "kept")
    await drain(Hand(store), 500)
    before = {table: rows(store, f"SELECT * FROM {table} WHERE batch_id = ?", kept.id) for table in ("jobs", "tallies")}
    assert await store.purge(gone) == 2_500
    assert await store.find_batch("gone") is None
    assert {table: rows(store, f"SELECT * FROM {table}") for table in ("jobs", "tallies")} == before
    assert len(rows(store, "SELECT * FROM attempts")) == 3
    await check_tallies(store, kept)


async def test_a_purge_that_was_left_half_way_is_completed_by_the_next(store, clock, monkeypatch):
    monkeypatch.setattr(operate, "CHUNK_ROWS", 4)
    batch = await fill(store, 10)
    hand = Hand(store)
    await hand.settle(*map(done, await hand.claim(6)))
    (running,) = await hand.claim(1)
    assert await store._write(partial(operate.purge_chunk, batch_id=batch.id)) == 4
    assert (await store.batch("demo")).state is BatchState.PURGING
    assert not (await store.progress("demo")).finished
    assert await hand.claim(5) == ()
    for operation in (store.pause, store.resume, store.cancel, store.retry):
        await operation(batch)
        assert (await store.batch("demo")).state is BatchState.PURGING
    assert await hand.claim(5) == ()
    with pytest.raises(BatchConflict, match="being purged"):
        await store.open_batch(NewBatch("demo", "echo"))
    with pytest.raises(BatchConflict, match="purged while"):
        await store.add_jobs(batch, new_jobs(11))
    assert [found.name for found in await store.finished_before(10**9)] == ["demo"]
    assert await store.purge(batch) == 6
    assert rows(store, "SELECT * FROM attempts") == rows(store, "SELECT * FROM jobs") == []
    assert (await hand.settle(done(running))).late == 0
    with pytest.raises(BatchConflict, match="purged while"):
        await store.add_jobs(batch, new_jobs(11))


async def test_ids_are_not_reused_after_a_purge(store):
    await store.purge(await fill(store, 3))
    batch = await fill(store, 1, "next")
    assert batch.id == 2
    assert [row["id"] for row in rows(store, "SELECT id FROM jobs")] == [4]


async def test_batches_finished_long_ago_are_told_from_the_others(store, clock):
    await fill(store, 1, "old")
    await drain(Hand(store))
    clock.advance(10_000)
    await fill(store, 1, "new")
    await drain(Hand(store))
    await fill(store, 1, "live")
    assert [batch.name for batch in await store.finished_before(5_000)] == ["old"]


# Enqueue


async def test_enqueueing_the_same_rows_again_adds_nothing(store):
    batch = await fill(store, 10)
    assert (await store.add_jobs(batch, new_jobs(10))).jobs == 0
    assert (await store.add_jobs(batch, new_jobs(12))).jobs == 2
    assert (await store.batch("demo")).size == 12
    await check_tallies(store, batch)


async def test_opening_a_batch_again_returns_it_and_other_settings_conflict(store):
    new = NewBatch("demo", "echo", model="m", settings={"params": {"a": 1, "b": 2}})
    batch = await store.open_batch(new)
    assert await store.open_batch(replace(new, settings={"params": {"b": 2, "a": 1}})) == batch
    for changed in (
        {"worker": "other"}, {"endpoint": "other"}, {"model": "n"}, {"settings": {"params": {"a": 2}}},
    ):  # fmt: skip
        named = next(iter(changed)) if "settings" not in changed else 'params is {"a":1,"b":2}, not {"a":2}'
        with pytest.raises(BatchConflict, match=named):
            await store.open_batch(replace(new, **changed))
    await store.cancel(batch)
    with pytest.raises(BatchConflict, match="cancelled"):
        await store.open_batch(new)


@pytest.mark.parametrize("named", [None, "row-"])
async def test_a_row_with_another_key_is_a_conflict_and_nothing_of_its_chunk_is_added(store, named):
    batch = await store.open_batch(NewBatch("demo", "echo"))
    await store.add_jobs(batch, new_jobs(3, named=named))
    chunk = new_jobs(5, named=named)
    chunk[1] = replace(chunk[1], key="other")
    with pytest.raises(BatchConflict, match="row-1" if named else "position 1"):
        await store.add_jobs(batch, chunk)
    assert states(store, batch) == {"pending": 3}
    await check_tallies(store, batch)


async def test_a_producer_that_opens_an_incomplete_batch_again_is_alive_again(store, clock):
    batch = await fill(store, 3, seal=False)
    clock.advance(3_600_000)
    assert not (await store.progress("demo")).enqueueing
    assert (await store.open_batch(NewBatch("demo", "echo"))).enqueue_until > clock.now
    assert (await store.progress("demo")).enqueueing
    clock.advance(3_600_000)
    await store.keep_alive(batch)
    assert (await store.progress("demo")).enqueueing
    await store.seal(batch)
    sealed = await store.batch("demo")
    clock.advance(1_000)
    await store.keep_alive(batch)
    assert (await store.open_batch(NewBatch("demo", "echo"))).sealed_at == sealed.sealed_at
    assert not (await store.progress("demo")).enqueueing


async def test_rows_with_custom_ids_get_the_next_positions(store):
    batch = await store.open_batch(NewBatch("demo", "echo"))
    assert await store.has_custom_ids(batch) is None
    await store.add_jobs(batch, new_jobs(3, named="x"))
    await store.add_jobs(batch, [*new_jobs(2, start=1, named="x"), *new_jobs(2, start=90, named="x")])
    assert await store.has_custom_ids(batch) is True
    found = [(result.position, result.custom_id) async for result in store.results(batch)]
    assert found == [(0, "x0"), (1, "x1"), (2, "x2"), (3, "x90"), (4, "x91")]


async def test_a_gap_in_the_positions_is_refused(store):
    batch = await fill(store, 3)
    with pytest.raises(BatchConflict, match="another enqueue"):
        await store.add_jobs(batch, new_jobs(2, start=5))


async def test_a_custom_id_twice_in_a_chunk_is_refused_whole(store):
    batch = await store.open_batch(NewBatch("demo", "echo"))
    twice = new_jobs(2, named="x") + new_jobs(1, named="x")
    with pytest.raises(DataRefused):
        await store.add_jobs(batch, twice)
    assert states(store, batch) == {}
    await check_tallies(store, batch)


@pytest.mark.parametrize("named", [None, "row-"])
async def test_ten_enqueues_of_the_same_rows_at_once_add_each_row_once(store, location, clock, named):
    async def produce() -> int:
        async with await open_queue(location, clock) as producer:
            batch = await producer.open_batch(NewBatch("demo", "echo"))
            added = [
                (await producer.add_jobs(batch, new_jobs(20, start, named=named))).jobs for start in range(0, 200, 20)
            ]
            await producer.seal(batch)
            return sum(added)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(produce()) for _ in range(10)]
    assert sum(task.result() for task in tasks) == 200
    batch = await store.batch("demo")
    assert [result.position async for result in store.results(batch)] == list(range(200))
    assert (batch.size, batch.sealed_at) == (200, clock.now)
    await check_tallies(store, batch)


async def test_appending_unseals_a_batch_and_sealing_again_completes_it(store):
    batch = await fill(store, 2)
    assert batch.sealed_at is not None
    await store.add_jobs(batch, new_jobs(2))
    assert (await store.batch("demo")).sealed_at is not None
    await store.add_jobs(batch, new_jobs(3))
    assert (await store.batch("demo")).sealed_at is None
    assert [batch.name for batch in (await store.unfinished()).unsealed] == ["demo"]
    await store.seal(batch)
    assert (await store.unfinished()).unsealed == ()


# Data


HARD_TEXT = "NUL \0, half a pair \ud800, é, 漢, 😀, \x7f, \u2028"


async def test_hard_text_survives_in_prompt_result_and_meta(store):
    batch = await store.open_batch(NewBatch("demo", "echo", settings={"system": HARD_TEXT}))
    await store.add_jobs(batch, [NewJob(0, None, "k", encode(HARD_TEXT))])
    hand = Hand(store)
    (claim,) = await hand.claim()
    assert (claim.payload, claim.batch.settings["system"]) == (encode(HARD_TEXT), HARD_TEXT)
    await hand.settle(done(claim, [HARD_TEXT]))
    result, _ = await store.job(batch, 0)
    assert result.result == encode([HARD_TEXT])


async def test_hard_text_in_an_error_leaves_the_batch_readable(store):
    batch = await fill(store, 2)
    hand = Hand(store)
    first, second = await hand.claim(2)
    await hand.settle(failed(first, HARD_TEXT), failed(second, "plain: é 漢 😀"))
    errors = [result.error async for result in store.results(batch)]
    assert errors[1] == "plain: é 漢 😀"
    assert errors[0].startswith("NUL ")
    assert "漢" in errors[0]
    assert len((await store.job(batch, 0))[1]) == 1


async def test_hard_text_in_a_late_error_leaves_the_log_readable(store):
    batch = await fill(store, 1)
    hand = Hand(store)
    (claim,) = await hand.claim()
    await store.cancel(batch)
    await hand.settle(failed(claim, HARD_TEXT))
    assert len((await store.job(batch, 0))[1]) == 1


async def test_a_custom_id_that_no_database_holds_is_refused_as_data(store):
    batch = await store.open_batch(NewBatch("demo", "echo"))
    with pytest.raises(DataRefused):
        await store.add_jobs(batch, [NewJob(0, "half \ud800", "k", '"x"')])
    assert len(await Hand(store).claim(1)) == 0


async def test_a_result_of_five_megabytes_is_kept(store):
    batch = await fill(store, 1)
    hand = Hand(store)
    (claim,) = await hand.claim()
    text = "é" * 1_000_000
    await hand.settle(done(claim, text))
    result, _ = await store.job(batch, 0)
    assert result.result == encode(text)
    assert len(result.result) > 5_000_000


@pytest.mark.parametrize(
    "change",
    [
        "state = 'finished'",
        "state = 'done', result = '1'",
        "state = 'done', finished_at = 1",
        "state = 'failed'",
        "state = 'cancelled'",
        "finished_at = 1",
        "state = 'inflight'",
        "attempts = -1",
        "token = -1",
        "payload = NULL",
        "claimable_at = NULL",
        "batch_id = NULL",
    ],
)
async def test_an_impossible_row_is_refused_whoever_writes_it(store, change):
    await fill(store, 1)
    with connect(store.location) as editor, pytest.raises(INTEGRITY_ERRORS):
        editor.execute(f"UPDATE jobs SET {change}")


@pytest.mark.parametrize("change", ["state = 'done'", "max_attempts = 0", "call_timeout_ms = 0", "name = NULL"])
async def test_an_impossible_batch_is_refused_whoever_writes_it(store, change):
    await fill(store, 1)
    with connect(store.location) as editor, pytest.raises(INTEGRITY_ERRORS):
        editor.execute(f"UPDATE batches SET {change}")


# Opening


@pytest.mark.parametrize(("empty_location", "count"), [("sqlite", 20), ("postgresql", 50)], indirect=["empty_location"])
def test_many_threads_open_an_empty_place_at_once(empty_location, count):
    gate, failures = threading.Barrier(count), []

    def start() -> None:
        gate.wait()
        try:
            open_at_once(empty_location)
        except Exception as error:  # noqa: BLE001 - a thread has nowhere else to tell
            failures.append(error)

    threads = [threading.Thread(target=start) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with connect(empty_location) as reader:
        assert dict(reader.execute("SELECT count(*) AS n FROM batches")[0]) == {"n": 1}
        assert dict(reader.execute("SELECT count(*) AS n FROM meta")[0]) == {"n": 1}


def test_several_processes_open_an_empty_place_at_once(empty_location):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=open_at_once, args=(empty_location,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0] * 3


async def test_a_path_without_a_queue_is_an_error_unless_it_is_created(tmp_path):
    with pytest.raises(NoDatabase):
        await open_store(str(tmp_path / "none.db"))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "empty.db").touch()
    with pytest.raises(NoDatabase):
        await open_store(str(tmp_path / "empty.db"))
    async with await open_store(str(tmp_path / "empty.db"), create=True) as store:
        assert await store.batches() == []


async def test_a_path_that_cannot_be_created_says_so(tmp_path):
    for location in (tmp_path / "missing" / "q.db", tmp_path):
        with pytest.raises(DatabaseUnavailable):
            await open_store(str(location), create=True)


@pytest.mark.parametrize("url", ["mysql://host/db", "sqlite://", "sqlite:///:memory:", "nonsense://"])
async def test_a_url_that_is_no_shared_database_is_refused(url):
    with pytest.raises(ConfigurationError):
        await open_store(url, create=True)


async def test_a_sqlite_url_names_the_same_queue_as_its_path(sqlite_store, path):
    await fill(sqlite_store, 1)
    async with await open_store(f"sqlite:///{path}") as other:
        assert [batch.name for batch in await other.batches()] == ["demo"]


async def test_a_foreign_database_is_refused_and_left_as_it_was(path):
    with closing(sqlite3.connect(path)) as foreign:
        foreign.execute("CREATE TABLE t (x)")
        foreign.commit()
    before = path.read_bytes()
    with pytest.raises(NotABatchqDatabase):
        await open_store(str(path), create=True)
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"no database\n" * 500, b"a line\n", b"SQLite format 3\0" + b"\xff" * 4_080])
async def test_a_file_that_is_no_database_is_refused_and_left_as_it_was(path, content):
    path.write_bytes(content)
    with pytest.raises(NotABatchqDatabase):
        await open_store(str(path), create=True)
    assert path.read_bytes() == content


@pytest.mark.parametrize(("version", "message"), [(SCHEMA_VERSION + 1, "newer batchq"), (0, "needs")])
async def test_another_schema_version_is_refused_at_once(store, location, version, message):
    await fill(store, 1)
    with connect(location) as upgrade:
        upgrade.execute("UPDATE meta SET value = ? WHERE name = 'schema_version'", (str(version),))
    with pytest.raises(SchemaMismatch, match=message):
        await open_store(location)
    with pytest.raises(SchemaMismatch, match=message):
        await Hand(store).settle()
    with pytest.raises(SchemaMismatch, match=message):
        await Hand(store).send(Hand(store).request(beat=True))


@pytest.mark.skipif(os.name == "nt", reason="permission bits of POSIX")
async def test_the_file_can_be_read_by_its_owner_only(sqlite_store, path):
    await fill(sqlite_store, 1)
    assert {oct(entry.stat().st_mode & 0o777) for entry in path.parent.iterdir()} == {"0o600"}


async def test_a_commit_is_on_the_disk_before_it_is_reported(sqlite_store):
    def settings(transaction):
        run = transaction.connection.exec_driver_sql
        return [run(f"PRAGMA {name}").scalar_one() for name in ("journal_mode", "synchronous", "foreign_keys")]

    assert await sqlite_store._database.write(settings) == ["wal", 2, 1]


async def test_the_database_tells_the_time_in_milliseconds(location):
    async with await open_store(location, create=True) as store:
        now = (await Hand(store).send(Hand(store).request())).now
    assert abs(now - time.time() * 1000) < 5_000


async def test_commits_of_anybody_are_noticed(sqlite_store, path, clock):
    async with await open_queue(path, clock) as other:
        with closing(sqlite_store.watch()) as watcher, closing(sqlite_store.watch()) as second:
            assert not watcher.changed()
            await fill(other, 1)
            assert watcher.changed()
            assert not watcher.changed()
            await fill(sqlite_store, 1, "own")
            assert watcher.changed()
            assert second.changed(), "another watcher took its news"


# Locks


def hold_lock(location: object, seconds: float, taken: threading.Event) -> None:
    with connect(location) as connection:
        connection.lock_out_writers()
        taken.set()
        time.sleep(seconds)
        connection.execute("ROLLBACK")


@pytest.fixture
def locked(store):
    """Start a thread beside which nobody can write for the given time."""
    threads = []

    def hold(seconds: float) -> None:
        taken = threading.Event()
        threads.append(threading.Thread(target=hold_lock, args=(store.location, seconds, taken)))
        threads[-1].start()
        taken.wait()

    yield hold
    for thread in threads:
        thread.join()


async def test_a_write_waits_for_a_lock_and_then_succeeds(store, locked):
    await fill(store, 1)
    hand = Hand(store)
    began = time.monotonic()
    locked(1.0)
    assert len(await hand.claim()) == 1
    assert 0.9 < time.monotonic() - began < 10


async def test_a_write_with_patience_gives_up_on_a_lock(sqlite_store, path):
    taken = threading.Event()
    thread = threading.Thread(target=hold_lock, args=(path, 0.6, taken))
    thread.start()
    taken.wait()
    with pytest.raises(DatabaseBusy, match=r"waited 0\.2 s"):
        await sqlite_store._database.write(lambda _transaction: None, patience=0.2)
    await sqlite_store._database.write(lambda _transaction: None, patience=5)
    thread.join()


async def test_reads_do_not_wait_for_a_lock(store, locked):
    await fill(store, 3)
    locked(1.0)
    began = time.monotonic()
    assert (await store.progress("demo")).counts.pending == 3
    assert time.monotonic() - began < 0.9


def pause(transaction, seconds: float) -> None:
    """Let a transaction take its time: on a thread of its own, or on the server."""
    if transaction.connection.dialect.name == "sqlite":
        time.sleep(seconds)
    else:
        transaction.connection.exec_driver_sql(f"SELECT pg_sleep({seconds})")


def mark_slowly(transaction) -> None:
    run = transaction.connection.exec_driver_sql
    run("INSERT INTO meta VALUES ('mark', 'half')")
    pause(transaction, 0.15)
    run("UPDATE meta SET value = 'whole' WHERE name = 'mark'")


@pytest.mark.parametrize("kind", ["task", "scope"])
@pytest.mark.parametrize("after", [0.0, 0.05, 0.14, 0.2])
async def test_a_write_that_is_cancelled_leaves_no_lock_and_no_half(store, location, kind, after):
    write = partial(store._database.write, mark_slowly)
    if kind == "task":
        task = asyncio.ensure_future(write())
        await asyncio.sleep(after)
        task.cancel()
        await asyncio.wait([task])
    else:
        with anyio.move_on_after(after):
            await write()
    await store._database.write(lambda _transaction: None, patience=1)
    with connect(location) as other:
        other.lock_out_writers(wait=False)
        marks = [row["value"] for row in other.execute("SELECT value FROM meta WHERE name = 'mark'")]
        other.execute("ROLLBACK")
    assert marks in ([], ["whole"])


@pytest.mark.parametrize("kind", ["read", "write"])
async def test_a_cancelled_task_ends_when_its_transaction_has_ended(store, kind):
    """Also for asyncio's own cancel, which no shield of anyio stops: what follows must not run beside it."""
    events: list[str] = []

    def work(transaction) -> None:
        events.append("begun")
        pause(transaction, 0.2)
        events.append("ended")

    task = asyncio.ensure_future(getattr(store._database, kind)(work))
    while not events:
        await asyncio.sleep(0.01)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0.01)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert events == ["begun", "ended"]


async def test_a_cancelled_task_whose_transaction_fails_is_cancelled_all_the_same(store):
    begun = threading.Event()

    def fail(transaction) -> None:
        begun.set()
        pause(transaction, 0.1)
        raise RuntimeError

    task = asyncio.ensure_future(store._database.write(fail))
    await asyncio.to_thread(begun.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await store._database.write(lambda _transaction: None, patience=1)


async def test_whoever_waits_for_a_lock_is_told_once(path, monkeypatch):
    monkeypatch.setattr(database, "LOCKED_SECONDS", 0.1)
    heard: list[str] = []
    async with await open_store(str(path), create=True, on_locked=heard.append) as store:
        await fill(store, 1)
        assert heard == []
        for round_ in (1, 2):
            taken = threading.Event()
            thread = threading.Thread(target=hold_lock, args=(path, 0.4, taken))
            thread.start()
            taken.wait()
            await fill(store, 1, f"waits-{round_}")
            thread.join()
            assert heard == [f"{path} is locked by another process; waiting for it"] * round_


REFUSALS = {
    sqlite3.SQLITE_PROTOCOL: DatabaseUnavailable,
    sqlite3.SQLITE_NOMEM: DatabaseUnavailable,
    sqlite3.SQLITE_FULL: DatabaseUnavailable,
    sqlite3.SQLITE_IOERR | (10 << 8): DatabaseUnavailable,
    sqlite3.SQLITE_READONLY: DatabaseUnavailable,
    sqlite3.SQLITE_PERM: DatabaseUnavailable,
    99: DatabaseUnavailable,
    sqlite3.SQLITE_CONSTRAINT: DataRefused,
    sqlite3.SQLITE_TOOBIG: DataRefused,
    sqlite3.SQLITE_CORRUPT: NotABatchqDatabase,
    sqlite3.SQLITE_ERROR: DBAPIError,
    sqlite3.SQLITE_MISUSE: DBAPIError,
}


@pytest.mark.parametrize("code", REFUSALS)
async def test_what_the_database_refuses_is_told_by_its_code(sqlite_store, code):
    error = sqlite3.OperationalError("it says no")
    error.sqlite_errorcode = code

    def refuse(_transaction) -> None:
        raise DBAPIError("SELECT 1", None, error)

    with pytest.raises(REFUSALS[code], match="it says no"):
        await sqlite_store._database.write(refuse)
    await sqlite_store._database.write(lambda _transaction: None, patience=1)


async def test_a_database_without_memory_may_have_some_later(sqlite_store):
    def refuse(_transaction) -> None:
        raise MemoryError

    with pytest.raises(DatabaseUnavailable, match="memory"):
        await sqlite_store._database.read(refuse)


async def test_a_write_that_is_cancelled_while_it_waits_for_a_lock_leaves_none(store, locked):
    locked(0.4)
    with anyio.move_on_after(0.1):
        await fill(store, 1)
    await fill(store, 1, "after")
    # A wait for rows ends when they are free, since drivers wait for the server's word; what was asked is done then.
    waited = [] if store.file is not None else ["demo"]
    assert [batch.name for batch in await store.batches()] == ["after", *waited]


async def test_a_write_that_fails_leaves_nothing_behind(store):
    def fail(transaction) -> None:
        transaction.connection.exec_driver_sql("INSERT INTO meta VALUES ('mark', '1')")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        await store._database.write(fail)
    assert rows(store, "SELECT * FROM meta WHERE name = 'mark'") == []
    await store._database.write(lambda _transaction: None, patience=1)


# The write-ahead log


THRESHOLD = 256 * 1024


@pytest.fixture
async def small_log(monkeypatch, path, clock):
    monkeypatch.setattr(checkpoint, "CHECKPOINT_BYTES", THRESHOLD)
    async with await open_queue(path, clock) as opened:
        yield opened


async def log_sizes(store: Store, commits: int) -> list[int]:
    hand, sizes = Hand(store), []
    for _ in range(commits):
        await hand.settle(*(done(claim, "x" * 4_000) for claim in await hand.claim(4)))
        sizes.append(Path(f"{store.location}-wal").stat().st_size)
    return sizes


async def test_the_log_is_folded_in_and_stays_bounded(small_log):
    await fill(small_log, 800)
    sizes = await log_sizes(small_log, 200)
    assert max(sizes) < 2 * THRESHOLD
    assert Path(small_log.location).stat().st_size > 800 * 4_000


async def test_the_log_of_two_writers_stays_bounded(small_log, path, clock):
    await fill(small_log, 800)
    async with await open_queue(path, clock) as other, asyncio.TaskGroup() as group:
        tasks = [group.create_task(log_sizes(store, 100)) for store in (small_log, other)]
    assert max(max(task.result()) for task in tasks) < 8 * THRESHOLD


async def test_a_long_reader_delays_the_folding_and_is_not_disturbed(small_log, path):
    await fill(small_log, 800)
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        count = "SELECT count(*) FROM jobs WHERE state = 'done'"
        assert reader.execute(count).fetchone() == (0,)
        grown = await log_sizes(small_log, 100)
        assert max(grown) > 2 * THRESHOLD
        assert reader.execute(count).fetchone() == (0,)
    await log_sizes(small_log, 40)
    await log_sizes(small_log, 40)
    async with await open_store(str(path)) as fresh:
        assert (await fresh.progress("demo")).counts.done == 720
    assert rows(small_log, "PRAGMA integrity_check")[0][0] == "ok"


async def test_a_checkpoint_that_fails_does_not_fail_the_commit_before_it(small_log, monkeypatch):
    def refuse(*_arguments, **_options):
        raise sqlite3.OperationalError("unable to open database file")

    batch = await fill(small_log, 200)
    monkeypatch.setattr(checkpoint.sqlite3, "connect", refuse)
    await log_sizes(small_log, 50)
    monkeypatch.undo()
    assert states(small_log, batch) == {"done": 200}


async def test_a_log_that_cannot_be_looked_at_does_not_fail_a_commit(small_log, monkeypatch):
    def refuse(*_arguments, **_options):
        raise PermissionError

    batch = await fill(small_log, 200)
    connect = sqlite3.connect

    def connect_and_lose_the_log(*arguments, **options):
        monkeypatch.setattr(Path, "stat", refuse)
        return connect(*arguments, **options)

    monkeypatch.setattr(checkpoint.sqlite3, "connect", connect_and_lose_the_log)
    hand = Hand(small_log)
    while claims := await hand.claim(4):
        await hand.settle(*(done(claim, "x" * 4_000) for claim in claims))
    monkeypatch.undo()
    assert states(small_log, batch) == {"done": 200}


async def test_the_last_to_close_leaves_one_file(path, clock):
    async with await open_queue(path, clock) as store:
        await fill(store, 1)
        with closing(store.watch()) as watcher:
            assert not watcher.changed()
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_settlement_keeps_its_claim_and_its_reason():
    claim = Claim(1, 1, None, 0, None, "", 1, 0, 0)
    settlement = settle(Ended(claim, Failed(Reason("timeout", "slow", 504)), 3))
    assert (settlement.state, settlement.reason.status) == (JobState.FAILED, 504)


async def test_what_an_exporter_counts_lies_behind_the_millisecond_that_goes_on(store, clock):
    batch = await fill(store, 2)
    hand = Hand(store)
    first, second = await hand.claim(2)
    await hand.settle(done(second))
    page = await store.ended(batch.id, FinishedPlace(), 0)
    assert page.jobs == ()
    await hand.settle(done(first))  # in the same millisecond, with the lower id
    clock.advance(1_000)
    assert len((await store.ended(batch.id, page.place, 0)).jobs) == 2
