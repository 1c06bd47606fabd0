"""Text for people: one line of it, tables, money and time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from batchq.escapes import clean

if TYPE_CHECKING:
    from batchq.jobs import ErrorGroup, Progress

_NANO = 1_000_000_000
_LEAST_SHOWN = 100_000  # nano-dollars: $0.0001


def one_line(text: str, width: int = 200) -> str:
    """Return text as one clean line of at most `width` characters."""
    flat = clean(" ".join(text[: width * 4].split()))
    return flat if len(flat) <= width else flat[: width - 1] + "…"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> list[str]:
    """Return aligned lines: the first `left` columns to the left, the others to the right."""
    cells = [list(header), *([one_line(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    return [
        "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]


def dollars(nano: int | None) -> str:
    """Return a cost as people read it; unknown is not zero."""
    if nano is None:
        return "-"
    return "<$0.0001" if 0 < nano < _LEAST_SHOWN else f"${nano / _NANO:,.4f}"


def told_cost(progress: Progress) -> str:
    """Return what a batch has cost, marked where some of it is an estimate."""
    return f"~{dollars(progress.cost)}" if progress.estimated else dollars(progress.cost)


def example_of(group: ErrorGroup) -> str:
    """Return the place of a failure, and its reason where that may be told."""
    reason = one_line(group.example)
    return f"position {group.example_position}" + (f": {reason}" if reason else "")


def duration(seconds: float) -> str:
    """Return a duration as 0:42, 12:05 or 3:04:05."""
    whole = max(0, round(seconds))
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def plural(count: int, noun: str) -> str:
    """Return a count with its noun: 1 job, 2 jobs, 2 batches."""
    ending = "es" if noun.endswith(("ch", "sh", "s")) else "s"
    return f"{count:,} {noun}{'' if count == 1 else ending}"
