"""The loop of a worker process, in this process: real store, real exchange, workers of the test's own."""

import asyncio
import json
import time
from contextlib import asynccontextmanager
from itertools import pairwise

import anyio
import pytest
import structlog
from raw_connection import connect
from structlog.testing import capture_logs

from batchq.database.postgres import engine
from batchq.discovery import FoundWorker, adapt
from batchq.errors import CannotGoOn, ConfigurationError, DatabaseUnavailable
from batchq.jobs import JobState, NewBatch, NewJob, Result, RunnerIdentity, Serving, Wants
from batchq.runner import Runner, RunnerOptions, Stop
from batchq.store import ExchangeRequest, Store, open_store
from batchq.worker import Endpoint, Halt, Reject, RetryLater, Throttled

REFUSE_ON_SQLITE = """
    CREATE TRIGGER refuse BEFORE UPDATE ON jobs WHEN NEW.result = '"poison"'
    BEGIN SELECT RAISE(ABORT, 'too big'); END
"""
REFUSE_ON_POSTGRES = """ALTER TABLE jobs ADD CHECK (result <> '"poison"')"""
ENDPOINTS = {"default": Endpoint("default", "http://127.0.0.1:1/v1")}
DEADLINE = 30.0


def found(name, function):
    from batchq.discovery import _always

    return {name: FoundWorker(name, _always(adapt(function)))}


async def enqueue(store: Store, count: int, name: str = "b", *, seal: bool = True, **options):
    batch = await store.open_batch(NewBatch(name, "w", **options))
    await store.add_jobs(batch, [NewJob(i, None, f"{i:032x}", json.dumps(f"p{i}")) for i in range(count)])
    if seal:
        await store.seal(batch)
    return await store.batch(name)


async def rows(store: Store, name: str = "b") -> list[Result]:
    return [result async for result in store.results(await store.batch(name))]


def runner(store, function, **options) -> Runner:
    options = {"until_empty": True, "lease_ms": 2_000} | options
    return Runner(store, found("w", function), ENDPOINTS, RunnerOptions(**options))


def in_queue(location):
    """Run an async test with an open store, within a deadline."""

    def run(test):
        async def main():
            with anyio.fail_after(DEADLINE):
                async with await open_store(location, create=True) as store:
                    await test(store)

        anyio.run(main)

    return run


@pytest.fixture
def queue(location):
    return in_queue(location)


async def upper(prompt):
    return prompt.upper()


def test_all_jobs_end_done_in_order(queue):
    async def test(store):
        await enqueue(store, 300)

        assert await runner(store, upper).run() is Stop.EMPTY

        assert [json.loads(row.result) for row in await rows(store)] == [f"P{i}" for i in range(300)]

    queue(test)


def test_no_more_than_the_concurrency_run_at_once(queue):
    async def test(store):
        await enqueue(store, 60)
        now = peak = 0

        async def worker(prompt):
            nonlocal now, peak
            now += 1
            peak = max(peak, now)
            await anyio.sleep(0.01)
            now -= 1
            return "ok"

        await runner(store, worker, concurrency=7).run()

        assert peak == 7

    queue(test)


def test_a_failing_job_never_stops_the_others(queue):
    async def test(store):
        await enqueue(store, 20, max_attempts=2)

        async def worker(prompt):
            if prompt == "p3":
                raise Reject("not this one")
            if prompt == "p4":
                raise SystemExit(1)
            return prompt

        await runner(store, worker).run()

        states = {row.position: (row.state, row.error_class) for row in await rows(store)}
        assert states.pop(3) == (JobState.FAILED, "rejected")
        assert states.pop(4) == (JobState.FAILED, "SystemExit")
        assert set(states.values()) == {(JobState.DONE, None)}

    queue(test)


def test_being_throttled_costs_no_attempt(queue):
    async def test(store):
        await enqueue(store, 1, max_attempts=2)
        calls = []

        async def worker(prompt):
            calls.append(time.monotonic())
            if len(calls) <= 3:
                raise Throttled("slow down", after=0.05)
            return "ok"

        await runner(store, worker).run()

        (row,) = await rows(store)
        assert (row.state, row.attempts, len(calls)) == (JobState.DONE, 1, 4)
        assert all(later - earlier >= 0.045 for earlier, later in pairwise(calls))

    queue(test)


