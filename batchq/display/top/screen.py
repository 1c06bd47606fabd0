"""The whole screen: totals, batches, lanes, workers and errors, in whatever room there is."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.text import Text

from batchq.display.text import dollars, duration, plural
from batchq.display.top.batches import batch_section
from batchq.display.top.errors import error_section
from batchq.display.top.figures import dollars_per_hour, rate
from batchq.display.top.grid import cell, folded
from batchq.display.top.lanes import lane_section
from batchq.display.top.section import Section
from batchq.display.top.workers import worker_section
from batchq.jobs import Overview
from batchq.overview import Paces

# With less there is no line left for what only sets apart.
_AIRY_HEIGHT = 20
_SMALLEST_SHARE = 3


@dataclass(slots=True)
class Screen:
    """What is drawn: the last look at the queue, and what the person at the keyboard has chosen."""

    interval: float
    keys: bool
    found: Overview | None = None
    paces: Paces | None = None
    away: str | None = None
    looked_at: str = ""
    paused: bool = False
    first: int = 0
    # How many batches there is room for, once drawn.
    page: int = 1

    def show(self, found: Overview, paces: Paces) -> None:
        """Take in how the queue stands."""
        self.found, self.paces, self.away = found, paces, None
        self.looked_at = time.strftime("%H:%M:%S")
        self.scroll(0)

    def lose(self, reason: str) -> None:
        """Take in that the queue can't be read."""
        self.away = reason

    def scroll(self, batches: int) -> None:
        """Show later batches, or earlier ones."""
        last = max(0, len(self.found.batches) - 1) if self.found else 0
        self.first = min(max(0, self.first + batches), last)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw it."""
        lines = self.lines(options.max_width, options.height or console.height)
        for number, line in enumerate(lines):
            text = _in_ascii(line) if options.ascii_only else line
            yield from text.render(console)
            if number < len(lines) - 1:
                yield Segment.line()

    def lines(self, width: int, height: int) -> list[Text]:
        """Return the lines of a screen of that size."""
        head = self._head(width)
        foot = [self._foot()]
        if self.found is None or self.paces is None:
            return _cropped([*head, *foot], width, height)
        room = height - len(head) - len(foot)
        sections: list[Section] = [batch_section(self.found, self.paces, width)]
        others = (lane_section(self.found, width), worker_section(self.found, width), error_section(self.found, width))
        sections += [section for section in others if section is not None]
        body = self._body(sections, room, airy=height >= _AIRY_HEIGHT)
        body += [Text("")] * (room - len(body))
        return _cropped([*head, *body[: max(0, room)], *foot], width, height)

    def _body(self, sections: Sequence[Section], room: int, *, airy: bool) -> list[Text]:
        shares = _shares([section.wanted + airy for section in sections], room)
        body: list[Text] = []
        for section, share in zip(sections, shares, strict=True):
            is_first = section is sections[0]
            lines = section.lines(share - airy, self.first if is_first else 0)
            if is_first:
                self.page = max(1, len(lines) - 2)
            body += [Text(""), *lines] if airy and lines else lines
        return body

    def _head(self, width: int) -> list[Text]:
        if self.found is None:
            return [Text("batchq top", style="bold"), *self._trouble(width)]
        place = cell(self.found.database, "dim")
        title = Text.assemble(("batchq top", "bold"), f"  {self.looked_at}  ")
        room = width - title.cell_len
        if place.cell_len > room > 1:  # its end tells more than its beginning
            place = Text("…", style="dim").append_text(place[-(room - 1) :])
        return [title.append_text(place), _totals(self.found, self.paces or Paces(), width), *self._trouble(width)]

    def _trouble(self, width: int) -> list[Text]:
        if self.away is not None:
            as_of = f"; this is of {self.looked_at}" if self.looked_at else ""
            told = f"the database is away, asking again{as_of}: {self.away}"
        elif self.found is not None and self.found.moved_to is not None:
            from batchq.waiting import told_moved

            told = told_moved(self.found.moved_to)
        else:
            return []
        return folded(cell(told, "bold red", longest=400), width, indent=0, most=3)

    def _foot(self) -> Text:
        keys = "q quit  ↑↓ PgUp PgDn scroll  p pause" if self.keys else "Ctrl-C ends"
        if self.paused:
            return Text("PAUSED, p goes on  q quit", style="reverse")
        return Text(f"{keys}  every {self.interval:g}s", style="dim")


def _totals(found: Overview, paces: Paces, width: int) -> Text:
    """Return the whole queue in one line: as many of its parts as there is room for."""
    calls, slots = (sum(getattr(runner, name) for runner in found.runners) for name in ("in_flight", "concurrency"))
    live = sum(progress.counts.live for progress in found.batches)
    costs = [progress.cost for progress in found.batches if progress.cost is not None]
    per_second = paces.per_second
    parts = [f"{plural(len(found.runners), 'worker')}, {calls:,} of {plural(slots, 'call')}"]
    if per_second and per_second > 0:
        per_minute = f" ({per_second * 60:,.0f}/min)" if per_second >= 1 else ""
        parts.append(f"{rate(per_second)}{per_minute}")
    if live:
        left = f", {duration(live / per_second)}" if per_second and per_second > 0 else ""
        parts.append(f"{live:,}{'+' if found.more_unfinished else ''} left{left}")
    if costs:
        spending = dollars_per_hour(paces.cost_per_second)
        parts.append(dollars(sum(costs)) + (f", {spending}" if spending else ""))
    return Text(" · ".join(_that_fit(parts, width)))


def _that_fit(parts: Iterable[str], width: int) -> list[str]:
    chosen: list[str] = []
    for part in parts:
        if chosen and len(" · ".join([*chosen, part])) > width:
            break
        chosen.append(part)
    return chosen


def _shares(wanted: Sequence[int], room: int) -> list[int]:
    """Share lines out: each part gets a few, in order, and then one at a time while it wants more, the first two."""
    shares = [0] * len(wanted)
    for index, want in enumerate(wanted):
        shares[index] = min(want, _SMALLEST_SHARE, max(0, room - sum(shares)))
    while sum(shares) < room and any(share < want for share, want in zip(shares, wanted, strict=True)):
        for index, want in enumerate(wanted):
            more = min(2 if index == 0 else 1, want - shares[index], room - sum(shares))
            shares[index] += max(0, more)
    return shares


def _cropped(lines: Sequence[Text], width: int, height: int) -> list[Text]:
    shown = [*lines[: max(1, height - 1)], lines[-1]] if len(lines) > height else list(lines)
    for line in shown:
        line.truncate(width, overflow="ellipsis")
    return shown[: max(1, height)]


_IN_ASCII = str.maketrans({"━": "#", "╍": "x", "─": "-", "…": "~", "·": "-", "↑": "^", "↓": "v"})


def _in_ascii(line: Text) -> Text:
    """Return a line with our own signs in ASCII; the names of others are left to the stream."""
    plain = line.copy()
    plain.plain = line.plain.translate(_IN_ASCII)
    return plain
