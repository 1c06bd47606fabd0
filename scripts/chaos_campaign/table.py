"""The figures of each database, side by side."""

from __future__ import annotations

from collections.abc import Mapping


def table(figures: Mapping[str, Mapping[str, object]]) -> str:
    """Return a Markdown table, which is also easy to read as it is."""
    lines = [["", *figures]]
    names = list(dict.fromkeys(name for column in figures.values() for name in column))
    for name in names:
        values = [column.get(name) for column in figures.values()]
        if any(isinstance(value, Mapping) for value in values):
            parts = list(dict.fromkeys(part for value in values if isinstance(value, Mapping) for part in value))
            for part in parts:
                row = [value.get(part, 0) if isinstance(value, Mapping) else 0 for value in values]
                lines.append([f"- {_told(name)}: {part}", *map(str, row)])
        else:
            lines.append([_told(name), *map(str, values)])
    widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
    drawn = [_line(line, widths) for line in lines]
    return "\n".join([drawn[0], "|".join(["", *("-" * (width + 2) for width in widths), ""]), *drawn[1:]])


def _line(cells: list[str], widths: list[int]) -> str:
    first, *others = cells
    padded = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
    return f"| {' | '.join(padded)} |"


def _told(name: str) -> str:
    return name.replace("_", " ")
