"""The rows of the result and how they are printed."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

NOTE_WIDTH = 100


@dataclass(frozen=True, slots=True)
class Row:
    """One measured ratio, or what else `unit` says. `note` has the absolute figures; `at_most`: it should be small.

    Nothing is `required` of some, which are there to be seen.
    """

    name: str
    measured: float
    required: float | None
    note: str
    at_most: bool = False
    unit: str = "×"

    @property
    def ok(self) -> bool:
        if self.required is None:
            return True
        return self.measured <= self.required if self.at_most else self.measured >= self.required

    @property
    def cells(self) -> tuple[str, ...]:
        measured = f"{_number(self.measured)} {self.unit}"
        if self.required is None:
            return self.name, measured, "", ""
        sign = "≤" if self.at_most else "≥"
        required = f"{sign} {_number(self.required)} {self.unit}"
        return self.name, measured, required, "ok" if self.ok else "short"


HEADER = ("what", "measured", "required", "")


def plain(rows: Sequence[Row]) -> str:
    """Return aligned text, each row's note on the lines below it."""
    widths = [max(len(line[column]) for line in (HEADER, *(row.cells for row in rows))) for column in range(4)]
    lines = [_aligned(HEADER, widths)]
    for row in rows:
        lines.append(_aligned(row.cells, widths))
        lines += textwrap.wrap(row.note, NOTE_WIDTH, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


def markdown(rows: Sequence[Row]) -> str:
    """Return the same as a Markdown table with the notes in a column."""
    lines = ["| what | measured | required | | figures |", "|---|---|---|---|---|"]
    lines += [f"| {' | '.join((*row.cells, row.note))} |" for row in rows]
    return "\n".join(lines)


def count(rows: int) -> str:
    """Return a number of rows as people say it."""
    return f"{rows // 1_000_000} M" if rows >= 1_000_000 else f"{rows // 1_000} k" if rows >= 1_000 else str(rows)


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = (
        cell.rjust(width) if column in {1, 2} else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return "  ".join((first, *others)).rstrip()


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 20 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