def test_a_retry_waits_for_its_time_and_costs_an_attempt(queue):
    async def test(store):
        await enqueue(store, 1)
        calls = []

        async def worker(prompt):
            calls.append(time.monotonic())
            if len(calls) == 1:
                raise RetryLater("later", after=0.3)
            return "ok"

        await runner(store, worker).run()

        (row,) = await rows(store)
        assert (row.state, row.attempts) == (JobState.DONE, 2)
        assert calls[1] - calls[0] >= 0.3

    queue(test)


def test_a_halted_lane_ends_the_run_with_its_reason_and_loses_nothing(queue):
    async def test(store):
        await enqueue(store, 50)
        calls = 0

        async def worker(prompt):
            nonlocal calls
            calls += 1
            raise Halt("No auth credentials found")

        with pytest.raises(CannotGoOn, match="No auth credentials found"):
            await runner(store, worker, concurrency=4).run()

        progress = await store.progress("b")
        assert (progress.counts.pending, progress.counts.failed) == (50, 0)
        assert calls <= 5  # those in flight, and a probe
        assert {row.attempts for row in await rows(store)} == {0}

        assert await runner(store, upper).run() is Stop.EMPTY
        assert (await store.progress("b")).counts.done == 50

    queue(test)


@pytest.mark.parametrize("how", ["paused", "unsealed"])
def test_what_cannot_go_on_by_itself_is_said(queue, how):
    async def test(store):
        batch = await enqueue(store, 3, seal=how != "unsealed")
        if how == "paused":
            await store.pause(batch)
        else:
            with connect(store.location) as raw:
                raw.execute("UPDATE batches SET enqueue_until = 0")

        with pytest.raises(CannotGoOn, match="resume b" if how == "paused" else "seal b"):
            await runner(store, upper).run()

    queue(test)


def test_batches_of_others_are_left_alone(queue):
    async def test(store):
        batch = await store.open_batch(NewBatch("other", "unknown"))
        await store.add_jobs(batch, [NewJob(0, None, "0" * 32, '"x"')])
        await store.seal(batch)
        await enqueue(store, 3)

        assert await runner(store, upper).run() is Stop.EMPTY

        assert (await store.progress("other")).counts.pending == 1

    queue(test)


def test_a_worker_that_cannot_be_opened_ends_the_run_before_a_claim(queue):
    async def test(store):
        await enqueue(store, 3)

        def refuse(endpoint):
            raise ConfigurationError("needs a key")

        broken = Runner(store, {"w": FoundWorker("w", refuse)}, ENDPOINTS, RunnerOptions(until_empty=True))
        with pytest.raises(ConfigurationError, match="needs a key"):
            await broken.run()

        progress = await store.progress("b")
        assert (progress.counts.pending, progress.attempts) == (3, 0)

    queue(test)


def test_stopping_drains_what_runs_and_claims_no_more(queue):
    async def test(store):
        await enqueue(store, 100)
        started = anyio.Event()

        async def worker(prompt):
            started.set()
            await anyio.sleep(0.2)
            return "ok"

        running = runner(store, worker, concurrency=5, until_empty=False)
        async with anyio.create_task_group() as group:
            group.start_soon(stop_after, running, started)
            assert await running.run() is Stop.DRAINED

        counts = (await store.progress("b")).counts
        assert (counts.done, counts.inflight, counts.pending) == (5, 0, 95)

    queue(test)


async def stop_after(running: Runner, event: anyio.Event) -> None:
    await event.wait()
    running.stop()


def test_the_drain_deadline_releases_without_a_charge(queue):
    async def test(store):
        await enqueue(store, 10)
        started = anyio.Event()

        async def worker(prompt):
            started.set()
            await anyio.sleep_forever()

        running = runner(store, worker, concurrency=5, until_empty=False, drain_seconds=0.2)
        async with anyio.create_task_group() as group:
            group.start_soon(stop_after, running, started)
            assert await running.run() is Stop.RELEASED

        assert {(row.state, row.attempts) for row in await rows(store)} == {(JobState.PENDING, 0)}

    queue(test)


def test_cancelling_the_run_releases_what_it_holds(queue):
    async def test(store):
        await enqueue(store, 10)
        started = anyio.Event()

        async def worker(prompt):
            started.set()
            await anyio.sleep_forever()

        async with anyio.create_task_group() as group:
            group.start_soon(runner(store, worker, concurrency=5).run)
            await started.wait()
            group.cancel_scope.cancel()

        assert {(row.state, row.attempts) for row in await rows(store)} == {(JobState.PENDING, 0)}
        assert await store.runners() == ()

    queue(test)


