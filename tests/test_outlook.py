"""What a runner with nothing to do may still hope for."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace

import pytest
from store_driver import (
    LEASE_MS,
    SERVING,
    Clock,
    Hand,
    done,
    fill,
    halted,
    new_jobs,
    open_queue,
    retry,
    rows,
    throttled,
)

from batchq.jobs import Batch, BatchState, Lane, LiveBatch, Unfinished
from batchq.outlook import Blocked, Finished, Waiting, look_ahead, weigh

NOW = 1_800_000_000_000
OPEN = Batch(1, "demo", "echo", "default", "m", {}, 0, 8, 1_000, None, BatchState.OPEN, 4, NOW, NOW, NOW)
PAUSED = replace(OPEN, state=BatchState.PAUSED)
CANCELLED = replace(OPEN, state=BatchState.CANCELLED)
PURGING = replace(OPEN, state=BatchState.PURGING, sealed_at=None)
FOREIGN = replace(OPEN, id=2, name="foreign", worker="other")
ELSEWHERE = replace(OPEN, id=3, name="away", endpoint="elsewhere", sealed_at=None)
GROWING = replace(OPEN, id=4, name="grows", enqueue_until=NOW + 1, sealed_at=None)
ABANDONED = replace(OPEN, id=5, name="half", sealed_at=None)

URL = "http://ours/v1"
HALTED = Lane("echo", URL, "m", None, NOW - 1, NOW + 60_000, "no credit")
JUST_HALTED = replace(HALTED, probe_at=NOW + 1_000)
PROBED_IN_VAIN = replace(JUST_HALTED, vain_probes=1)
PROBING = replace(HALTED, probe_at=NOW)
TOLD_TO_WAIT = replace(PROBING, paused_until=NOW + 60_000)
OTHER_SERVER = replace(HALTED, base_url="http://theirs/v1")
OTHER_MODEL = replace(HALTED, model="n")
THROTTLED = Lane("echo", URL, "m", NOW + 60_000, None, None, "slow down")
RECOVERED = replace(THROTTLED, paused_until=NOW)

DUE, LATER, NEVER = NOW, NOW + 1, None
RUNNING, LOST, UNCLAIMED = NOW + 1, NOW, None


def outlook(live=(), unsealed=(), lanes=(), batch_ids=None):
    left = Unfinished(NOW, tuple(LiveBatch(*found) for found in live), tuple(unsealed), tuple(lanes))
    return weigh(left, {"echo"}, {"default": URL}, batch_ids)


def one(batch, due=DUE, leased=UNCLAIMED, *lanes):
    return outlook([(batch, due, leased)], lanes=lanes)


CASES = [
    (outlook(), Finished()),
    # In flight
    (one(OPEN, NEVER, RUNNING), "in flight elsewhere"),
    (one(PAUSED, DUE, RUNNING), "in flight elsewhere"),
    (one(OPEN, DUE, RUNNING, HALTED), "in flight elsewhere"),
    (one(OPEN, NEVER, LOST), "demo are about to start"),
    (one(OPEN, LATER, LOST), "demo are about to start"),
    (one(PAUSED, NEVER, LOST), Blocked(("demo is paused: `batchq resume demo`",))),
    (one(OPEN, NEVER, LOST, HALTED), Blocked),
    # Delays and lanes
    (one(OPEN), "demo are about to start"),
    (one(OPEN, LATER), "delayed by an earlier failure"),
    (one(OPEN, DUE, UNCLAIMED, THROTTLED), "throttled: slow down"),
    (one(OPEN, LATER, UNCLAIMED, RECOVERED), "delayed by an earlier failure"),
    (
        one(OPEN, DUE, UNCLAIMED, HALTED),
        Blocked(("demo is halted: no credit. When that is mended: `batchq resume demo`",)),
    ),
    (one(OPEN, LATER, UNCLAIMED, HALTED), Blocked),
    (one(OPEN, DUE, UNCLAIMED, JUST_HALTED), "wait for a probe of their lane: no credit"),
    (one(OPEN, DUE, UNCLAIMED, PROBED_IN_VAIN), Blocked),
    (one(OPEN, DUE, UNCLAIMED, PROBING), "demo are about to start"),
    (one(OPEN, DUE, UNCLAIMED, TOLD_TO_WAIT), Blocked),
    (one(OPEN, LATER, UNCLAIMED, OTHER_SERVER), "delayed by an earlier failure"),
    (one(OPEN, LATER, UNCLAIMED, OTHER_MODEL), "delayed by an earlier failure"),
    (one(OPEN, DUE, UNCLAIMED, OTHER_SERVER, HALTED, OTHER_MODEL), Blocked),
    # Operators
    (one(PAUSED), Blocked),
    (one(CANCELLED), "demo is being cancelled"),
    (one(PURGING), Finished()),
    # What is not served
    (one(FOREIGN), Finished(("foreign",))),
    (one(FOREIGN, DUE, RUNNING), Finished(("foreign",))),
    (one(ELSEWHERE), Finished(("away",))),
    (outlook(unsealed=[ELSEWHERE]), Finished(("away",))),
    (outlook([(ELSEWHERE, DUE, UNCLAIMED)], [ELSEWHERE]), Finished(("away",))),
    (outlook([(OPEN, DUE, UNCLAIMED), (FOREIGN, DUE, UNCLAIMED)], batch_ids={1}), "demo are about to start"),
    (outlook([(FOREIGN, DUE, UNCLAIMED)], batch_ids={1}), Finished()),
    # Producers
    (outlook(unsealed=[GROWING]), "a producer is adding to grows"),
    (outlook(unsealed=[ABANDONED]), Blocked),
    (outlook(unsealed=[ABANDONED], batch_ids={1}), Finished()),
    (outlook([(OPEN, LATER, UNCLAIMED)], [ABANDONED]), "delayed by an earlier failure"),
    (outlook([(PAUSED, DUE, UNCLAIMED)], [GROWING]), "a producer is adding to grows"),
]


@pytest.mark.parametrize(("found", "wanted"), CASES)
def test_what_is_left_is_weighed(found, wanted):
    if isinstance(wanted, str):
        assert isinstance(found, Waiting)
        assert re.search(wanted, found.reason)
    elif isinstance(wanted, type):
        assert isinstance(found, wanted)
    else:
        assert found == wanted


# On a real store


def in_store(tmp_path, body):
    async def main():
        clock = Clock()
        async with await open_queue(tmp_path / "queue.db", clock) as store:
            return await body(store, clock)

    return asyncio.run(main())


async def ahead(store):
    return await look_ahead(store, {"echo"}, {"default": SERVING[0].base_url})


def test_a_queue_is_seen_through_its_life(tmp_path):
    async def body(store, clock):
        seen = [await ahead(store)]
        await fill(store, 2, seal=False)
        hand, other = Hand(store), Hand(store, "other")
        (claim,) = await hand.claim()
        seen.append(await ahead(store))
        await hand.settle(retry(claim, after=5))
        await store.seal(claim.batch)
        (second,) = await other.claim()
        seen.append(await ahead(store))
        await other.settle(done(second))
        seen.append(await ahead(store))
        clock.advance(5_000)
        (claim,) = await hand.claim()
        await hand.settle(throttled(claim, after=30))
        seen.append(await ahead(store))
        clock.advance(30_000)
        (claim,) = await hand.claim()
        await hand.settle(halted(claim))
        seen.append(await ahead(store))
        clock.now = (await store.lanes())[0].probe_at
        await hand.settle(*map(halted, await hand.claim()))
        seen.append(await ahead(store))
        clock.now = (await store.lanes())[0].probe_at
        await hand.settle(*map(done, await hand.claim()))
        return [*seen, await ahead(store)]

    reasons = [found.reason if isinstance(found, Waiting) else found for found in in_store(tmp_path, body)]
    halt = f"demo is halted: no credit. When that is mended: `batchq resume demo --db {tmp_path / 'queue.db'}`"
    assert reasons == [
        Finished(),
        "jobs of demo are in flight elsewhere; a producer is adding to demo",
        "jobs of demo are in flight elsewhere",
        "jobs of demo are delayed by an earlier failure",
        "jobs of demo are throttled: slow down",
        "jobs of demo wait for a probe of their lane: no credit",
        Blocked((halt,)),
        Finished(),
    ]


def test_a_dead_workers_job_in_a_paused_batch_is_not_waited_for(tmp_path):
    async def body(store, clock):
        batch = await fill(store, 1)
        await Hand(store, "dead").claim()
        await store.pause(batch)
        clock.advance(LEASE_MS)
        return await ahead(store)

    assert isinstance(in_store(tmp_path, body), Blocked)


def test_the_halted_lane_of_another_server_does_not_block(tmp_path):
    async def body(store, clock):
        await fill(store, 1)
        hand = Hand(store)
        (claim,) = await hand.claim()
        await hand.settle(halted(claim))
        clock.now = (await store.lanes())[0].probe_at
        await hand.settle(*map(halted, await hand.claim()))
        return await look_ahead(store, {"echo"}, {"default": "http://another/v1"}), await ahead(store)

    elsewhere, here = in_store(tmp_path, body)
    assert isinstance(elsewhere, Waiting)
    assert isinstance(here, Blocked)


def test_a_producer_that_seals_at_any_moment_is_never_overlooked(tmp_path):
    """All of it is one read: between two, the last rows and the seal would make the queue look empty."""

    async def body(store, _clock):
        batch = await fill(store, 0, seal=False)
        read, reads = store._database.read, []

        async def read_then_seal(body):
            found = await read(body)
            reads.append(found)
            await store.add_jobs(batch, new_jobs(1))
            await store.seal(batch)
            return found

        store._database.read = read_then_seal
        found = await ahead(store)
        return found, len(reads)

    found, reads = in_store(tmp_path, body)
    assert isinstance(found, Waiting)
    assert reads == 1


def test_looking_ahead_writes_nothing(tmp_path):
    async def body(store, _clock):
        batch = await fill(store, 3)
        await store.pause(batch)
        await store._database.write(
            lambda transaction: transaction.connection.exec_driver_sql("UPDATE batches SET state = 'cancelled'")
        )
        watcher = store.watch()
        found = await ahead(store)
        changed = watcher.changed()
        watcher.close()
        return found, changed, rows(store, "SELECT DISTINCT state FROM jobs")[0][0]

    assert in_store(tmp_path, body) == (Waiting("demo is being cancelled"), False, "pending")
