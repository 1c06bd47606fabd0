"""The steady load: batches that are enqueued ahead, waited for, looked through and purged, round after round."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from batchq import Queue
from scripts.benchmarks.processes import BATCHQ

# Batches that wait behind the one being worked on, so that no worker is ever idle.
AHEAD = 2
_PATIENCE_SECONDS = 600.0


@dataclass
class Load:
    """A queue's batches of `jobs` prompts each. `checked` counts the answers that were as they must be."""

    queue: Queue
    jobs: int
    checked: int = 0
    _rounds: int = 0
    _enqueued: int = 0

    async def keep_ahead(self) -> None:
        """Enqueue until enough batches wait, one to come after the other."""
        while self._enqueued <= self._rounds + AHEAD:
            # Batches of one priority share the workers, and would all end at once.
            await self.queue.enqueue(
                self._prompts(self._enqueued),
                batch=f"soak-{self._enqueued}",
                model="fake/model",
                priority=-self._enqueued,
            )
            self._enqueued += 1

    async def finish_round(self) -> None:
        """Wait for the oldest batch, check each of its answers, and purge it. Raises RuntimeError."""
        name, wanted = f"soak-{self._rounds}", self._prompts(self._rounds)
        await self.queue.wait(name, timeout=_PATIENCE_SECONDS)
        found = [(result.position, result.value) async for result in self.queue.results(name)]
        if found != [(index, f"echo: {prompt}") for index, prompt in enumerate(wanted)]:
            raise RuntimeError(f"batch {name} has {len(found)} rows, and not the answers to its prompts")
        await self.queue.purge(name)
        self.checked += self.jobs
        self._rounds += 1

    def _prompts(self, number: int) -> list[str]:
        return [f"round {number}, question {index}: is it still as it was?" for index in range(self.jobs)]


def worker_command(location: str, base_url: str, concurrency: int) -> list[str | Path]:
    """Return the command of a worker on a queue."""
    flags = (f"--db={location}", f"--base-url={base_url}", f"--concurrency={concurrency}", "--log-level=warning")
    return [BATCHQ, "worker", *flags]


def check_running(processes: list[subprocess.Popen[str]]) -> None:
    """Raise RuntimeError where a worker has ended by itself."""
    if ended := [process.returncode for process in processes if process.poll() is not None]:
        raise RuntimeError(f"workers ended by themselves, with {ended}")
