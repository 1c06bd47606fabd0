"""`batchq status --watch`: redrawn on a terminal; elsewhere a block when something has changed, or a line of JSON."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from typing import TYPE_CHECKING, Protocol

import click

from batchq.cli.opening import open_queue
from batchq.cli.status_view import json_of, lines_of
from batchq.display.messages import is_terminal, say
from batchq.display.text import one_line
from batchq.escapes import clean

if TYPE_CHECKING:
    from batchq.jobs import Overview
    from batchq.overview import Away, Paces

_HOME, _END_OF_LINE, _BELOW = "\x1b[H", "\x1b[K", "\x1b[J"


async def watch_status(location: str, name: str | None, interval: float, *, for_machines: bool) -> None:
    """Show the queue again and again, until a named batch is finished."""
    import anyio

    from batchq.overview import Away, Onlooker

    on_screen = is_terminal(sys.stdout) and (os.environ.get("TERM") or "dumb") != "dumb"
    view: _View = _JsonLines() if for_machines else _Redrawn(interval) if on_screen else _Blocks()
    async with Onlooker(lambda: open_queue(location), name) as onlooker:
        while True:
            due = anyio.current_time() + interval
            found = await onlooker.look()
            if isinstance(found, Away):
                view.away(found)
            else:
                view.show(found, onlooker.paces)
                if name is not None and found.batches[0].finished:
                    return
            await anyio.sleep_until(due)


class _View(Protocol):
    def show(self, found: Overview, paces: Paces) -> None:
        """Show how the queue stands."""

    def away(self, away: Away) -> None:
        """Show that it can't be read."""


class _Absence:
    """Tells once on stderr that the database is away, and once that it is back."""

    def __init__(self) -> None:
        self._is_away = False

    def away(self, away: Away) -> None:
        if not self._is_away:
            say(f"batchq: the database is away: {one_line(away.reason)}; asking again")
        self._is_away = True

    def back(self) -> None:
        if self._is_away:
            say("batchq: the database is back")
        self._is_away = False


class _JsonLines(_Absence):
    """One line of JSON at each look."""

    def show(self, found: Overview, paces: Paces) -> None:
        self.back()
        click.echo(json.dumps(json_of(found, paces)))


class _Blocks(_Absence):
    """A block of lines with the time above it, whenever something has changed."""

    def __init__(self) -> None:
        super().__init__()
        self._shown: list[str] = []

    def show(self, found: Overview, paces: Paces) -> None:
        self.back()
        if (facts := lines_of(found)) == self._shown:
            return
        if self._shown:
            click.echo()
        self._shown = facts
        lines = [time.strftime("%Y-%m-%d %H:%M:%S"), *lines_of(found, paces)]
        click.echo("\n".join(clean(line) for line in lines))


class _Redrawn:
    """Lines that are drawn over the last ones, as many as the screen takes."""

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._lines: list[str] = []

    def show(self, found: Overview, paces: Paces) -> None:
        self._lines = lines_of(found, paces)
        self._draw(f"every {self._interval:g}s, Ctrl-C ends")

    def away(self, away: Away) -> None:
        self._draw(f"the database is away: {one_line(away.reason)}; asking again")

    def _draw(self, told: str) -> None:
        lines = _fitting([f"{time.strftime('%H:%M:%S')}  {told}", "", *self._lines])
        click.echo(_HOME + "".join(f"{line}{_END_OF_LINE}\n" for line in lines) + _BELOW, nl=False)


def _fitting(lines: list[str]) -> list[str]:
    """Fold lines to the width of the screen, and leave out what is below it."""
    from rich.cells import chop_cells

    size = shutil.get_terminal_size()
    folded = [part for line in lines for part in chop_cells(clean(line), size.columns) or [""]]
    if len(folded) < size.lines:
        return folded
    return [*folded[: size.lines - 2], f"… {len(folded) - size.lines + 2} more lines"]
