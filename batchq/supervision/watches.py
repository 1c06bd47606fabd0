"""Who watches over a worker process: whoever its environment says is there."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from batchq.jobs import RunnerIdentity
from batchq.supervision import Watch
from batchq.supervision.progress import ProgressLog


def watches_of(environment: Mapping[str, str], runner: RunnerIdentity) -> list[Watch]:
    """Return who wants to hear of this process's runner."""
    watches: list[Watch] = [ProgressLog(runner)]
    if sys.platform != "win32":
        from batchq.supervision.heartbeat import HeartbeatFile
        from batchq.supervision.runtime import runtime_directory
        from batchq.supervision.systemd import Systemd

        watches.append(HeartbeatFile(runtime_directory(environment), runner))
        if (systemd := Systemd.of(environment)) is not None:
            watches.append(systemd)
    return watches
