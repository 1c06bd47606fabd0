"""Whether the workers on this machine are well, by the files in which they say so: no database, no provider.

A worker holds a lock on its file as long as it lives, which no other process inherits: a file that can be locked is
that of a worker that was killed, whoever has its pid by now.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from typing import Self

from batchq.clock import uptime
from batchq.supervision.runtime import RuntimeDirectory

PREFIX, SUFFIX = "worker-", ".json"
# Always as many bytes, written in place: once the file is there, a full disk keeps nobody from saying that he is well.
RECORD_BYTES = 512
# A worker says how it is once a second.
LEAST_LEASE_SECONDS = 3.0
_TRIES, _RETRY_SECONDS = 3, 0.01


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """What a worker says of itself; `at` is when its loop came round, by the clock of `batchq.clock.uptime`."""

    id: str
    pid: int
    phase: str
    concurrency: int
    in_flight: int
    done: int
    failed: int
    database_away: bool
    lease_seconds: float
    at: float

    def encoded(self) -> bytes:
        """Return it as a line of JSON, filled up with blanks."""
        return json.dumps(asdict(self)).encode().ljust(RECORD_BYTES - 1) + b"\n"

    @classmethod
    def decoded(cls, text: bytes) -> Self | None:
        """Return what a file holds; None where it is nothing that a worker has written."""
        try:
            found = json.loads(text)
            values = {field.name: found[field.name] for field in fields(cls)}
        except (ValueError, TypeError, KeyError, RecursionError):
            return None
        texts = [values.get(name) for name in ("id", "phase")]
        numbers = [value for name, value in values.items() if name not in {"id", "phase"}]
        if all(isinstance(text, str) for text in texts) and all(isinstance(number, int | float) for number in numbers):
            return cls(**values)
        return None


@dataclass(frozen=True, slots=True)
class WorkerHealth:
    """A worker on this machine; one that has `ended` without a word was killed, or its machine was."""

    last: Heartbeat
    silent_seconds: float
    ended: bool = False

    @property
    def healthy(self) -> bool:
        """Whether its loop has come round within its lease: after that, others may run its jobs."""
        return not self.ended and self.silent_seconds <= max(self.last.lease_seconds, LEAST_LEASE_SECONDS)

    def is_called(self, name: str) -> bool:
        """Whether it has this pid, or an id that begins so."""
        return name == str(self.last.pid) or (len(name) >= 4 and self.last.id.startswith(name))


def look_at_workers(directory: RuntimeDirectory) -> list[WorkerHealth]:
    """Return all workers that wrote into a directory, and take the files away of those that have ended.

    A process that has a heartbeat of its own can't ask: it would lose the lock on it. Raises OSError, and
    ConfigurationError where others could have written there.
    """
    with directory.opened() as opened:
        owners = {0, os.geteuid(), os.fstat(opened).st_uid}
        names = sorted(os.listdir(opened))  # noqa: PTH208 - of what is open, whatever has its name by now
        wrote = [name for name in names if name.startswith(PREFIX) and name.endswith(SUFFIX)]
        return [worker for name in wrote for worker in _look_at(opened, name, owners)]


def _look_at(directory: int, name: str, owners: set[int]) -> Iterator[WorkerHealth]:
    try:
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
    except OSError:  # it has said goodbye meanwhile, or it is no file
        return
    try:
        about = os.fstat(file)
        if not stat.S_ISREG(about.st_mode) or about.st_uid not in owners:
            return
        last, ended = _read(file), _has_ended(file)
        if not os.fstat(file).st_nlink:  # it said goodbye at this very moment
            return
        if ended:
            with suppress(OSError):  # another has taken it away, or this user may only read
                os.unlink(name, dir_fd=directory)
        if last is not None:
            yield WorkerHealth(last, max(0.0, round(uptime() - last.at, 1)), ended)
    finally:
        os.close(file)


def _read(file: int) -> Heartbeat | None:
    """Read a heartbeat; again where it was written in that moment."""
    for _ in range(_TRIES):
        if (beat := Heartbeat.decoded(os.pread(file, RECORD_BYTES, 0))) is not None:
            return beat
        time.sleep(_RETRY_SECONDS)
    return None


def _has_ended(file: int) -> bool:
    try:
        fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    fcntl.lockf(file, fcntl.LOCK_UN)
    return True
