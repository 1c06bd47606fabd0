"""The workers: what each holds, what it serves, and when it was last heard of."""

from __future__ import annotations

from rich.text import Text

from batchq.display.text import duration
from batchq.display.top.grid import Cell, Column, cell, fitted
from batchq.display.top.section import Section
from batchq.installed import installed_version
from batchq.jobs import Overview, RunnerInfo
from batchq.pids import is_gone

_COLUMNS = (
    Column("WORKER", least=12, most=32),
    Column("CALLS", right=True),
    Column("SEEN", rank=1, right=True),
    Column("SERVES", rank=3, least=8, most=32),
    Column("UP", rank=4, right=True),
    Column("VERSION", rank=5, least=7, most=16),
)
# Whoever is silent for that long is no longer idle: it is late.
_LATE_MS = 20_000


def worker_section(found: Overview, width: int) -> Section:
    """Return the live workers, by host and pid."""
    runners = sorted(found.runners, key=lambda runner: (runner.host, runner.pid))
    header, lines = fitted(_COLUMNS, [_row(runner, found.now) for runner in runners], width)
    return Section(header, [[line] for line in lines] or [[Text("no live worker", style="yellow")]])


def _row(runner: RunnerInfo, now: int) -> list[Cell]:
    own = installed_version()
    return [
        cell(f"{runner.host}:{runner.pid}"),
        Text(f"{runner.in_flight:,}/{runner.concurrency:,}"),
        _seen(runner, now),
        cell(runner.serves.replace(",", ", ")),
        Text(duration((now - runner.started_at) / 1000)),
        cell(runner.version or "unknown", "yellow" if runner.version != own else ""),
    ]


def _seen(runner: RunnerInfo, now: int) -> Text:
    if is_gone(runner):
        return Text("it died", style="bold red")
    age = max(0, now - runner.seen_at)
    return Text(f"{age / 1000:.0f}s ago", style="yellow" if age > _LATE_MS else "")
