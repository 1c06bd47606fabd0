"""A provider that refuses, breaks and hangs at random: how close batchq comes to what its 429s allow.

What they allow. Every 429 names a Retry-After, which closes the whole lane from the moment that it is
known. With three refusals in ten calls, hardly any full round of calls is without one. So calls come in
rounds: at best, all slots start at once, the answers are there after the latency, and the next round
starts when the Retry-After that came with them is over. No schedule that honours Retry-After and has so
many slots makes its calls in less than

    ceil(calls / slots) * (Retry-After + latency)

and the call timeout is added for the last hang, during which nothing else may be left to do. `calls` is
what the provider counted; it is no merit of the queue's, since how many calls a prompt needs is drawn from
the prompt. Nothing is added for slots that other hangs occupy, for the back-off of calls that failed
otherwise, nor for last rounds that find fewer prompts than slots.

The mix applies to the first five calls of each prompt: all can end within the eight attempts of a job, of
which a 429 takes none. A storm that is not over after a multiple of its time is given up, and judged by the
calls that it would have needed on average.
"""

from __future__ import annotations

import asyncio
import math
import time
from pathlib import Path
from typing import Any

from batchq.store import open_store
from scripts.benchmarks.processes import wait_until
from scripts.benchmarks.queues import ask, make_queue, prompts, resume, workers
from scripts.benchmarks.sizes import Plan
from scripts.benchmarks.table import Row
from tests.fake_provider import running_provider

MIX = "429:0.3,500:0.05,502:0.05,whitespace:0.02,html:0.02,err200_empty_choices:0.01,hang:0.02"
SPOILED_CALLS = 5
PROCESSES, SLOTS = 4, 8
LATENCY, CALL_TIMEOUT = 0.1, 3.0
REQUIRED, GIVE_UP = 1.5, 5.0


def measure(plan: Plan) -> list[Row]:
    """Wall time of a storm by the provider's ledger, relative to what its 429s allow; all jobs end done."""
    return [row for retry_after in plan.sizes.storm_retry_afters for row in _measure(plan, retry_after)]


def allowed_seconds(calls: int, retry_after: float) -> float:
    """Return the least time that the storm's 429s leave for so many calls: see above."""
    return math.ceil(calls / (PROCESSES * SLOTS)) * (retry_after + LATENCY) + CALL_TIMEOUT


def calls_per_prompt() -> float:
    """Return how many calls a prompt needs on average: one, and one more for each that the mix spoils."""
    spoiled = sum(float(entry.rpartition(":")[2]) for entry in MIX.split(","))
    return sum(spoiled**call for call in range(SPOILED_CALLS + 1))


def _measure(plan: Plan, retry_after: float) -> list[Row]:
    jobs, queue = plan.sizes.storm_jobs, plan.directory / "queue.db"
    behaviour = {"error_mix": MIX, "error_calls": SPOILED_CALLS, "retry_after": retry_after, "latency": LATENCY}
    patience = GIVE_UP * allowed_seconds(round(jobs * calls_per_prompt()), retry_after)
    with running_provider(**behaviour) as provider:
        make_queue(queue, "openrouter", {"main": prompts(jobs)}, paused="main")
        asyncio.run(_time_out_early(queue))
        with workers(queue, PROCESSES, SLOTS, f"--base-url={provider.base_url}") as started:
            resume(queue, "main")
            deadline = time.monotonic() + patience
            wait_until(lambda: not _unfinished(queue) or time.monotonic() > deadline, "the end of the storm", *started)
            ledger = provider.ledger(times=True)
            left = _unfinished(queue)
    if ask(queue, "SELECT count(*) FROM jobs WHERE state = 'failed'"):
        raise RuntimeError("not all jobs ended done: nothing was measured")
    if ask(queue, "SELECT count(*) FROM attempts WHERE outcome = 'throttled' AND charged"):
        raise RuntimeError("429s were charged: nothing was measured")
    if not left and ledger["answered"] != jobs:
        raise RuntimeError(f"{ledger['answered']} answers instead of {jobs}: nothing was measured")
    return _rows(ledger, jobs, left, retry_after)


def _unfinished(queue: Path) -> int:
    return int(ask(queue, "SELECT count(*) FROM jobs WHERE finished_at IS NULL"))


def _rows(ledger: dict[str, Any], jobs: int, left: int, retry_after: float) -> list[Row]:
    arrivals, calls = ledger["times"], int(ledger["calls"])
    seconds = float(arrivals[-1][0]) - float(arrivals[0][0]) + LATENCY
    allowed = allowed_seconds(round(jobs * calls_per_prompt()) if left else calls, retry_after)
    refused, inside, hung = (int(ledger[name]) for name in ("rejected", "inside_retry_after", "cancelled"))
    ended = f"GIVEN UP with {left} of {jobs} prompts left" if left else "every prompt answered once"
    title = f"storm of {jobs} prompts, {PROCESSES} processes of {SLOTS}, Retry-After {retry_after:g}: "
    return [
        Row(
            f"{title}time against what it allows",
            seconds / allowed,
            REQUIRED,
            f"{seconds:.1f} s against {allowed:.1f}; {calls} calls, {refused} 429s, {hung} hangs; {ended}",
            at_most=True,
        ),
        Row(
            f"{title}calls that came inside a Retry-After",
            inside / calls,
            0.1,
            f"{inside} of {calls} calls, which were on their way when the 429 came",
            at_most=True,
        ),
    ]


async def _time_out_early(queue: Path) -> None:
    async with await open_store(str(queue)) as store:
        await store.update_policy(await store.batch("main"), {"call_timeout_ms": round(CALL_TIMEOUT * 1000)})
