"""How close batchq comes to what a provider's rate limit allows, with nothing configured and with `--rpm`.

A limiter with a bucket of `burst` calls that fills with `rate` per second lets n calls through in
(n - burst) / rate seconds at best, from the first arrival to the last: that is the ideal of every row.
All processes are up and registered, and the jobs are enqueued, before the batch is resumed; clients and
connections are not opened before. Times and counts are the provider's ledger's. A 429 is a wasted call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from batchq.pacing import Limits
from batchq.store import open_store
from scripts.benchmarks.queues import MODEL, ask, make_queue, prompts, resume, wait_until_empty, workers
from scripts.benchmarks.sizes import Plan
from scripts.benchmarks.table import Row
from tests.fake_provider import running_provider

LATENCY = 0.05
MINUTE_RPM, MINUTE_BURST = 600, 2  # the burst that batchq takes where none is configured


@dataclass(frozen=True, slots=True)
class Case:
    """A limiter, what is sent through it by whom, and how much of the ideal time that may take, if anybody says."""

    jobs: int
    required: float | None
    processes: int = 1
    slots: int = 16
    rate: float = 20
    burst: float = 5
    retry_after: float | None = 1
    rpm: float | None = None

    @property
    def ideal(self) -> float:
        """Seconds from the first call to the last, if none is early and none late."""
        return (self.jobs - self.burst) / self.rate

    @property
    def name(self) -> str:
        """The row's name."""
        who = f"{self.slots} slots" if self.processes == 1 else f"{self.processes} processes of {self.slots}"
        asked = "no Retry-After" if self.retry_after is None else f"Retry-After {self.retry_after:g}"
        told = "" if self.rpm is None else f", --rpm {self.rpm:g}"
        return f"{self.jobs} calls by {who} at {self.rate:g}/s, burst {self.burst:g}, {asked}{told}, against the ideal"


@dataclass(frozen=True, slots=True)
class Seen:
    """What the provider saw, and the rate that the lane had come to, in calls per second."""

    ledger: dict[str, Any]
    learned: float | None
    arrivals: list[float] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """From the first arrival to the last."""
        return self.arrivals[-1] - self.arrivals[0]


def measure(plan: Plan) -> list[Row]:
    """Time through limiters against the ideal; then what four processes make of `--rpm` without a limiter."""
    return [*(_measure_case(plan, case) for case in _cases(plan)), *_measure_configured(plan)]


def _cases(plan: Plan) -> Iterator[Case]:
    sizes = plan.sizes
    yield Case(100, 2)
    yield Case(100, 2, processes=4, slots=4)
    if sizes.long_limited_jobs:
        yield Case(sizes.long_limited_jobs, 1.25)
        yield Case(sizes.long_limited_jobs, 1.25, processes=4, slots=4)
    yield Case(100, 1.1, rpm=1200)
    if not sizes.further_limiters:
        return
    yield Case(100, 1.1, processes=4, slots=4, rpm=1200)
    yield Case(100, None, burst=1)
    yield Case(300, None, burst=100)
    yield Case(20, None, rate=2, burst=2)
    yield Case(4_000, None, slots=64, rate=500)
    yield Case(4_000, None, processes=4, slots=16, rate=500)
    yield Case(100, None, retry_after=None)
    yield Case(600, None, retry_after=None)
    yield Case(4_000, None, slots=64, rate=500, retry_after=None)
    yield Case(20, None, rate=2, burst=2, retry_after=None)


def _measure_case(plan: Plan, case: Case) -> Row:
    limiter = {"rate": case.rate, "burst": case.burst, "retry_after": case.retry_after}
    seen = _send(plan, case.jobs, case.processes, case.slots, case.rpm, limiter)
    wasted, most = seen.ledger["rejected"], seen.ledger["per_second"]
    note = f"{seen.seconds:.2f} s against {case.ideal:.2f}; {wasted} wasted 429s; at most {most} calls in a second"
    if seen.learned is not None:
        note += f"; learned {seen.learned:.1f}/s"
    return Row(case.name, seen.seconds / case.ideal, case.required, note, at_most=True)


def _measure_configured(plan: Plan) -> list[Row]:
    """Four processes of 4 under `--rpm 600`, before a provider that takes everything.

    While there is work, so many calls should start as the limit allows: the time from the first to the
    last, if none were late, relative to the time that it took. And no window of time, neither the whole
    minute of the provider's books nor a shorter one, should see more than its share and the burst.
    """
    jobs, rate = plan.sizes.minute_jobs, MINUTE_RPM / 60
    seen = _send(plan, jobs, 4, 4, MINUTE_RPM, {})
    ideal = (jobs - MINUTE_BURST) / rate
    window = 60.0 if seen.seconds > 65 else 10.0
    most, allowed = most_within(seen.arrivals, window), rate * window + MINUTE_BURST
    second = most_within(seen.arrivals, 1.0)
    title = f"--rpm {MINUTE_RPM} with 4 processes of 4, no limiter behind it: "
    return [
        Row(
            f"{title}share of the limit used",
            ideal / seen.seconds,
            0.9,
            f"{jobs} calls in {seen.seconds:.2f} s against {ideal:.2f}",
        ),
        Row(
            f"{title}most calls in {window:g} s, of {MINUTE_RPM}/min and a burst of {MINUTE_BURST}",
            most / allowed,
            1.01,
            f"{most} calls against {allowed:g}; {second} in one second against {rate + MINUTE_BURST:g}",
            at_most=True,
        ),
    ]


def most_within(arrivals: list[float], window: float) -> int:
    """Return the most arrivals in any half-open window of so many seconds."""
    most = first = 0
    for last, arrival in enumerate(arrivals):
        while arrivals[first] <= arrival - window:
            first += 1
        most = max(most, last - first + 1)
    return most


def _send(
    plan: Plan, jobs: int, processes: int, slots: int, rpm: float | None, behaviour: dict[str, float | None]
) -> Seen:
    """Send so many prompts through a provider of this behaviour; all must be answered, once each."""
    queue = plan.directory / "queue.db"
    with running_provider(latency=LATENCY, **behaviour) as provider:
        make_queue(queue, "openrouter", {"main": prompts(jobs)}, paused="main")
        if rpm is not None:
            asyncio.run(_limit(str(queue), provider.base_url, Limits(rpm=rpm)))
        with workers(queue, processes, slots, f"--base-url={provider.base_url}") as started:
            resume(queue, "main")
            wait_until_empty(queue, "main", started)
            ledger = provider.ledger(times=True)
    if ledger["answered"] != jobs or ledger["calls"] != jobs + ledger["rejected"]:
        raise RuntimeError(f"{ledger['by_status']} instead of {jobs} answers: nothing was measured")
    learned = ask(queue, "SELECT max(learned_rate) FROM lanes")
    return Seen(ledger, learned, [float(arrival) for arrival, _ in ledger["times"]])


async def _limit(path: str, base_url: str, limits: Limits) -> None:
    async with await open_store(path) as store:
        await store.set_limits("openrouter", base_url, MODEL, limits)
