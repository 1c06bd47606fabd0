"""Shows how far a long piece of work is, in rows: a live bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchq.display.messages import is_quiet, is_terminal, say
from batchq.display.text import duration

if TYPE_CHECKING:
    from rich.console import RenderableType

    from batchq.transfer_progress import Step

LINE_SECONDS = 5.0
# A rate of less than that says nothing.
RATE_SECONDS = 0.5


@contextmanager
def show_steps() -> Iterator[Callable[[Step], None]]:
    """Show the steps that the function which this yields is given."""
    if is_quiet():
        yield lambda _step: None
        return
    if not is_terminal(sys.stderr) or os.environ.get("TERM") == "dumb":
        yield _Lines().update
        return
    from rich.console import Console
    from rich.live import Live

    bar = _Bar()
    with Live(bar, console=Console(stderr=True), refresh_per_second=8, transient=True, redirect_stdout=False):
        yield bar.update


@dataclass(frozen=True, slots=True)
class _Moment:
    at: float
    rows: int


class _View:
    """What both ways of showing have in common: the last step, and the pace since the first."""

    def __init__(self) -> None:
        self.step: Step | None = None
        self._first = _Moment(0.0, 0)

    def update(self, step: Step) -> None:
        """Take in where the work stands now."""
        if self.step is None or self.step.doing != step.doing:
            self._first = _Moment(time.monotonic(), step.all_done)
        self.step = step

    def numbers(self) -> str:
        """Return what is being done, how far that is, rows per second, and the time left."""
        step = self.step
        if step is None:
            return ""
        parts = [f"{step.doing} {step.table}: {step.done:,} of {step.total:,}"]
        passed, rows = time.monotonic() - self._first.at, step.all_done - self._first.rows
        if passed > RATE_SECONDS and rows > 0:
            parts.append(f"{rows / passed:,.0f} rows/s")
            parts.append(f"{duration((step.all_total - step.all_done) * passed / rows)} left")
        return ", ".join(parts)


class _Lines(_View):
    """A plain line every few seconds."""

    def __init__(self) -> None:
        super().__init__()
        self._due = time.monotonic() + LINE_SECONDS

    def update(self, step: Step) -> None:
        super().update(step)
        now = time.monotonic()
        if now >= self._due:
            self._due = now + LINE_SECONDS
            say(f"batchq: {self.numbers()}")


class _Bar(_View):
    """A renderable for rich: bar and numbers."""

    def __rich__(self) -> RenderableType:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        if self.step is None:
            return Text("")
        row = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=max(self.step.all_total, 1), completed=self.step.all_done, width=24)
        row.add_row(bar, Text(self.numbers(), overflow="ellipsis", no_wrap=True))
        return row
