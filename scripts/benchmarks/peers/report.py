"""The rows that are required of batchq, and a plain table of what was measured of each tool."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from scripts.benchmarks.peers.measure import Measured
from scripts.benchmarks.peers.recovery import DEADLINE, JOBS, Recovered
from scripts.benchmarks.peers.registry import OURS_ON_POSTGRES
from scripts.benchmarks.peers.tasks import SLEEP_SECONDS
from scripts.benchmarks.table import NOTE_WIDTH, Row

REQUIRED = 3.0
HEADER = ("tool", "database", "no-op jobs/s", "recovery", "run again after", "lost", "repeats")
ABOUT = (
    "no-op jobs/s: one worker process, jobs enqueued before, from the first claim to the last end in the database;"
    " PostgreSQL with its defaults (fsync on), after VACUUM ANALYZE. Recovery: SIGKILL of one of two workers with 16"
    f" slots while it runs jobs that sleep {SLEEP_SECONDS:g} s, {JOBS} in all; judged by what the tasks wrote into a"
    f" file, for {DEADLINE:.0f} s. lost: never ended in that time; repeats: runs that no kill asked for."
)


def rows(found: Sequence[Measured]) -> list[Row]:
    """Return the requirement, if batchq and one other tool were measured on PostgreSQL."""
    speeds = {entry.key: (entry, entry.rate) for entry in found if entry.rate and entry.peer.database == "postgresql"}
    if OURS_ON_POSTGRES not in speeds or len(speeds) < 2:
        return []
    ours, rate = speeds.pop(OURS_ON_POSTGRES)
    ranked = sorted(speeds.values(), key=lambda speed: -(speed[1] or 0))
    others = ", ".join(f"{entry.peer.name} {speed:,.0f}" for entry, speed in ranked)
    note = f"{rate:,.0f} jobs/s against {others}; median of {len(ours.rates)}"
    if keeping := [(entry, speed) for entry, speed in ranked if entry.peer.keeps_results]:
        entry, speed = keeping[0]
        note += f"; against {entry.peer.name}, the best that keeps results, {rate / speed:.1f} ×"
    return [Row("no-op jobs/s on PostgreSQL, against the best Python peer", rate / ranked[0][1], REQUIRED, note)]


def plain(found: Sequence[Measured]) -> str:
    """Return aligned text, with each tool's settings and problems below its lines."""
    cells = {entry.key: _cells(entry) for entry in found}
    every = [HEADER, *(line for lines in cells.values() for line in lines)]
    widths = [max(len(line[column]) for line in every) for column in range(len(HEADER))]
    lines = [_aligned(HEADER, widths)]
    for entry in found:
        lines += [_aligned(line, widths) for line in cells[entry.key]]
        lines += [part for note in _notes(entry) for part in _wrapped(note, "    ")]
    return "\n".join([*lines, "", *_wrapped(ABOUT, "")])


def markdown(found: Sequence[Measured]) -> str:
    """Return the same as a Markdown table with the notes in a column."""
    lines = [f"| {' | '.join((*HEADER, 'notes'))} |", "|---|---|--:|---|---|---|--:|---|"]
    for entry in found:
        notes = "; ".join(_notes(entry)).replace("|", "/")
        lines += [f"| {' | '.join((*line, '' if number else notes))} |" for number, line in enumerate(_cells(entry))]
    return "\n".join([*lines, "", ABOUT])


def _notes(entry: Measured) -> list[str]:
    """Return what is to be known about a tool's figures: settings, what its jobs wait for, what went wrong."""
    results = "keeps results" if entry.peer.keeps_results else "keeps no results"
    amount = f"{entry.jobs:,} jobs; " if entry.jobs else ""
    waiting = [found.recovery for found in entry.recovered if found.verdict.again is None and found.recovery.otherwise]
    return [
        f"{amount}{entry.peer.settings}; {results}",
        *(f"{recovery.label}: {recovery.otherwise}" for recovery in waiting),
        *(f"NOT MEASURED: {problem}" for problem in entry.problems),
    ]


def _cells(entry: Measured) -> list[tuple[str, ...]]:
    """Return a line for each way to recover, the first with the tool and its speed."""
    speed = f"{entry.rate:,.0f}" if entry.rate is not None else "-"
    first, blank = (f"{entry.peer.name} {entry.version}".strip(), entry.peer.database, speed), ("", "", "")
    if not entry.recovered:
        return [(*first, "-", "-", "-", "-")]
    return [((blank if number else first) + _recovery(found)) for number, found in enumerate(entry.recovered)]


def _recovery(found: Recovered) -> tuple[str, ...]:
    verdict = found.verdict
    if verdict.again is None:
        after = f"> {DEADLINE:.0f} s"
    else:
        first, last = verdict.again
        after = f"{first:.1f} s" if last - first < 0.1 else f"{first:.1f} to {last:.1f} s"
        if verdict.returned < verdict.killed:
            after += f" ({verdict.returned} of {verdict.killed})"
    gone = verdict.lost > found.unfinished
    lost = f"{verdict.lost} ({'gone' if gone else 'stuck'})" if verdict.lost else "0"
    return (found.recovery.label, after, lost, str(verdict.repeats))


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    right = {HEADER.index("no-op jobs/s"), HEADER.index("repeats")}
    padded = (
        cell.rjust(width) if column in right else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return "  ".join(padded).rstrip()


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, NOTE_WIDTH, initial_indent=indent, subsequent_indent=indent)
