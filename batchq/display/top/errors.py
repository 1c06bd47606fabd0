"""The failures by class, with the place of an example; what it says may quote a prompt, and is left to `show`."""

from __future__ import annotations

from rich.text import Text

from batchq.display.top.grid import Column, cell, fitted
from batchq.display.top.section import Section
from batchq.jobs import Overview

_COLUMNS = (
    Column("FAILED", right=True),
    Column("WITH", least=8, most=32),
    Column("IN", least=6, most=32),
    Column("EXAMPLE", rank=1),
)


def error_section(found: Overview, width: int) -> Section | None:
    """Return the failures of the newest batches that have any, most frequent first; None where there are none."""
    groups = [(name, group) for name, groups in found.errors.items() for group in groups]
    if not groups:
        return None
    groups.sort(key=lambda item: -item[1].count)
    rows = [
        [
            Text(f"{group.count:,}", style="red"),
            cell(group.error_class),
            cell(name),
            Text(f"at {group.example_position:,}"),
        ]
        for name, group in groups
    ]
    header, lines = fitted(_COLUMNS, rows, width)
    return Section(header, [[line] for line in lines])
