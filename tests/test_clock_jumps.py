"""The database's clock is set forward and back, under workers and between them: nothing is lost, doubled or held up."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import anyio
import pytest
from fake_provider import Provider, running_provider
from processes import ON_BOTH, Bench, bench_for, wait_for
from set_clock import SetClock
from store_driver import (
    LEASE_MS,
    SERVING,
    Clock,
    Hand,
    fill,
    halted,
    identity,
    job_row,
    new_jobs,
    open_queue,
    retry,
    rows,
    throttled,
)  # fmt: skip
from structlog.testing import capture_logs

from batchq.discovery import FoundWorker, _always, adapt
from batchq.jobs import NewBatch
from batchq.pacing import LaneState, Limits, lane
from batchq.runner import Runner, RunnerOptions, Stop
from batchq.worker import Endpoint

HOUR = 3_600
HOUR_MS = HOUR * 1_000


@pytest.fixture
def place(request, tmp_path):
    with bench_for(request, tmp_path, PYTHONPATH=str(Path(__file__).parent)) as made:
        made.module = "set_clock"
        yield made


@pytest.fixture
def set_clock(place):
    """The clock of the database, as all processes of the bench see it."""
    file = place.directory / "clock"
    file.write_text("0")
    place.environment["CLOCK_FILE"] = str(file)
    return SetClock(file)


def enqueue(place: Bench, count: int, name: str, *options: str) -> None:
    prompts = place.directory / f"{name}.txt"
    prompts.write_text("".join(f"{name} {number}\n" for number in range(count)))
    added = place.run("enqueue", str(prompts), "--model", "m", *options)
    assert added.returncode == 0, added.stderr


def worker(place: Bench, provider: Provider, *options: str, **more) -> subprocess.Popen:
    return place.start("worker", "--base-url", provider.base_url, "--concurrency", "4", *options, **more)


def told(place: Bench, process: subprocess.Popen, event: str) -> list[dict]:
    lines = [json.loads(line) for line in place.errors(process).splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == event]


def all_was_asked_once(place: Bench, provider: Provider, jobs: int) -> bool:
    assert place.query("SELECT state, attempts, losses, count(*) FROM jobs GROUP BY 1, 2, 3") == [("done", 1, 0, jobs)]
    ledger = provider.ledger(prompts=True)
    return (ledger["calls"], len(ledger["prompts"])) == (jobs, jobs)


@ON_BOTH
def test_an_hour_forward_and_back_under_running_workers_costs_nothing(place, set_clock):
    with running_provider(latency=0.5) as provider:
        # A limit, whose bucket would not fill for an hour; and jobs of an hour that is still to come.
        enqueue(place, 40, "before", "--rpm", "6000")
        workers = [worker(place, provider) for _ in range(2)]
        wait_for(lambda: place.count("done") >= 4 and all(map(place.held_by, workers)), "the first answers")

        set_clock.set(HOUR)
        enqueue(place, 40, "meanwhile")
        wait_for(lambda: place.count("done") >= 24, "answers under the clock that was set forward")
        set_clock.set(0)
        wait_for(lambda: place.count("done") == 80, "all answers")

        for process in workers:
            # Each hears of it with its next exchange: two seconds at most while all slots are taken, 5 for its beat.
            wait_for(lambda process=process: len(told(place, process, "clock.set")) == 2, "what they say of it")
            jumps = [line["seconds"] for line in told(place, process, "clock.set")]
            assert jumps == [pytest.approx(HOUR, abs=10), pytest.approx(-HOUR, abs=10)]
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        assert all_was_asked_once(place, provider, 80)


@ON_BOTH
def test_the_jobs_of_the_dead_do_not_wait_until_the_clock_is_where_it_was(place, set_clock):
    with running_provider(latency=60) as provider:
        set_clock.set(HOUR)
        enqueue(place, 4, "before")
        dead = worker(place, provider, "--lease", "2s")
        wait_for(lambda: place.held_by(dead) == 4, "four calls in flight")
        dead.kill()
        set_clock.set(0)
        provider.behave(latency=0)

        alive = worker(place, provider, "--lease", "2s", "--until-empty")

        assert alive.wait(60) == 0, place.errors(alive)
        assert place.query("SELECT DISTINCT state, losses FROM jobs") == [("done", 1)]


@pytest.mark.parametrize("place", ["postgresql"], indirect=True)
def test_workers_whose_own_clocks_are_wrong_by_ten_minutes_work_as_any(place):
    with running_provider(latency=0.2) as provider:
        enqueue(place, 40, "prompts")
        workers = [
            worker(place, provider, "--lease", "4s", "--until-empty", env={"OWN_CLOCK_OFF": off})
            for off in ("-600", "600")
        ]
        assert [process.wait(60) for process in workers] == [0, 0]
        assert all_was_asked_once(place, provider, 40)
        times = "created_at <= claimed_at AND claimed_at <= finished_at AND finished_at - created_at < 60000"
        assert place.query(f"SELECT count(*) FROM jobs WHERE {times}") == [(40,)]


@pytest.mark.anyio
async def test_who_notices_that_the_clock_was_set_back_moves_all_that_waits(store, clock):
    batch = await fill(store, 6)
    await store.set_limits("echo", SERVING[0].base_url, "", Limits(rpm=60_000))
    dead, alive = Hand(store, "dead"), Hand(store, "alive")
    for hand in (dead, alive):
        await store.register(hand.runner)
    (left,) = await dead.claim()
    later, kept = await alive.claim(2)
    await alive.settle(retry(later, after=30))
    clock.advance(-HOUR_MS)
    await store.keep_alive(batch)  # somebody has a time of now

    reply = await alive.send(alive.request(renew=True, beat=True))

    assert (reply.lost, job_row(store, kept.job_id)["claimable_at"]) == (frozenset(), clock.now + LEASE_MS)
    assert job_row(store, left.job_id)["claimable_at"] == clock.now + LEASE_MS
    assert job_row(store, later.job_id)["claimable_at"] == clock.now + 30_000
    assert rows(store, "SELECT DISTINCT seen_at FROM runners")[0]["seen_at"] == clock.now
    assert len(await alive.claim(6)) == 3
    clock.advance(30_000)
    assert [claim.job_id for claim in await alive.claim(6)] == [later.job_id]
    clock.advance(LEASE_MS - 30_000)
    assert left.job_id in [claim.job_id for claim in await Hand(store, "third").claim(6)]


@pytest.mark.anyio
async def test_pauses_and_halts_of_lanes_last_no_longer_because_the_clock_was_set_back(store, clock):
    await fill(store, 6, "paused", model="p")
    await fill(store, 6, "halted", model="h")
    hand = Hand(store)
    await store.register(hand.runner)
    (refused,) = await hand.claim(1, batch_ids=[1])
    await hand.settle(throttled(refused, after=30))
    (halting,) = await hand.claim(1, batch_ids=[2])
    await hand.settle(halted(halting))
    clock.advance(-HOUR_MS)

    await hand.send(hand.request(beat=True))

    assert await hand.claim(6) == ()
    clock.advance(1_000)  # the halted one lets a job through
    assert [claim.batch.name for claim in await hand.claim(6)] == ["halted"]
    clock.advance(29_000)
    assert {claim.batch.name for claim in await hand.claim(6)} == {"paused"}


@pytest.mark.anyio
async def test_who_starts_after_the_clock_was_set_back_finds_what_producers_left(store, clock):
    await fill(store, 3)
    clock.advance(-HOUR_MS)
    hand = Hand(store)
    assert await hand.claim(3) == ()

    await store.register(hand.runner)

    assert len(await hand.claim(3)) == 3


@pytest.mark.anyio
async def test_two_who_notice_it_at_once_move_all_once(store, location, clock):
    await fill(store, 2)
    hand = Hand(store)
    await store.register(hand.runner)
    (claim,) = await hand.claim()
    await hand.settle(retry(claim, after=7_200))
    clock.advance(-HOUR_MS)
    async with await open_queue(location, clock) as other, anyio.create_task_group() as group:
        for index, one in enumerate((store, other, store, other)):
            group.start_soon(one.register, identity(f"starts {index}"))
    assert job_row(store, claim.job_id)["claimable_at"] == clock.now + 7_200_000


@pytest.mark.anyio
async def test_a_step_that_may_be_a_matter_of_waiting_moves_nothing(store, clock):
    await fill(store, 1)
    hand = Hand(store)
    await store.register(hand.runner)
    clock.advance(-59_000)
    await hand.send(hand.request(beat=True))
    assert await hand.claim() == ()


@pytest.mark.anyio
async def test_expired_rows_are_spared_by_whoever_sees_the_clock_set_forward(store, clock):
    await fill(store, 2)
    holder, other = Hand(store, "holder"), Hand(store, "other")
    await holder.claim(2)
    clock.advance(HOUR_MS)
    assert await other.claim(2, clock_by=clock.now - 1) == ()
    assert (await other.send(other.request(slots=2, clock_by=clock.now - 1))).wake_in_ms is None
    await holder.renew()
    assert await other.claim(2, clock_by=clock.now) == ()


def test_a_gap_in_which_nobody_called_is_not_taken_for_an_hour_without_a_429():
    state = LaneState(
        "lane", "echo", "http://x/v1", "m",
        learned_rate=10.0, rate_at_last_429=10.0, saturated=True, resumed_at=0, refilled_at=1_000, learned_left=1.0,
    )  # fmt: skip
    moments = (1_000 + 100, 1_000 + HOUR_MS)
    rates = [lane.draw(lane.wake(state, now, 0), 1, 1, now).learned_rate for now in moments]
    assert rates[1] == pytest.approx(rates[0], rel=0.01)
    assert 10 < rates[0] < 10.1


async def upper(prompt):
    await anyio.sleep(0.01)
    return prompt.upper()


def test_a_producer_that_slept_as_long_as_the_runner_is_not_taken_for_dead(location):
    clock = Clock()

    async def main() -> None:
        workers = {"w": FoundWorker("w", _always(adapt(upper)))}
        endpoints = {"default": Endpoint("default", "http://127.0.0.1:1/v1")}
        async with await open_queue(location, clock) as store:
            batch = await store.open_batch(NewBatch("b", "w"))
            await store.add_jobs(batch, new_jobs(3))
            runner = Runner(store, workers, endpoints, RunnerOptions(until_empty=True, lease_ms=8_000))
            ends: list[Stop] = []

            async def run() -> None:
                ends.append(await runner.run())

            async with anyio.create_task_group() as group:
                group.start_soon(run)
                await until(lambda: states_of(store) == {"done"})
                clock.advance(30 * 60_000)
                await anyio.sleep(1.0)  # it looks four times meanwhile
                await store.seal(batch)
            assert ends == [Stop.EMPTY]

    with capture_logs():
        anyio.run(main)


def states_of(store) -> set[str]:
    return {row["state"] for row in rows(store, "SELECT DISTINCT state FROM jobs")}


async def until(condition) -> None:
    with anyio.fail_after(30):
        while not condition():
            await anyio.sleep(0.01)
