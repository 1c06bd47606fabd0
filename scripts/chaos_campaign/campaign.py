"""One campaign: workers meet their faults beside a producer and a collector that die; then all is judged."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from itertools import islice, takewhile
from pathlib import Path
from threading import Event

from batchq.store import open_store
from scripts.chaos_campaign.crew import Slot
from scripts.chaos_campaign.faults import Fault, Kind, Schedule
from scripts.chaos_campaign.ground import CampaignError, Ground, forked, wait_for
from scripts.chaos_campaign.history import History, Job, read_calls, read_rows, watch
from scripts.chaos_campaign.judge import OTHER, Breach, judge
from scripts.chaos_campaign.supply import Collector, Supply
from scripts.chaos_campaign.verdict import Verdict
from tests.fake_provider import Provider, running_provider

# Most calls are short; some outlast a lease, which has to be renewed meanwhile.
LATENCY, SPREAD = 0.2, 0.08
STRAGGLERS, STRAGGLE = 0.15, 1.2
MAX_ATTEMPTS = 8
# A job that was lost again and again waits for up to two minutes.
DRAIN_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Plan:
    """How large a campaign is. `deaths` are those of each collect that follows a batch.

    `calm` kills come behind all others; after `seconds` no fault is begun any more but these.
    """

    schedule: Schedule
    lease_seconds: float = 1.0
    concurrency: int = 4
    rows: int = 400
    batches: int = 4
    deaths: int = 2
    calm: int = 12
    seconds: float = float("inf")


def run(plan: Plan, directory: Path, location: str, say: Callable[[str], None]) -> Verdict:
    """Run a campaign on an empty database, and judge it. Raises CampaignError where it came to a standstill."""
    forked.forking_process()  # before there are threads
    with (
        running_provider(latency=LATENCY, spread=SPREAD, slow_fraction=STRAGGLERS, slow_latency=STRAGGLE) as provider,
        closing(Ground(directory, location, provider.base_url)) as ground,
    ):
        return _Campaign(plan, ground, provider, say).run()


class _Campaign:
    def __init__(self, plan: Plan, ground: Ground, provider: Provider, say: Callable[[str], None]) -> None:
        self._plan, self._ground, self._provider, self._say = plan, ground, provider, say
        schedule = plan.schedule
        self._slots = [Slot(ground, plan.lease_seconds, plan.concurrency) for _ in range(schedule.workers)]
        at_once = schedule.workers * plan.concurrency
        self._supply = Supply(ground, schedule, plan.rows, enough=3 * at_once)
        self._collector = Collector(ground, schedule)
        self._began = self._last_fault = time.monotonic()

    def run(self) -> Verdict:
        asyncio.run(_make_queue(self._ground.location))
        watch(self._ground.location)
        self._have_faults()
        drained = self._drain()
        for slot in self._slots:
            slot.dismiss()
        history = self._history()
        breaches = [*judge(history), *self._surprises(), *self._check(history.jobs)]
        killed = self._supply.killed + self._collector.killed
        return Verdict(history, breaches, killed, self._plan.schedule.seed, time.monotonic() - self._began, drained)

    def _have_faults(self) -> None:
        """Let everything happen at the same time, until each slot has met its faults."""
        schedule = self._plan.schedule
        over = Event()
        deadline = self._began + self._plan.seconds
        go_on = lambda: not over.is_set() and time.monotonic() < deadline  # noqa: E731
        with ThreadPoolExecutor(len(self._slots) + 2) as pool:
            self._supply.enqueue("first", None)
            met: list[Future[None]] = [
                pool.submit(slot.meet, _while(go_on, schedule.of_worker(number)), self._progress)
                for number, slot in enumerate(self._slots)
            ]
            others = [
                pool.submit(self._supply.go_on, over.is_set, at_least=self._plan.batches),
                pool.submit(self._collector.go_on, self._supply.sealed, over.is_set, deaths=self._plan.deaths),
            ]
            try:
                for future in wait(met, return_when=FIRST_EXCEPTION).done:
                    future.result()
                self._have_calm_faults()
            finally:
                over.set()
                self._last_fault = time.monotonic()
        for future in others:
            future.result()

    def _have_calm_faults(self) -> None:
        for number, fault in enumerate(islice(self._plan.schedule.calm(), self._plan.calm)):
            self._slots[number % len(self._slots)].meet_calmly(fault)

    def _progress(self) -> None:
        blows = [blow for slot in self._slots for blow in slot.blows]
        if len(blows) % 25 == 0:
            kills = sum(blow.kind == Kind.KILL.value for blow in blows)
            done = self._ground.count("state = 'done'")
            seconds = time.monotonic() - self._began
            self._say(f"{seconds:5.0f} s: {len(blows)} faults, {kills} of them kills; {done} jobs done")

    def _drain(self) -> float:
        """Wait until nothing is left to do; return the seconds since the last fault."""
        wait_for(lambda: self._ground.count("finished_at IS NULL") == 0, "the queue to drain", DRAIN_SECONDS)
        return time.monotonic() - self._last_fault

    def _history(self) -> History:
        jobs, attempts, moves = read_rows(self._ground.location)
        calls, strays = read_calls(self._provider.ledger(prompts=True))
        blows = sorted((blow for slot in self._slots for blow in slot.blows), key=lambda blow: blow.at)
        lease_ms = round(self._plan.lease_seconds * 1000)
        return History(self._supply.prompts, jobs, attempts, moves, calls, strays, blows, lease_ms, MAX_ATTEMPTS)

    def _surprises(self) -> Iterator[Breach]:
        for slot in self._slots:
            for surprise in slot.surprises:
                yield Breach(OTHER, surprise)
        for words in self._ground.tracebacks():
            yield Breach(OTHER, f"a traceback: {words}")

    def _check(self, jobs: Sequence[Job]) -> Iterator[Breach]:
        """Ask batchq itself, and collect every batch twice."""
        try:
            self._ground.run("db", "check")
        except CampaignError as error:
            yield Breach(OTHER, str(error))
        faults = self._plan.schedule.of_collector()
        wanted: dict[str, list[tuple[int, str]]] = {name: [] for name in self._supply.prompts}
        for job in sorted(jobs, key=lambda job: job.position):
            wanted[job.batch].append((job.position, job.result or "null"))
        for name, rows in wanted.items():
            first, second = self._collector.collect_twice(name, next(faults))
            if first != second:
                yield Breach(OTHER, f"{name} collected twice is not the same")
            if _rows_of(first) != rows:
                yield Breach(OTHER, f"what was collected of {name} is not what its jobs say, in order")
            if name in self._collector.files and self._followed(name) != first:
                yield Breach(OTHER, f"{name} as it was followed is not what was collected")

    def _followed(self, name: str) -> bytes:
        return (self._ground.directory / self._collector.files[name]).read_bytes()


def _while(condition: Callable[[], bool], faults: Iterable[Fault]) -> Iterator[Fault]:
    return takewhile(lambda _: condition(), faults)


def _rows_of(collected: bytes) -> list[tuple[int, str]]:
    rows = [json.loads(line) for line in collected.splitlines()]
    return [(row["position"], json.dumps(row.get("result"))) for row in rows]


async def _make_queue(location: str) -> None:
    async with await open_store(location, create=True):
        pass
