"""A worker tells systemd how it stands: the protocol of `man 3 sd_notify`, of which a datagram is all there is."""

from __future__ import annotations

import faulthandler
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Self

from batchq.jobs import Phase, RunnerReport

# A runner comes round every few seconds; whoever waits for its start or its end waits this much longer each time.
_LONGER_SECONDS = 60.0
# What a runner takes to settle and say goodbye when its drain is over.
_LEAVE_SECONDS = 30.0


class Systemd:
    """Watches over a runner by telling the service manager: that it is ready, how it stands, that its loop goes on."""

    def __init__(self, address: str, *, watchdog: bool) -> None:
        """Tell whoever listens at `address`, and feed its watchdog if it has one for this process."""
        # A name that begins with @ is one of Linux's own that stand in no directory.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._watchdog = watchdog
        self._ready = self._stopping = False

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Self | None:
        """Return who waits for word from this process; None if it was not started so.

        With a watchdog, a process that it aborts leaves the stacks of its threads on stderr, with no value in them.
        """
        address = environment.get("NOTIFY_SOCKET", "")
        if not address.startswith(("/", "@")):
            return None
        # It may be one of our parent's, which we have the variables of.
        own = environment.get("WATCHDOG_PID") in {None, "", str(os.getpid())}
        watchdog = own and _is_positive(environment.get("WATCHDOG_USEC", ""))
        if watchdog:
            with suppress(OSError, ValueError, AttributeError):  # no stderr
                faulthandler.enable()
        return cls(address, watchdog=watchdog)

    def came_round(self, report: RunnerReport) -> None:
        """Tell how it stands. Whoever does not listen misses it."""
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.setblocking(False)
            channel.sendto("\n".join(self._words(report)).encode(), self._address)
            self._ready |= report.phase is not Phase.STARTING
            self._stopping |= _ends(report)

    def _words(self, report: RunnerReport) -> list[str]:
        words = [f"STATUS={status_of(report)}"]
        if report.phase is Phase.STARTING:
            return [*words, _longer(_LONGER_SECONDS)]
        if not self._ready:
            words.append("READY=1")
        if self._watchdog:
            words.append("WATCHDOG=1")
        if _ends(report):
            words += [] if self._stopping else ["STOPPING=1"]
            words.append(_longer((report.drain_seconds or 0.0) + _LEAVE_SECONDS))
        return words


def status_of(report: RunnerReport) -> str:
    """Return how a runner stands as one line. Why its database is away is left to the log: all may read this."""
    counts = f"{report.in_flight:,} in flight, {report.done:,} done, {report.failed:,} failed"
    if report.phase is Phase.STOPPED:
        return f"stopped; {counts}"
    if report.drain_seconds is not None:
        counts = f"draining, {report.drain_seconds:.0f} s left; {counts}"
    if report.away is not None:
        return f"waiting for its database; {counts}"
    return f"starting; {counts}" if report.phase is Phase.STARTING else counts


def _ends(report: RunnerReport) -> bool:
    return report.phase in {Phase.DRAINING, Phase.STOPPED}


def _longer(seconds: float) -> str:
    return f"EXTEND_TIMEOUT_USEC={round(seconds * 1_000_000)}"


def _is_positive(microseconds: str) -> bool:
    return microseconds.isdecimal() and int(microseconds) > 0