def test_a_long_call_keeps_its_lease(queue):
    async def test(store):
        await enqueue(store, 1)
        calls = 0

        async def slow(prompt):
            nonlocal calls
            calls += 1
            await anyio.sleep(2.5)
            return "ok"

        async with anyio.create_task_group() as group:
            for _ in range(2):
                group.start_soon(runner(store, slow, lease_ms=1_000).run)

        (row,) = await rows(store)
        assert (calls, row.attempts) == (1, 1)

    queue(test)


def test_a_cancelled_batch_stops_its_calls(queue):
    async def test(store):
        batch = await enqueue(store, 8)
        started, ended = anyio.Event(), []

        async def worker(prompt):
            started.set()
            try:
                await anyio.sleep_forever()
            finally:
                ended.append(prompt)

        async with anyio.create_task_group() as group:
            group.start_soon(runner(store, worker, concurrency=4, lease_ms=1_000).run)
            await started.wait()
            await store.cancel(batch)

        assert len(ended) == 4
        assert {row.state for row in await rows(store)} == {JobState.CANCELLED}

    queue(test)


def test_a_job_taken_over_by_another_is_given_up(queue):
    async def test(store):
        await enqueue(store, 1)
        started, ended = anyio.Event(), anyio.Event()

        async def worker(prompt):
            started.set()
            try:
                await anyio.sleep_forever()
            finally:
                ended.set()

        running = runner(store, worker, until_empty=False, lease_ms=1_000)
        thief = RunnerIdentity("thief", "h", 1, 1, "w", 60_000)
        wants = Wants(1, (Serving("w", "default", ENDPOINTS["default"].base_url, opened=True),))
        with connect(store.location) as clock_jump:
            async with anyio.create_task_group() as group:
                group.start_soon(running.run)
                await started.wait()
                claims = ()
                while not claims:
                    clock_jump.execute("UPDATE jobs SET claimable_at = 0 WHERE state = 'inflight'")
                    claims = (await store.exchange(ExchangeRequest(thief, [], [], wants))).claims
                await ended.wait()
                running.stop()

        (row,) = await rows(store)
        assert row.state is JobState.INFLIGHT
        assert claims[0].losses == 1

    queue(test)


def test_a_locked_database_is_waited_out_with_the_results_in_hand(queue):
    async def test(store):
        await enqueue(store, 40)
        calls = 0

        async def worker(prompt):
            nonlocal calls
            calls += 1
            await anyio.sleep(0.05)
            return "ok"

        with connect(store.location) as other:
            async with anyio.create_task_group() as group:
                group.start_soon(runner(store, worker, concurrency=4).run)
                await until(lambda: calls >= 8)
                await anyio.to_thread.run_sync(other.lock_out_writers)
                await anyio.sleep(1.0)
                made = calls
                await anyio.sleep(0.5)
                assert calls == made
                other.execute("ROLLBACK")

        assert calls == 40
        assert {(row.state, row.attempts) for row in await rows(store)} == {(JobState.DONE, 1)}

    queue(test)


async def until(condition) -> None:
    with anyio.fail_after(DEADLINE):
        while not condition():
            await anyio.sleep(0.01)


def test_an_idle_runner_wakes_within_a_tenth_of_a_second(queue):
    async def test(store):
        await enqueue(store, 0, seal=False)
        done = []

        async def worker(prompt):
            done.append(time.monotonic())
            return "ok"

        running = runner(store, worker, until_empty=False)
        async with anyio.create_task_group() as group:
            group.start_soon(running.run)
            await anyio.sleep(0.5)
            waits = []
            for position in range(5):
                batch = await store.batch("b")
                await store.add_jobs(batch, [NewJob(position, None, f"{position:032x}", '"x"')])
                asked = time.monotonic()
                await until(lambda expected=position + 1: len(done) == expected)
                waits.append(done[-1] - asked)
                await anyio.sleep(0.2)
            running.stop()

        assert min(waits) < 0.1

    queue(test)


def test_the_one_result_that_cannot_be_stored_fails_alone(queue, monkeypatch):
    async def test(store):
        await enqueue(store, 30)
        with connect(store.location) as connection:
            connection.execute(REFUSE_ON_SQLITE if connection.is_sqlite else REFUSE_ON_POSTGRES)

        async def worker(prompt):
            return "poison" if prompt == "p7" else prompt

        await runner(store, worker).run()

        states = [(row.state, row.error_class) for row in await rows(store)]
        assert states.pop(7) == (JobState.FAILED, "unstorable")
        assert set(states) == {(JobState.DONE, None)}

    queue(test)


