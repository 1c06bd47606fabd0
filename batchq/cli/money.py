"""Dollars on the command line, and `batchq budget`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from batchq.cli.naming import batch_argument
from batchq.cli.opening import open_queue
from batchq.cli.options import (
    HELP_NAMES,
    command_class,
    command_line,
    database_of,
    db_option,
    json_option,
    quiet_option,
    run_async,
)
from batchq.display.messages import say
from batchq.display.text import dollars
from batchq.errors import UsageError
from batchq.escapes import clean
from batchq.money import nano_dollars

if TYPE_CHECKING:
    from batchq.jobs import Progress


class Dollars(click.ParamType[int]):
    """An amount like 5, 5.00 or $5, as nano-dollars."""

    name = "dollars"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:  # noqa: ANN401
        """Return nano-dollars."""
        if isinstance(value, int):
            return value
        try:
            return nano_dollars(str(value))
        except UsageError as error:
            self.fail(str(error), param, ctx)


DOLLARS = Dollars()


@click.command(cls=command_class(), context_settings=HELP_NAMES, short_help="Show or change what a batch may cost.")
@batch_argument()
@click.argument("amount", required=False, metavar="[DOLLARS|none]")
@db_option
@json_option
@quiet_option
def budget(name: str, amount: str | None, *, db: str | None, as_json: bool) -> None:
    """Show what the batch NAME has cost and may cost; with DOLLARS, change that; with `none`, lift it.

    \b
    batchq budget demo
    batchq budget demo 10
    """
    wanted = None if amount in {None, "none"} else DOLLARS.convert(amount, None, None)
    progress = run_async(lambda: _budget(database_of(db), name, wanted, change=amount is not None))
    if as_json:
        click.echo(json.dumps(_as_json(progress)))
    elif amount is None:
        click.echo(clean(f"{name}: {spent_of(progress)}"))
    else:
        say(f"batchq: {name}: {spent_of(progress)}")
    batch = progress.batch
    if batch.lacks_costs(progress.cost, progress.unpriced) and not progress.finished:
        lift = command_line("budget", name, "none", db=db)
        say(f"batchq: nothing of it starts any more, since no answer tells its cost; {lift} lets it go on")
    if progress.over_budget and not progress.finished:
        say(f"batchq: nothing of it starts any more; {command_line('budget', name, 'DOLLARS', db=db)} raises it")


def _as_json(progress: Progress) -> dict[str, object]:
    return {
        "batch": progress.batch.name,
        "budget_nano_dollars": progress.batch.budget,
        "cost_nano_dollars": progress.cost,
        "estimated_nano_dollars": progress.estimated,
        "unpriced": progress.unpriced,
        "over_budget": progress.over_budget,
    }


async def _budget(location: str, name: str, wanted: int | None, *, change: bool) -> Progress:
    async with await open_queue(location) as store:
        batch = await store.batch(name)
        if change:
            await store.update_policy(batch, {"budget": wanted})
        return await store.progress(name)


def spent_of(progress: Progress) -> str:
    """Say what a batch has cost, how sure that is, and what it may cost."""
    parts = [f"cost {dollars(progress.cost) if progress.cost is not None else 'unknown'}"]
    if progress.estimated:
        parts.append(f"{dollars(progress.estimated)} of it estimated")
    if progress.unpriced:
        parts.append(f"{progress.unpriced:,} answers told no cost")
    budget = progress.batch.budget
    parts.append("no budget" if budget is None else f"budget {dollars(budget)}")
    return ", ".join(parts)
