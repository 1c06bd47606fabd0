"""A worker says in its log how far it is: once a minute, where it has ended something since."""

from __future__ import annotations

from batchq import log
from batchq.clock import uptime
from batchq.jobs import Phase, RunnerIdentity, RunnerReport

EVERY_SECONDS = 60.0


class ProgressLog:
    """Watches over a runner by counting what it has ended since it was told the last time."""

    def __init__(self, runner: RunnerIdentity) -> None:
        """Begin to count."""
        self._log = log.get_logger().bind(worker=runner.id[:8])
        self._at = uptime()
        self._done = self._failed = 0

    def came_round(self, report: RunnerReport) -> None:
        """Tell, where it is time, or the last."""
        seconds = uptime() - self._at
        if seconds < EVERY_SECONDS and report.phase is not Phase.STOPPED:
            return
        done, failed = report.done - self._done, report.failed - self._failed
        if done or failed:
            self._log.info(
                log.WORKER_PROGRESS, done=done, failed=failed, in_flight=report.in_flight, seconds=round(seconds, 1)
            )
        self._at, self._done, self._failed = uptime(), report.done, report.failed
