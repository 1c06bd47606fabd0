"""Shows a batch's progress on stderr: a live bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from batchq.display.messages import is_quiet, is_terminal, say
from batchq.display.text import duration, example_of, one_line, told_cost

if TYPE_CHECKING:
    from rich.console import RenderableType

    from batchq.coordinator import Pace
    from batchq.jobs import ErrorGroup, Progress

LINE_SECONDS = 5.0
QUIET_LINE_SECONDS = 60.0
# What passes by itself within a moment is no reason to show.
WHY_SECONDS = 1.0


@contextmanager
def show_progress(database: str, *, every: int | None = None) -> Iterator[Callable[[Progress], None]]:
    """Show what the function that this yields is given; `database` is named in suggested commands.

    A bar on a terminal and in a notebook; elsewhere a line every few seconds, or for every so many jobs that ended.
    """
    if is_quiet():
        yield lambda _progress: None
        return
    in_notebook = "ipykernel" in sys.modules and every is not None
    if not in_notebook and (not is_terminal(sys.stderr) or os.environ.get("TERM") == "dumb"):
        yield (_Lines(database) if every is None else _CountedLines(database, every)).update
        return
    from rich.console import Console
    from rich.live import Live

    bar = _Bar(database)
    console = Console(stderr=not in_notebook)
    # While this is live `sys.stderr` is its own: what anybody writes there (`say`, the log) appears above the
    # bar, and the bar is gone when this ends, so that it stands in nobody's way.
    with Live(bar, console=console, refresh_per_second=8, transient=True, redirect_stdout=False, redirect_stderr=True):
        yield bar.update


class _View:
    """What both ways of showing have in common: the pace, and why nothing moves."""

    def __init__(self, database: str) -> None:
        from batchq.coordinator import Pace

        self._database = database
        self._why: str | None = None
        self._why_since = 0.0
        self.pace: Pace = Pace()
        self.progress: Progress | None = None

    def update(self, progress: Progress) -> None:
        """Take in where the batch stands now."""
        from batchq.waiting import why_waiting

        why = why_waiting(progress, self._database)
        if why != self._why:
            self._why, self._why_since = why, time.monotonic()
        self.pace.note(progress)
        self.progress = progress

    @property
    def is_away(self) -> bool:
        """Whether the database is away."""
        return self.progress is not None and self.progress.away is not None

    @property
    def why(self) -> str | None:
        """Why nothing moves, once that has lasted for a moment."""
        lasted = time.monotonic() - self._why_since >= WHY_SECONDS
        return one_line(self._why, 400) if self._why and lasted else None


class _Plain(_View):
    """Plain lines: of a database that is away and of its return one each, no others meanwhile."""

    def update(self, progress: Progress) -> None:
        was_away = self.is_away
        super().update(progress)
        if self.is_away and not was_away:
            say(f"batchq: {self._why}")
        if was_away and not self.is_away:
            say("batchq: the database is back")
        if not self.is_away:
            self.tell(progress)

    def tell(self, progress: Progress) -> None:
        """Print a line if there is news."""
        raise NotImplementedError


class _Lines(_Plain):
    """A plain line when there is news, at most every few seconds."""

    def __init__(self, database: str) -> None:
        super().__init__(database)
        self._due = 0.0
        self._said: tuple[object, ...] = ()

    def tell(self, progress: Progress) -> None:
        now = time.monotonic()
        new_reason = self.why is not None and self.why not in self._said
        if progress.finished or not (now >= self._due or new_reason):
            return
        news = (progress.counts, self.why)
        if news == self._said and now < self._due + QUIET_LINE_SECONDS:
            return
        self._said, self._due = news, now + LINE_SECONDS
        say(f"batchq: {summary_line(progress, self.pace)}" + (f"; waiting: {self.why}" if self.why else ""))


class _CountedLines(_Plain):
    """A plain line for every so many jobs that ended, and when something keeps the rest."""

    def __init__(self, database: str, every: int) -> None:
        super().__init__(database)
        self._every = every
        self._told: int | None = None
        self._why_told: str | None = None

    def tell(self, progress: Progress) -> None:
        steps = progress.counts.final // self._every if self._every > 0 else 0
        news = self._told not in {None, steps}
        if progress.finished or not (news or (self.why is not None and self.why != self._why_told)):
            self._told = steps if self._told is None else self._told
            return
        self._told, self._why_told = steps, self.why
        say(f"batchq: {summary_line(progress, self.pace)}" + (f"; waiting: {self.why}" if self.why else ""))


class _Bar(_View):
    """A renderable for rich: bar, numbers, and a second line that says why nothing moves."""

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        progress = self.progress
        if progress is None:
            return Text("")
        counts = progress.counts
        row = Table.grid(padding=(0, 1))
        row.add_row(
            Text(one_line(progress.batch.name, 40), style="bold"),
            ProgressBar(total=max(counts.total, 1), completed=counts.final, width=24),
            Text(numbers(progress, self.pace), overflow="ellipsis", no_wrap=True),
        )
        return Group(row, Text(f"waiting: {self.why}", style="yellow")) if self.why else row


def summary_line(progress: Progress, pace: Pace) -> str:
    """Return a batch's name and numbers in one line."""
    return f"{one_line(progress.batch.name, 60)}: {numbers(progress, pace)}"


def numbers(progress: Progress, pace: Pace) -> str:
    """Return done, failed, in flight, rate, time left, tokens and cost."""
    counts, usage = progress.counts, progress.usage
    parts = [f"{counts.done:,} of {counts.total:,} done"]
    parts += [
        f"{count:,} {what}" for count, what in ((counts.failed, "failed"), (counts.cancelled, "cancelled")) if count
    ]
    if counts.inflight:
        parts.append(f"{counts.inflight:,} in flight")
    if rate := pace.per_second:
        parts.append(f"{rate:,.1f}/s")
    if (left := pace.seconds_left(progress)) is not None and counts.live:
        parts.append(f"{duration(left)} left")
    if tokens := (usage.input_tokens or 0) + (usage.output_tokens or 0):
        parts.append(f"{tokens:,} tokens")
    if progress.cost:
        parts.append(told_cost(progress))
    return ", ".join(parts)


def outcome_lines(progress: Progress, errors: Sequence[ErrorGroup]) -> list[str]:
    """Return how a batch ended: its numbers, and each class of error with an example."""
    counts, usage = progress.counts, progress.usage
    parts = [f"{counts.done:,} done"]
    parts += [
        f"{count:,} {what}"
        for count, what in ((counts.failed, "failed"), (counts.cancelled, "cancelled"), (counts.live, "not finished"))
        if count
    ]
    if usage.input_tokens or usage.output_tokens:
        parts.append(f"{usage.input_tokens or 0:,} tokens in, {usage.output_tokens or 0:,} out")
    if progress.cost:
        parts.append(told_cost(progress))
    lines = [f"batchq: {one_line(progress.batch.name, 60)}: {', '.join(parts)}"]
    return lines + [f"  {group.count:,} with {group.error_class}, e.g. {example_of(group)}" for group in errors]
