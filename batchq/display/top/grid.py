"""Cells in columns that fit a width: the least needed columns go first, then the long ones are cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.text import Text

from batchq.concealing import without_keys
from batchq.display.text import one_line

# What is drawn once its width is known, such as a bar.
Drawn = Callable[[int], Text]
Cell = Text | Drawn


@dataclass(frozen=True, slots=True)
class Column:
    """A column with its title: as wide as its cells, from `least`, where it can be cut, to `most`.

    The one with the highest `rank` goes first where there is no room for all; one of rank 0 stays.
    """

    title: str
    rank: int = 0
    right: bool = False
    least: int | None = None
    most: int = 60


def cell(text: str, style: str = "", *, longest: int = 200) -> Text:
    """Return text, from wherever it came, as one line that moves no cursor and holds no key."""
    return Text(one_line(without_keys(text), longest), style=style)


def fitted(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], width: int) -> tuple[Text, list[Text]]:
    """Return the line of titles and a line for each row, none wider than `width`."""
    gap = 2 if width >= 72 else 1
    shown = [index for index, column in enumerate(columns) if _is_filled(column, [row[index] for row in rows])]
    natural = [_natural(column, [row[index] for row in rows]) for index, column in enumerate(columns)]
    while len(shown) > 1 and _total(shown, [_least(columns[i], natural[i]) for i in shown], gap) > width:
        droppable = [index for index in shown if columns[index].rank]
        if not droppable:
            break
        shown.remove(max(droppable, key=lambda index: columns[index].rank))
    widths = _widths([columns[i] for i in shown], [natural[i] for i in shown], width - gap * (len(shown) - 1))
    chosen = [(columns[index], index, given) for index, given in zip(shown, widths, strict=True)]
    header = _line([_aligned(Text(column.title), column, given) for column, _, given in chosen], gap, width)
    lines = [
        _line([_aligned(row[index], column, given) for column, index, given in chosen], gap, width) for row in rows
    ]
    header.stylize("bold")
    return header, lines


def folded(text: Text, width: int, *, indent: int, most: int) -> list[Text]:
    """Return text as up to `most` indented lines of a width."""
    room = max(8, width - indent)
    lines: list[str] = []
    for word in text.plain.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and (cell_len(longer) <= room or len(lines) == most):
            lines[-1] = longer
        else:
            lines.append(word)
    found = [Text(line, style=text.style) for line in lines]
    for line in found:
        line.truncate(room, overflow="ellipsis")
    return [Text(" " * indent).append_text(line) for line in found]


def _is_filled(column: Column, cells: Sequence[Cell]) -> bool:
    return not column.rank or any(not isinstance(item, Text) or item.plain for item in cells)


def _natural(column: Column, cells: Sequence[Cell]) -> int:
    widest = max((item.cell_len if isinstance(item, Text) else column.most for item in cells), default=0)
    return max(len(column.title), min(widest, column.most))


def _least(column: Column, natural: int) -> int:
    return natural if column.least is None else min(natural, max(column.least, len(column.title)))


def _total(shown: Sequence[int], widths: Sequence[int], gap: int) -> int:
    return sum(widths) + gap * (len(shown) - 1)


def _widths(columns: Sequence[Column], natural: Sequence[int], room: int) -> list[int]:
    """Cut what can be cut, the last such column first, until all fits."""
    widths = list(natural)
    for index in reversed(range(len(columns))):
        over = sum(widths) - room
        if over > 0:
            widths[index] -= min(over, widths[index] - _least(columns[index], widths[index]))
    return widths


def _aligned(item: Cell, column: Column, width: int) -> Text:
    text = item.copy() if isinstance(item, Text) else item(width)
    text.truncate(width, overflow="ellipsis")
    pad = text.pad_left if column.right else text.pad_right
    pad(max(0, width - text.cell_len))
    return text


def _line(cells: Sequence[Text], gap: int, width: int) -> Text:
    line = Text(" " * gap).join(cells)
    line.truncate(width, overflow="ellipsis")
    return line
