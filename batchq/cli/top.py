"""`batchq top`: the queue on the whole terminal, as it moves."""

from __future__ import annotations

import os
import sys

import click

from batchq.cli.options import DURATION, HELP_NAMES, command_class, database_of, db_option
from batchq.cli.status import require_interval
from batchq.display.messages import is_terminal


@click.command(
    cls=command_class(), context_settings=HELP_NAMES, short_help="Watch batches, workers and limits on the terminal."
)
@click.option("--batch", "name", metavar="NAME", help="Only this batch.")
@click.option("--interval", type=DURATION, default="1s", show_default=True, help="How often to look.")
@db_option
def top(name: str | None, *, interval: float, db: str | None) -> int:
    """Show what the queue does, again and again, until you press q.

    \b
    batchq top
    batchq top --batch demo --interval 5s

    Arrows and PgUp, PgDn scroll the batches, p pauses. It only reads.
    Rates are those of the last half minute. `batchq status --watch` is the plain form.
    """  # fmt: skip
    from batchq.cli.top_session import show_top
    from batchq.process import run_event_loop

    require_interval(interval)
    require_screen()
    location = database_of(db)
    return run_event_loop(lambda: show_top(location, name, interval))


def require_screen() -> None:
    """Raise a usage error where there is nothing to draw on."""
    plain = "`batchq status --watch` is the plain form"
    if not is_terminal(sys.stdout):
        raise click.UsageError(f"top draws on a terminal, and stdout is none: {plain}")
    if (os.environ.get("TERM") or "dumb") == "dumb":
        raise click.UsageError(f"this terminal (no TERM, or TERM=dumb) can't be drawn on: {plain}")
