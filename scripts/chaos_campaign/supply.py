"""The producer and the collector: batches for as long as there are faults, by processes that die and go on."""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from scripts.chaos_campaign.faults import Fault, Schedule
from scripts.chaos_campaign.ground import CampaignError, Ground, Process

_KILLED = -signal.SIGKILL
# A job that was lost again and again waits for minutes before its next attempt.
_BATCH_SECONDS = 900.0


@dataclass
class Supply:
    """Enqueues batch after batch, so that there is always work; `prompts` are those enqueued, by batch, in order."""

    ground: Ground
    schedule: Schedule
    rows: int
    enough: int
    prompts: dict[str, list[str]] = field(default_factory=dict)
    sealed: list[str] = field(default_factory=list)
    killed: Counter[str] = field(default_factory=Counter)

    def go_on(self, over: Callable[[], bool], *, at_least: int) -> None:
        """Keep `enough` jobs waiting until it is over, in `at_least` so many batches."""
        for number, fault in enumerate(self.schedule.of_producer()):
            while not over() and self.sealed and self.ground.count("state = 'pending'") >= self.enough:
                time.sleep(0.05)
            if over() and len(self.sealed) >= at_least:
                return
            self.enqueue(f"batch{number:03}", fault)

    def enqueue(self, name: str, fault: Fault | None) -> None:
        """Enqueue one batch, with a fault on the way, and again until it is whole."""
        self.prompts[name] = [f"{name} prompt {position}" for position in range(self.rows)]
        path = self.ground.directory / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in self.prompts[name]))
        command = ("enqueue", str(path), "--batch", name, "--model", "m")
        if fault is not None:
            process = self.ground.start(*command)
            self.killed["enqueue"] += _killed(process, fault)
        self.ground.run(*command)
        self.sealed.append(name)


@dataclass
class Collector:
    """Follows batches into files while they are worked on; it is killed and goes on."""

    ground: Ground
    schedule: Schedule
    files: dict[str, str] = field(default_factory=dict)
    killed: Counter[str] = field(default_factory=Counter)

    def go_on(self, sealed: list[str], over: Callable[[], bool], *, deaths: int) -> None:
        """Follow the newest batch to its end, with so many deaths on the way, and then another, until it is over."""
        faults = self.schedule.of_collector()
        while not (over() and self.files):
            fresh = [name for name in sealed if name not in self.files]
            if fresh:
                self.follow(fresh[-1], faults, deaths)
            time.sleep(0.05)

    def follow(self, name: str, faults: Iterator[Fault], deaths: int) -> None:
        """Follow a batch to its end."""
        self.files[name] = f"{name}.followed.jsonl"
        command = ("collect", name, "-o", self.files[name], "--follow")
        for _ in range(deaths):
            self.killed["collect --follow"] += _killed(self.ground.start(*command), next(faults))
        self.ground.run(*command, patience=_BATCH_SECONDS)

    def collect_twice(self, name: str, fault: Fault) -> tuple[bytes, bytes]:
        """Collect a batch that has ended: killed once, and then twice to the end; return both files."""
        place = self.ground.directory / f"{name}.collected.jsonl"
        self.killed["collect"] += _killed(self.ground.start("collect", name, "-o", str(place)), fault)
        torn = place.read_bytes() if place.exists() else None
        self.ground.run("collect", name, "-o", str(place))
        first = place.read_bytes()
        if torn not in {None, first}:
            raise CampaignError(f"a collect of {name} that was killed left a file that is not whole")
        self.ground.run("collect", name, "-o", str(place))
        return first, place.read_bytes()


def _killed(process: Process, fault: Fault) -> bool:
    """Kill a process at a point, or after some time of work; return whether it had not ended before."""
    if fault.point is not None:
        process.order(signal.SIGKILL, fault.point, fault.passing)
    else:
        time.sleep(fault.work)
        process.signal(signal.SIGKILL)
    if (code := process.ended(f"by a {fault}")) not in {0, _KILLED}:
        raise CampaignError(f"ended with {code}: {process.last_words()}")
    return code == _KILLED
