"""A worker says in a file that its loop comes round: for `batchq health`, which asks nobody else."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from errno import ENOSPC

from batchq import log
from batchq.clock import uptime
from batchq.errors import ConfigurationError
from batchq.jobs import Phase, RunnerIdentity, RunnerReport
from batchq.supervision.health import PREFIX, RECORD_BYTES, SUFFIX, Heartbeat, look_at_workers
from batchq.supervision.runtime import RuntimeDirectory


class HeartbeatFile:
    """Watches over a runner by writing down that it came round, in a file that goes when it stops."""

    def __init__(self, directory: RuntimeDirectory, runner: RunnerIdentity) -> None:
        """Write into `directory`; the file is made when the runner first comes round."""
        self._directory = directory
        self._runner = runner
        self._name = f"{PREFIX}{runner.id}{SUFFIX}"
        self._file: int | None = None
        self._told = False

    def came_round(self, report: RunnerReport) -> None:
        """Write it down; what can't be written is told once."""
        try:
            if report.phase is Phase.STOPPED:
                self._remove()
            else:
                self._write(report)
        except (OSError, ConfigurationError) as error:
            if not self._told:
                self._told = True
                where = str(self._directory.path)
                log.get_logger().warning(log.HEALTH_UNTOLD, reason=str(error), directory=where, meaning=log.WHY_UNTOLD)

    def _write(self, report: RunnerReport) -> None:
        beat = Heartbeat(
            id=self._runner.id,
            pid=self._runner.pid,
            phase=report.phase,
            concurrency=report.concurrency,
            in_flight=report.in_flight,
            done=report.done,
            failed=report.failed,
            database_away=report.away is not None,  # the reason may name a server
            lease_seconds=self._runner.lease_ms / 1000,
            at=round(uptime(), 3),
        )
        # Whoever cleans temporary directories may have taken it away.
        if self._file is not None and not os.fstat(self._file).st_nlink:
            os.close(self._file)
            self._file = None
        if self._file is None:
            self._file = self._make(beat)
        else:
            _put(self._file, beat)

    def _make(self, beat: Heartbeat) -> int:
        """Make the file, locked and whole before it has its name; take those away that nobody holds."""
        with self._directory.opened(make=True) as directory:
            look_at_workers(self._directory)
            draft = f".{self._name}"
            with suppress(FileNotFoundError):
                os.unlink(draft, dir_fd=directory)
            file = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=directory)
            try:
                # Of this process alone: a lock of flock() would live on in what a worker's function forks.
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.fchmod(file, 0o644)  # the directory says who may read
                _put(file, beat)
                os.rename(draft, self._name, src_dir_fd=directory, dst_dir_fd=directory)
            except OSError:
                os.close(file)
                with suppress(OSError):
                    os.unlink(draft, dir_fd=directory)
                raise
            return file

    def _remove(self) -> None:
        if self._file is None:
            return
        file, self._file = self._file, None
        try:
            with self._directory.opened() as directory, suppress(FileNotFoundError):
                os.unlink(self._name, dir_fd=directory)
        finally:
            os.close(file)


def _put(file: int, beat: Heartbeat) -> None:
    if os.pwrite(file, beat.encoded(), 0) < RECORD_BYTES:
        raise OSError(ENOSPC, os.strerror(ENOSPC))
