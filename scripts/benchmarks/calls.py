"""Calls to a provider: how close batchq comes to loops that keep no queue.

The fake provider runs in a process of its own, the workers and the bare loops in theirs. Every rate is
taken from the provider's ledger, the same way for all: calls over the time from the first arrival to the
last answer, which is the last arrival and the latency. Before that every slot has made one slow call, so
that imports, clients and connections are there; for batchq, the jobs are enqueued and held back by a
paused batch until then.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from batchq.discovery import find_worker
from batchq.log import set_up_logging
from batchq.process import run_event_loop, run_until_signalled
from batchq.runner import Runner, RunnerOptions
from batchq.store import open_store
from batchq.worker import Endpoint
from scripts.benchmarks.bare import aiohttp_loop, post_cpu_seconds, sdk_loop
from scripts.benchmarks.processes import child, in_child
from scripts.benchmarks.queues import ask, make_queue, prompts, resume, wait_until_empty, workers
from scripts.benchmarks.sizes import Plan, interleaved
from scripts.benchmarks.table import Row
from tests.fake_provider import Provider, running_provider

SLOTS, WIDE_SLOTS = 64, 512
# Long enough for a second process to take its part before the first asks for more.
WARM_UP = "[[sleep 1.2]]"
BARE_WARM_UP_SECONDS = 2.5

Loop = Callable[[str, int, int, float], int]


def measure_zero_latency(plan: Plan) -> list[Row]:
    """Zero latency, 64 slots, against 64 tasks of a bare asyncio loop over `chat.completions.create`."""
    sizes = plan.sizes
    with _provider(0) as provider:
        found = interleaved(
            sizes.rounds,
            partial(_batchq, plan, provider, sizes.fast_calls, 1, SLOTS),
            partial(_bare, sdk_loop, provider, sizes.sdk_calls, 1, SLOTS),
        )
    ours, theirs = (max(rates) for rates in found)
    note = f"{ours:,.0f} calls/s against {theirs:,.0f} (default client and loop); best of {sizes.rounds}"
    return [Row("calls/s at zero latency, 64 slots, against the bare OpenAI SDK", ours / theirs, 2, note)]


def measure_cpu(plan: Plan) -> list[Row]:
    """CPU per call at zero latency, 64 slots, against 64 tasks of a bare loop over the SDK's `client.post`.

    batchq: all threads of a worker process, claims and commits included. Both from when the same number of slow
    calls has been made, which leaves out imports.
    """
    sizes = plan.sizes
    with _provider(0) as provider:
        found = interleaved(
            sizes.rounds,
            partial(_batchq_cpu, plan, provider, sizes.fast_calls),
            partial(in_child, post_cpu_seconds, provider.base_url, SLOTS, sizes.fast_calls),
        )
    ours, theirs = (min(seconds) / sizes.fast_calls * 1e6 for seconds in found)
    note = f"{ours:,.0f} us against {theirs:,.0f}; best of {sizes.rounds}"
    return [
        Row("CPU per call, 64 slots, against a bare loop over `client.post`", ours / theirs, 1.6, note, at_most=True)
    ]


def worker_cpu_seconds(warm_up: str, queue: str, base_url: str) -> float:
    """Run the jobs of two queues, one after the other, as `batchq worker` does; return the CPU time of the second."""
    set_up_logging("error")
    return run_event_loop(partial(_run_both, warm_up, queue, base_url))


async def _run_both(warm_up: str, queue: str, base_url: str) -> float:
    await _run_all(warm_up, base_url)
    began = time.process_time()
    await _run_all(queue, base_url)
    return time.process_time() - began


async def _run_all(queue: str, base_url: str) -> None:
    worker, endpoint = find_worker("openrouter"), Endpoint("default", base_url)
    async with await open_store(queue) as store:
        options = RunnerOptions(SLOTS, until_empty=True)
        runner = Runner(store, {worker.name: worker}, {endpoint.name: endpoint}, options)
        await run_until_signalled(runner, partial(print, file=sys.stderr))


def measure_latency(plan: Plan) -> list[Row]:
    """50 ms latency, 64 slots, against 64 tasks of a bare aiohttp loop, which has batchq's event loop."""
    sizes = plan.sizes
    with _provider(0.05) as provider:
        found = interleaved(
            sizes.rounds,
            partial(_batchq, plan, provider, sizes.slow_calls, 1, SLOTS),
            partial(_bare, aiohttp_loop, provider, sizes.slow_calls, 1, SLOTS),
        )
    ours, theirs = (max(rates) for rates in found)
    note = f"{ours:,.0f} calls/s against {theirs:,.0f}; the ideal is {SLOTS / 0.05:,.0f}; best of {sizes.rounds}"
    return [Row("calls/s at 50 ms, 64 slots, against bare aiohttp", ours / theirs, 0.9, note)]


