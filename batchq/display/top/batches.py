"""The batches: how far each is, how fast, for how much, and why one waits."""

from __future__ import annotations

from functools import partial

from rich.text import Text

from batchq.display.text import dollars, duration, plural, told_cost
from batchq.display.top.figures import bar, dollars_per_hour, percent, rate
from batchq.display.top.grid import Cell, Column, cell, fitted, folded
from batchq.display.top.section import Section
from batchq.jobs import Overview, Progress
from batchq.overview import Paces, state_of, why_waits

_COLUMNS = (
    Column("BATCH", least=8, most=32),
    Column("STATE", rank=4, least=7, most=11),
    Column("", rank=6, least=6, most=20),
    Column("ENDED", right=True),
    Column("JOBS", rank=5, right=True),
    Column("FAILED", rank=3, right=True),
    Column("IN FL", rank=8, right=True),
    Column("RATE", rank=1, right=True),
    Column("LEFT", rank=2, right=True),
    Column("COST", rank=5, right=True),
    Column("COST/H", rank=9, right=True),
    Column("BUDGET", rank=7, right=True),
)
_STYLES = {
    "running": "green",
    "adding": "cyan",
    "waiting": "yellow",
    "incomplete": "yellow",
    "paused": "magenta",
    "halted": "bold red",
    "over budget": "bold red",
    "purging": "red",
}
# Of others, how fast they were tells nothing of when they end.
_MOVING = frozenset({"running", "adding", "waiting"})
_LINES_OF_REASON = 3


def in_order(found: Overview) -> list[Progress]:
    """Return the batches as they are shown: those at work, those that wait, those that ended; newest first."""
    return sorted(found.batches, key=lambda progress: (progress.finished, not progress.counts.inflight))


def batch_section(found: Overview, paces: Paces, width: int) -> Section:
    """Return the batches in order, each with the reason below it where one waits."""
    batches = in_order(found)
    header, lines = fitted(_COLUMNS, [_row(progress, paces) for progress in batches], width)
    told: set[str] = set()
    blocks = []
    for progress, line in zip(batches, lines, strict=True):
        why = why_waits(progress, found)
        # What keeps a hundred batches in the same way is said once.
        new_reason = why is not None and why not in told
        told.add(why or "")
        reason = folded(cell(why or "", "yellow", longest=600), width, indent=2, most=_LINES_OF_REASON)
        blocks.append([line, *(reason if new_reason else [])])
    return Section(header, blocks or [[Text("no batches yet", style="dim")]], _left_out(found))


def _left_out(found: Overview) -> str:
    if not found.older:
        return ""
    ended = ", some of them unfinished" if found.more_unfinished else " that ended"
    return f"{plural(found.older, 'older batch')}{ended}"


def _row(progress: Progress, paces: Paces) -> list[Cell]:
    counts, pace = progress.counts, paces.of(progress)
    state = state_of(progress)
    moving = not progress.finished
    left = pace.seconds_left(progress) if state in _MOVING else None
    budget = progress.batch.budget
    return [
        cell(progress.batch.name, "bold" if moving else ""),
        Text(state, style=_STYLES.get(state, "")),
        partial(bar, counts),
        Text(percent(counts)),
        Text(f"{counts.final:,}/{counts.total:,}"),
        Text(f"{counts.failed:,}", style="red") if counts.failed else Text(""),
        Text(f"{counts.inflight:,}" if counts.inflight else ""),
        Text(rate(pace.per_second) if moving else ""),
        Text("" if left is None else duration(left)),
        Text("" if progress.cost is None else told_cost(progress)),
        Text(dollars_per_hour(pace.cost_per_second) if moving else ""),
        Text("" if budget is None else dollars(budget), style="red" if progress.over_budget else ""),
    ]