def test_a_client_that_opens_slowly_holds_up_nobody_else(queue):
    async def test(store):
        await enqueue(store, 20)
        other = await store.open_batch(NewBatch("slow", "slow"))
        await store.add_jobs(other, [NewJob(0, None, "0" * 32, '"x"')])
        await store.seal(other)
        order = []

        @asynccontextmanager
        async def open_slowly(endpoint):
            with anyio.fail_after(60):
                while len(order) < 20:
                    await anyio.sleep(0.01)

            async def call(request):
                order.append("slow")

            yield call

        async def quick(prompt):
            order.append("quick")

        workers = found("w", quick) | {"slow": FoundWorker("slow", open_slowly)}
        await Runner(store, workers, ENDPOINTS, RunnerOptions(until_empty=True, concurrency=4)).run()

        assert order == ["quick"] * 20 + ["slow"]

    queue(test)


def test_a_client_that_fails_to_open_costs_the_others_nothing(queue):
    async def test(store):
        await enqueue(store, 20)
        other = await store.open_batch(NewBatch("broken", "broken", priority=5))
        await store.add_jobs(other, [NewJob(0, None, "0" * 32, '"x"')])
        await store.seal(other)

        @asynccontextmanager
        async def refuse(endpoint):
            raise RuntimeError("no GPU")
            yield

        workers = found("w", upper) | {"broken": FoundWorker("broken", refuse)}
        with pytest.raises(ConfigurationError, match="no GPU"):
            await Runner(store, workers, ENDPOINTS, RunnerOptions(until_empty=True)).run()

        assert (await store.progress("b")).counts.done == 20
        assert (await store.progress("broken")).counts.pending == 1

    queue(test)


def test_a_client_with_a_task_group_of_its_own_is_closed_in_order(queue):
    async def test(store):
        await enqueue(store, 3)
        closed = []

        @asynccontextmanager
        async def opened(endpoint):
            async with anyio.create_task_group() as group:
                group.start_soon(anyio.sleep_forever)

                async def call(request):
                    return "ok"

                yield call
                group.cancel_scope.cancel()
            closed.append(True)

        assert (
            await Runner(store, {"w": FoundWorker("w", opened)}, ENDPOINTS, RunnerOptions(until_empty=True)).run()
            is Stop.EMPTY
        )
        assert closed == [True]

    queue(test)


def test_stopping_at_once_does_not_wait_for_a_lock(queue, monkeypatch):
    # On PostgreSQL a statement that has begun to wait for a row ends then; a runner that leaves may meet two.
    monkeypatch.setitem(engine.SESSION, "lock_timeout", "2s")

    async def test(store):
        await enqueue(store, 10)
        started = anyio.Event()

        async def worker(prompt):
            started.set()
            await anyio.sleep_forever()

        running = runner(store, worker, concurrency=4, until_empty=False)
        with connect(store.location) as other:
            async with anyio.create_task_group() as group:
                group.start_soon(running.run)
                await started.wait()
                await anyio.to_thread.run_sync(other.lock_out_writers)
                running.stop(now=True)
                began = time.monotonic()
            took = time.monotonic() - began
            other.execute("ROLLBACK")

        assert took < 15

    queue(test)


def test_a_call_that_ignores_its_cancellation_is_released_and_burns_no_cpu(queue):
    async def test(store):
        await enqueue(store, 4)
        started, let_go = anyio.Event(), anyio.Event()

        async def stubborn(prompt):
            started.set()
            with anyio.CancelScope(shield=True):
                await let_go.wait()
            return "late"

        running = runner(store, stubborn, concurrency=4, until_empty=False)
        async with anyio.create_task_group() as group:
            group.start_soon(running.run)
            await started.wait()
            running.stop(now=True)
            spent = time.process_time()
            await until_async(lambda: all_pending(store))
            assert time.process_time() - spent < 2
            let_go.set()

        assert {(row.state, row.attempts) for row in await rows(store)} == {(JobState.PENDING, 0)}

    queue(test)


async def all_pending(store: Store) -> bool:
    return (await store.progress("b")).counts.pending == 4


async def until_async(condition) -> None:
    with anyio.fail_after(DEADLINE):
        while not await condition():
            await anyio.sleep(0.05)


