"""The two tasks that all tools run, and what they leave behind for the judge.

`nothing` counts its runs, so that its process knows when all have begun. `sleeping` writes a line to a
ledger when it begins and one when it ends, so that what was run twice is not asked of the tool.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from itertools import count

LEDGER = "PEERS_LEDGER"
SLEEP_SECONDS = 2.0


class Runs:
    """Counts the runs of `nothing` in this process."""

    def __init__(self) -> None:
        self.began = 0.0
        self.expected = 0
        self.all = threading.Event()
        self._numbers = count(1)

    def add(self) -> None:
        number = next(self._numbers)
        if number == 1:
            self.began = time.time()
        if number == self.expected:
            self.all.set()


runs = Runs()


def nothing() -> str:
    """Return at once."""
    runs.add()
    return "ok"


async def sleeping(number: int) -> str:
    """Sleep between two lines of the ledger."""
    note("start", number)
    await asyncio.sleep(SLEEP_SECONDS)
    note("end", number)
    return "ok"


def sleeping_thread(number: int) -> str:
    """Do the same where tasks are run by threads."""
    note("start", number)
    time.sleep(SLEEP_SECONDS)
    note("end", number)
    return "ok"


def note(event: str, number: int) -> None:
    """Append one line to the ledger, in one write."""
    file = os.open(os.environ[LEDGER], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, f"{event} {number} {os.getpid()} {time.time():.3f}\n".encode())
    finally:
        os.close(file)
