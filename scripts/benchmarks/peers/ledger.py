"""Reads what the tasks wrote down and judges what became of the jobs of a killed worker."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Line:
    """One end of one run of one job."""

    event: str
    number: int
    pid: int
    at: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of the jobs.

    `again` is when, in seconds after the kill, the first and the last of the killed jobs ran again, and
    `returned` how many did. `lost` never ended. `repeats` are runs that no kill asked for.
    """

    killed: int
    returned: int
    again: tuple[float, float] | None
    lost: int
    repeats: int


def read(path: Path) -> list[Line]:
    """Return all lines that are complete."""
    if not path.exists():
        return []
    parts = (line.split() for line in path.read_text().splitlines(keepends=True) if line.endswith("\n"))
    return [Line(event, int(number), int(pid), float(at)) for event, number, pid, at in parts]


def in_flight(lines: Sequence[Line], pid: int) -> set[int]:
    """Return the jobs that a process has begun and not ended."""
    began = {line.number for line in lines if line.pid == pid and line.event == "start"}
    return began - {line.number for line in lines if line.pid == pid and line.event == "end"}


def ended(lines: Sequence[Line]) -> set[int]:
    """Return the jobs that ended at least once."""
    return {line.number for line in lines if line.event == "end"}


def judge(lines: Sequence[Line], jobs: int, pid: int, killed_at: float) -> Verdict:
    """Say what became of jobs 0 to `jobs` after the worker of this process id was killed."""
    killed = in_flight(lines, pid)
    starts = [line for line in lines if line.event == "start"]
    again = {
        line.number: line.at
        for line in reversed(starts)
        if line.number in killed and line.pid != pid and line.at > killed_at
    }
    runs = Counter(line.number for line in starts)
    return Verdict(
        killed=len(killed),
        returned=len(again),
        again=(min(again.values()) - killed_at, max(again.values()) - killed_at) if again else None,
        lost=len(set(range(jobs)) - ended(lines)),
        repeats=sum(max(0, times - 1 - (number in killed)) for number, times in runs.items()),
    )
