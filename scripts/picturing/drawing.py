"""Draws what is on a terminal as an SVG that fetches nothing."""

from __future__ import annotations

import io
import re
from itertools import groupby

from pyte.screens import Char
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.style import Style
from rich.text import Text

# Rich names a web font, on a server of others; the reader's own monospaced font does as well.
_FORMAT = re.sub(r"@font-face \{\{.*?\}\}\n", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL).replace(
    "Fira Code, monospace", "Fira Code, DejaVu Sans Mono, Menlo, Consolas, monospace"
)
# What pyte calls otherwise.
_NAMES = {"brown": "yellow", "brightbrown": "bright_yellow"}


def svg_of(rows: list[list[Char]], title: str) -> str:
    """Return a picture of these rows of a terminal; the same rows make the same picture."""
    console = Console(
        record=True, file=io.StringIO(), width=len(rows[0]), height=len(rows), force_terminal=True, color_system="256"
    )
    for row in rows:
        # One element for each run of a style, not one for each letter.
        runs = [("".join(cell.data for cell in cells), style) for style, cells in groupby(row, _style)]
        console.print(Text.assemble(*runs), no_wrap=True, crop=True)
    drawn = console.export_svg(title=title, code_format=_FORMAT, unique_id="batchq")
    return "\n".join(line.rstrip() for line in drawn.splitlines() if line.strip()) + "\n"


def _style(cell: Char) -> Style:
    return Style(color=_colour(cell.fg), bold=cell.bold, reverse=cell.reverse)


def _colour(name: str) -> str:
    if re.fullmatch(r"[0-9a-f]{6}", name):
        return f"#{name}"
    return _NAMES.get(name, re.sub(r"^bright(?!_)", "bright_", name))
