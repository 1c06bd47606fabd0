"""The place of a campaign: a queue, a provider, and real batchq processes with points in them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from itertools import count
from pathlib import Path
from threading import Lock
from typing import Any

from tests import killpoints
from tests.killpoints import DIRECTORY, Order, Told
from tests.raw_connection import connect

# By the name that all tests know it by: one process imports what batchq needs, and forks for all of them.
forked: Any = import_module("forked")

PATIENCE = 90.0
_SETTINGS = ("BATCHQ_", "OPENROUTER_", "OPENAI_", "MODEL")


class CampaignError(Exception):
    """Something that a campaign waits for never came."""


def wait_for(condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:  # noqa: ANN401
    """Poll until `condition` is true, and return what it returned."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise CampaignError(f"waited {seconds:g} s in vain for {what}")
        time.sleep(0.02)
    return value


@dataclass
class Process:
    """A batchq process that passes points."""

    command: subprocess.Popen[str]
    told: Told
    errors: Path

    def order(self, number: signal.Signals, point: str, passing: int = 1) -> None:
        """Have it send itself a signal at a point."""
        self.told.give(Order(number, point, passing))

    def signal(self, number: signal.Signals) -> int:
        """Send it a signal; return when, in ms."""
        at = now_ms()
        self.command.send_signal(number)
        return at

    def ended(self, how: str, patience: float = PATIENCE) -> int:
        """Wait for its end; return its exit code."""
        try:
            wait_for(lambda: self.command.poll() is not None, f"a process to end {how}", patience)
        except CampaignError as error:
            raise CampaignError(f"{error}; it said: {self.last_words()}") from None
        return self.command.returncode

    def last_words(self) -> str:
        """Return the end of what it wrote to stderr."""
        return self.errors.read_text(errors="replace")[-600:]


@dataclass
class Ground:
    """A directory, the queue that is in it or on a server, and the provider that its workers call."""

    directory: Path
    location: str
    base_url: str
    started: list[Process] = field(default_factory=list)
    _numbers: count[int] = field(default_factory=count)
    _starting: Lock = field(default_factory=Lock)

    def start(self, *arguments: str) -> Process:
        """Start `batchq ARGUMENTS…`, with points."""
        with self._starting:
            place = self.directory / f"process-{next(self._numbers)}"
        place.mkdir()
        errors = place / "stderr"
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(_SETTINGS)}
        environment = inherited | {"BATCHQ_DB": self.location, DIRECTORY: str(place)}
        with (place / "stdout").open("w") as out, errors.open("w") as err:
            command = forked.Popen(
                [sys.executable, killpoints.__file__, *arguments],
                cwd=self.directory, env=environment, text=True, stdout=out, stderr=err,
            )  # fmt: skip
        process = Process(command, Told(place), errors)
        with self._starting:
            self.started.append(process)
        return process

    def run(self, *arguments: str, patience: float = PATIENCE) -> str:
        """Run a command to its end; return what it wrote to stdout. Raises CampaignError where it failed."""
        process = self.start(*arguments)
        if (code := process.ended(f"({' '.join(arguments)})", patience)) != 0:
            raise CampaignError(f"{' '.join(arguments)} ended with {code}: {process.last_words()}")
        return (process.errors.parent / "stdout").read_text()

    def count(self, condition: str) -> int:
        """Count the jobs that meet a condition."""
        with connect(self.location) as raw:
            return int(raw.tuples(f"SELECT count(*) FROM jobs WHERE {condition}")[0][0])

    def tracebacks(self) -> list[str]:
        """Return the last words of the processes that wrote a traceback."""
        return [process.last_words() for process in self.started if "Traceback" in process.errors.read_text()]

    def close(self) -> None:
        """End what still runs, by its id."""
        for process in self.started:
            if process.command.poll() is None:
                process.command.send_signal(signal.SIGCONT)
                process.command.kill()
        for process in self.started:
            process.command.wait(PATIENCE)


def now_ms() -> int:
    """Return the time by the clock of the machine."""
    return round(time.time() * 1000)
