"""SQLite's write-ahead log: how large it is, and which processes hold it back or keep all others from writing.

The system tells who holds which lock of a file (man 5 proc): SQLite's locks are bytes of the -shm file, one for the
writer, five for readers, one for whoever has the database open (sqlite.org/walformat.html#locks).
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import anyio

from batchq.database import CHECKPOINT_BYTES
from batchq.doctor.finding import Finding, ok, warning

LARGE_BYTES = 4 * CHECKPOINT_BYTES
# How long a lock must be held without a break to be told of: transactions of batchq take milliseconds.
HELD_SECONDS = 1.5
_LOOK_SECONDS = 0.1

_LOCKS = Path("/proc/locks")
_WRITE, _READS, _OPEN = 120, range(123, 128), 128
_MB = 1024**2
_SHOWN_COMMAND = 60


@dataclass(slots=True)
class Holders:
    """The processes that have a queue's file open, by their pids: who reads, who writes."""

    opened: set[int] = field(default_factory=set)
    reading: set[int] = field(default_factory=set)
    writing: set[int] = field(default_factory=set)


async def check_log(path: Path) -> AsyncIterator[Finding]:
    """Look at the log of a file, and at who is in its way."""
    log, index = path_beside(path, "-wal"), path_beside(path, "-shm")
    before = _state(log)
    opened, readers, writers = await _watch(index)
    stuck = [] if _state(log) != before else sorted(writers)
    for pid in stuck:
        yield warning(
            "locks",
            f"{_told(pid)} has held the write lock for {HELD_SECONDS:g} s or more: nobody else can commit",
            f"wait if it does something large; if it is stopped, `kill -CONT {pid}` or end it",
        )
    slow = sorted(readers - set(stuck))
    for pid in slow:
        yield warning(
            "locks",
            f"{_told(pid)} has been reading for {HELD_SECONDS:g} s or more: the log can't be folded in and grows",
            "end its transaction (COMMIT, or close the program)",
        )
    if not stuck and not slow:
        yield ok("locks", "nobody holds a lock for long" if opened is None else f"{_count(opened)}, none is in the way")
    yield _judge_size(before[0], opened, held=bool(slow))


def _judge_size(size: int, opened: set[int] | None, *, held: bool) -> Finding:
    told = f"the log (-wal) has {size / _MB:,.1f} MB" if size else "the log (-wal) is empty"
    if size > LARGE_BYTES:
        advice = (
            "see `locks` above" if held
            else "the next commits fold it in; if it goes on growing, run this again to see who reads for long"
        )  # fmt: skip
        return warning(
            "log", f"{told}, where {CHECKPOINT_BYTES / _MB:,.0f} MB are usual: a reader holds or held it back", advice
        )
    if size and opened is not None and not opened:
        return ok("log", f"{told}, left by a process that was killed: whoever opens the queue next goes on with it")
    return ok("log", told)


async def _watch(index: Path) -> tuple[set[int] | None, set[int], set[int]]:
    """Return who has the file open (None where that can't be told), and who reads, and who writes, all the time."""
    found = read_holders(index)
    if found is None:
        return None, set(), set()
    opened, readers, writers = found.opened, set(found.reading), set(found.writing)
    end = time.monotonic() + HELD_SECONDS
    while (readers or writers) and time.monotonic() < end:
        await anyio.sleep(_LOOK_SECONDS)
        found = read_holders(index) or Holders()
        # Whoever writes now and then is at work, though a look may find him reading each time.
        readers &= found.reading - (found.writing - writers)
        writers &= found.writing
    return opened, readers, writers


def read_holders(index: Path) -> Holders | None:
    """Return the other processes that hold locks on a -shm file; None where the system does not tell."""
    try:
        lines = _LOCKS.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    found = Holders()
    try:
        inode = str(index.stat().st_ino)
    except OSError:
        return found
    for mode, pid, first, last in _locks_of(inode, lines):
        if pid == os.getpid() or pid <= 0:
            continue
        if first <= _OPEN <= last:
            found.opened.add(pid)
        if mode == "WRITE" and first <= _WRITE <= last:
            found.writing.add(pid)
        if any(first <= byte <= last for byte in _READS):
            found.reading.add(pid)
    return found


def _locks_of(inode: str, lines: list[str]) -> Iterator[tuple[str, int, int, int]]:
    """Yield mode, pid, first and last byte of the locks of a file; one that is waited for has an arrow."""
    for line in lines:
        fields = line.split()
        if len(fields) == 8 and fields[5].rpartition(":")[2] == inode:
            last = 2**62 if fields[7] == "EOF" else int(fields[7])
            yield fields[3], int(fields[4]), int(fields[6]), last


def path_beside(path: Path, ending: str) -> Path:
    """Return the file that SQLite keeps beside a database: where that itself is, if the path is a link."""
    return Path(os.path.realpath(path) + ending)


def _state(log: Path) -> tuple[int, int]:
    try:
        found = log.stat()
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns


def _told(pid: int) -> str:
    """Return a process as people know it: its pid, its command, and whether it is stopped."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return f"process {pid}"
    short = command if len(command) <= _SHOWN_COMMAND else command[:_SHOWN_COMMAND] + "…"
    return f"process {pid} ({short}{', which is stopped' if status in {'T', 't'} else ''})"


def _count(opened: set[int]) -> str:
    return "no other process has it open" if not opened else (
        "1 process has it open" if len(opened) == 1 else f"{len(opened)} processes have it open"
    )  # fmt: skip
