"""Who watches over a worker process hears of its loop: while it works, drains, and waits for its database."""

import anyio
import pytest
from test_runner import Away, enqueue, in_queue, rows, runner, until, upper

from batchq.jobs import JobState, Phase, RunnerReport
from batchq.runner import Stop
from batchq.supervision import watch_over
from batchq.worker import Reject


class Remembers:
    """A watch that keeps what it heard."""

    def __init__(self) -> None:
        self.heard: list[RunnerReport] = []

    def came_round(self, report: RunnerReport) -> None:
        self.heard.append(report)

    @property
    def phases(self) -> list[Phase]:
        phases = [report.phase for report in self.heard]
        return [phase for at, phase in enumerate(phases) if at == 0 or phase is not phases[at - 1]]


@pytest.fixture
def queue(location):
    return in_queue(location)


def test_a_watch_hears_of_each_phase_and_of_what_was_done(queue):
    async def test(store):
        await enqueue(store, 20)

        async def worker(prompt):
            if prompt == "p3":
                raise Reject("not this one")
            return prompt

        watched, watch = runner(store, worker), Remembers()
        watch_over(watched, [watch])

        assert await watched.run() is Stop.EMPTY

        assert watch.phases == [Phase.STARTING, Phase.RUNNING, Phase.STOPPED]
        last = watch.heard[-1]
        assert (last.done, last.failed, last.in_flight, last.away, last.drain_seconds) == (19, 1, 0, None, None)

    queue(test)


def test_a_last_try_that_is_repeated_no_more_counts_as_failed(queue):
    async def test(store):
        await enqueue(store, 3, max_attempts=1)

        async def worker(prompt):
            raise RuntimeError("no answer")

        watched, watch = runner(store, worker), Remembers()
        watch_over(watched, [watch])
        await watched.run()

        assert (watch.heard[-1].done, watch.heard[-1].failed) == (0, 3)

    queue(test)


def test_one_that_drains_says_how_long_that_may_take_and_what_is_at_work(queue):
    async def test(store):
        await enqueue(store, 2)
        may_end = anyio.Event()

        async def worker(prompt):
            await may_end.wait()
            return prompt

        watched, watch = runner(store, worker, drain_seconds=20.0), Remembers()
        watch_over(watched, [watch])
        async with anyio.create_task_group() as group:
            group.start_soon(watched.run)
            await until(lambda: watched.in_flight == 2)
            assert sorted(call.claim.position for call in watched.calls()) == [0, 1]
            assert all(0 <= call.seconds < 20 for call in watched.calls())
            watched.stop()
            await until(lambda: watch.heard[-1].phase is Phase.DRAINING)
            draining = watch.heard[-1]
            may_end.set()

        assert draining.in_flight == 2
        assert 0 < draining.drain_seconds <= 20
        assert watch.phases[-1] is Phase.STOPPED

    queue(test)


def test_one_that_waits_for_its_database_comes_round_and_says_so(queue):
    async def test(store):
        await enqueue(store, 3)
        away = Away(store, "exchange")
        watched, watch = runner(store, upper), Remembers()
        watch_over(watched, [watch])
        async with anyio.create_task_group() as group:
            group.start_soon(watched.run)
            await until(lambda: sum(report.away == "gone" for report in watch.heard) >= 2)
            away.back = True

        assert {row.state for row in await rows(store)} == {JobState.DONE}
        assert watch.heard[-1].away is None

    queue(test)


def test_a_loop_that_is_stuck_tells_nobody(queue):
    async def test(store):
        await enqueue(store, 1)
        watch = Remembers()
        watched = runner(store, upper, until_empty=False)
        watch_over(watched, [watch])
        async with anyio.create_task_group() as group:
            group.start_soon(watched.run)
            await until(lambda: any(report.done for report in watch.heard))
            asked, may_go_on = anyio.Event(), anyio.Event()
            exchange = store.exchange

            async def stuck(request):
                asked.set()
                await may_go_on.wait()
                return await exchange(request)

            store.exchange = stuck
            with anyio.fail_after(20):
                await asked.wait()
            told = len(watch.heard)
            await anyio.sleep(1.5)  # more than a second, by which one that goes on would have told
            assert len(watch.heard) == told
            may_go_on.set()
            await until(lambda: len(watch.heard) > told)
            watched.stop()

    queue(test)