def test_a_native_cancellation_releases_what_it_holds(queue):
    async def test(store):
        await enqueue(store, 10)
        started = anyio.Event()

        async def worker(prompt):
            started.set()
            await anyio.sleep_forever()

        task = asyncio.create_task(runner(store, worker, concurrency=5).run())
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

        assert {(row.state, row.attempts) for row in await rows(store)} == {(JobState.PENDING, 0)}

    queue(test)


def test_an_abandoned_cancel_is_finished_by_any_runner(queue):
    async def test(store):
        await enqueue(store, 10)
        with connect(store.location) as raw:
            raw.execute("UPDATE batches SET state = 'cancelled'")
        running = runner(store, upper, until_empty=False)
        async with anyio.create_task_group() as group:
            group.start_soon(running.run)
            await until_async(lambda: finished(store))
            running.stop()

        assert {row.state for row in await rows(store)} == {JobState.CANCELLED}

    queue(test)


async def finished(store: Store) -> bool:
    return (await store.progress("b")).finished


def test_a_runner_that_is_to_end_when_empty_ends_soon_after_the_last_job(queue):
    async def test(store):
        await enqueue(store, 2)

        async def worker(prompt):
            await anyio.sleep(0.1 if prompt == "p0" else 0.2)
            return prompt

        began = time.monotonic()
        assert await runner(store, worker, concurrency=1, lease_ms=60_000).run() is Stop.EMPTY
        assert time.monotonic() - began < 4.0  # a beat is 5 s

    queue(test)


class Away:
    """A store of which some methods find the database away until it is `back`."""

    def __init__(self, store, *methods):
        self.tries = 0
        self.back = False
        for name in methods:
            setattr(store, name, self._behind(getattr(store, name)))

    def _behind(self, method):
        async def ask(*arguments):
            if not self.back:
                self.tries += 1
                raise DatabaseUnavailable("gone")
            return await method(*arguments)

        return ask


def test_a_runner_that_starts_while_the_database_is_away_waits_for_it(queue):
    async def test(store):
        await enqueue(store, 3)
        away = Away(store, "register")
        async with anyio.create_task_group() as group:
            group.start_soon(runner(store, upper).run)
            await until(lambda: away.tries >= 2)
            away.back = True
        assert {row.state for row in await rows(store)} == {JobState.DONE}

    queue(test)


@pytest.mark.parametrize("early", [True, False])
def test_a_runner_that_is_stopped_before_it_could_start_ends_at_once(queue, early):
    async def test(store):
        away, running = Away(store, "register", "exchange", "retire"), runner(store, upper)
        if early:
            running.stop()
        ended = []

        async def run():
            ended.append(await running.run())

        began = time.monotonic()
        async with anyio.create_task_group() as group:
            group.start_soon(run)
            if not early:
                await until(lambda: away.tries >= 2)
                running.stop()
        assert ended == [Stop.DRAINED]
        assert time.monotonic() - began < 8

    queue(test)


def test_what_ended_while_the_database_was_away_counts_as_in_hand_and_is_told_once_in_a_while(queue, monkeypatch):
    monkeypatch.setattr("batchq.conversation._TOLD_SECONDS", 2.0)
    monkeypatch.setattr("batchq.conversation._LAST_DELAY", 0.2)

    async def test(store):
        await enqueue(store, 4)
        went = anyio.Event()

        async def worker(prompt):
            await went.wait()
            return "ok"

        running = runner(store, worker, concurrency=4)
        with capture_logs() as told:
            running._conversation._log = running._log = structlog.get_logger()
            async with anyio.create_task_group() as group:
                group.start_soon(running.run)
                await until(lambda: running.in_flight == 4)
                away = Away(store, "exchange")
                await until(lambda: away.tries >= 2)
                went.set()
                await anyio.sleep(5.0)
                away.back = True
        held = [line["results_in_hand"] for line in told if line["event"] == "database.unavailable"]
        assert (held[0], held[-1]) == (0, 4)
        assert away.tries > 20
        assert len(held) <= 16
        assert [line["event"] for line in told].count("database.back") == 1

    queue(test)


def test_a_runner_without_rights_ends_and_says_so(queue):
    async def test(store):
        await enqueue(store, 1)

        async def refuse(_request):
            raise ConfigurationError("permission denied")

        store.exchange = refuse
        with pytest.raises(ConfigurationError, match="permission denied"):
            await runner(store, upper).run()

    queue(test)
