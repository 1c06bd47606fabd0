"""Who watches over a worker process: each is told how its runner stands, as long as its loop comes round.

A loop that is stuck tells nobody anything, which is how they know. One that waits for a database that is away comes
round, too: it holds answers that were paid for, and nothing is gained by ending it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from batchq.clock import uptime
from batchq.jobs import Phase, RunnerReport

if TYPE_CHECKING:
    from batchq.runner import Runner

# The loop comes round many hundred times a second where there is much to do.
TELL_SECONDS = 1.0


class Watch(Protocol):
    """Somebody who watches over this process. What can't be told costs no call: it raises nothing."""

    def came_round(self, report: RunnerReport) -> None:
        """Hear that the runner's loop came round, at most once a second, and at once where its phase changes."""


def watch_over(runner: Runner, watches: Sequence[Watch]) -> None:
    """Let `watches` hear of a runner that has not begun."""
    if watches:
        runner.on_round = _Rounds(runner, watches).come_round


class _Rounds:
    """Tells of one round out of many."""

    def __init__(self, runner: Runner, watches: Sequence[Watch]) -> None:
        self._runner = runner
        self._watches = watches
        self._phase: Phase | None = None
        self._told_at = float("-inf")

    def come_round(self) -> None:
        now, phase = uptime(), self._runner.phase
        if phase is self._phase and now < self._told_at + TELL_SECONDS:
            return
        self._phase, self._told_at = phase, now
        report = self._runner.report()
        for watch in self._watches:
            watch.came_round(report)
