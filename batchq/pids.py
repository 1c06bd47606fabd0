"""Whether a process that a row of `runners` names has ended, where that can be told for sure."""

from __future__ import annotations

import os
import socket
import sys
from functools import cache
from pathlib import Path

from batchq.jobs import RunnerInfo

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_NAMESPACE = Path("/proc/self/ns/pid")


@cache
def pid_space() -> str | None:
    """Return what all processes share that see each other's pids; None where that can't be told.

    Containers may share a host's name and not its pids (man 7 pid_namespaces).
    """
    if sys.platform == "darwin":
        return socket.gethostname()
    try:
        return f"{_BOOT.read_text(encoding='ascii').strip()} {_NAMESPACE.readlink()}"
    except OSError:
        return None


def is_gone(runner: RunnerInfo) -> bool:
    """Whether a runner's process has ended, though its last word is younger than its lease."""
    if runner.pid_space is None or runner.pid_space != pid_space():
        return False
    try:
        os.kill(runner.pid, 0)
    except ProcessLookupError:
        return True
    except OSError:  # it is another user's
        return False
    return False