def measure_wide(plan: Plan) -> list[Row]:
    """200 ms latency, 512 slots in one process and 256 in each of two, relative to the ideal of 2,560/s.

    Bare aiohttp loops, run once, show what the provider and the cores allow; they are not the baseline.
    """
    sizes, ideal = plan.sizes, WIDE_SLOTS / 0.2
    with _provider(0.2) as provider:
        found = interleaved(
            sizes.rounds,
            partial(_batchq, plan, provider, sizes.wide_calls, 1, WIDE_SLOTS),
            partial(_batchq, plan, provider, sizes.wide_calls, 2, WIDE_SLOTS),
        )
        bare_one, bare_two = (
            _bare(aiohttp_loop, provider, sizes.wide_calls, processes, WIDE_SLOTS) for processes in (1, 2)
        )
    one, two = (max(rates) for rates in found)
    title = "calls/s at 200 ms, 512 slots in {}, relative to the ideal"
    note = "{:,.0f} calls/s of {:,.0f}; bare aiohttp in {}: {:,.0f}; best of {}"
    return [
        Row(title.format("one process"), one / ideal, 0.5,
            note.format(one, ideal, "one process", bare_one, sizes.rounds)),
        Row(title.format("two (256 each)"), two / ideal, 0.9,
            note.format(two, ideal, "two processes", bare_two, sizes.rounds)),
    ]  # fmt: skip


@contextmanager
def _provider(latency: float) -> Iterator[Provider]:
    with running_provider(latency=latency, uvloop=True) as provider:
        yield provider


def _batchq(plan: Plan, provider: Provider, calls: int, processes: int, slots: int) -> float:
    """Return the calls/s of `batchq worker` processes that share `slots`."""
    queue = plan.directory / "queue.db"
    warm_up = (f"{WARM_UP} {number}" for number in range(slots))
    make_queue(queue, "openrouter", {"warm-up": warm_up, "main": prompts(calls)}, paused="main")
    with workers(queue, processes, slots // processes, f"--base-url={provider.base_url}") as started:
        wait_until_empty(queue, "warm-up", started)
        if ask(queue, "SELECT count(DISTINCT claimed_by) FROM jobs") != processes:
            raise RuntimeError("the processes did not share the warm-up: nothing was measured")
        provider.reset()
        resume(queue, "main")
        wait_until_empty(queue, "main", started)
        return _rate(provider, calls)


def _batchq_cpu(plan: Plan, provider: Provider, calls: int) -> float:
    """Return the CPU time that one worker process spends on so many calls."""
    warm_up, queue = plan.directory / "warm-up.db", plan.directory / "queue.db"
    make_queue(warm_up, "openrouter", {"main": (f"{WARM_UP} {number}" for number in range(SLOTS))})
    make_queue(queue, "openrouter", {"main": prompts(calls)})
    provider.reset()
    seconds = in_child(worker_cpu_seconds, str(warm_up), str(queue), provider.base_url)
    if provider.ledger()["calls"] != SLOTS + calls:
        raise RuntimeError("not every prompt was asked once: nothing was measured")
    return seconds


def _bare(loop: Loop, provider: Provider, calls: int, processes: int, slots: int) -> float:
    """Return the calls/s of a bare loop, in processes that share `slots`."""
    provider.reset()
    start_at = time.time() + BARE_WARM_UP_SECONDS
    with ExitStack() as stack:
        arguments = (provider.base_url, slots // processes, calls // processes, start_at)
        for finish in [stack.enter_context(child(loop, *arguments)) for _ in range(processes)]:
            finish()
    return _rate(provider, calls, skip=slots)


def _rate(provider: Provider, calls: int, *, skip: int = 0) -> float:
    arrivals = provider.ledger(times=True)["times"][skip:]
    if [status for _, status in arrivals] != [200] * calls:
        raise RuntimeError(f"{len(arrivals)} calls instead of {calls}, or not all answered: nothing was measured")
    latency = float(provider.behave()["latency"])
    first, last = float(arrivals[0][0]), float(arrivals[-1][0])
    return calls / (last - first + latency)
