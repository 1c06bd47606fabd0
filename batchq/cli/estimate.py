"""`batchq enqueue --dry-run`: what there is, and what it may cost."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from batchq.display.text import dollars, duration, plural
from batchq.escapes import clean

if TYPE_CHECKING:
    from decimal import Decimal

    from batchq.config import Settings
    from batchq.estimate import Estimate
    from batchq.jobs import NewBatch
    from batchq.survey import Survey

_NANO = 1_000_000_000


def say_estimate(survey: Survey, new: NewBatch, settings: Settings, rpm: float | None, *, as_json: bool) -> int:
    """Print an estimate on stdout; nothing is written, and no queue is made."""
    from batchq.estimate import estimate
    from batchq.prices import Prices, can_estimate

    endpoint = settings.server(new.endpoint)
    prices = Prices(endpoint.base_url if endpoint else "", endpoint.prices if endpoint else None)
    found = estimate(survey, new, prices)
    if as_json:
        values = {name: float(value) if _is_money(name, value) else value for name, value in asdict(found).items()}
        click.echo(json.dumps({"batch": new.name, "model": new.model, **values}))
        return 0
    for line in [*_lines(found, new, survey.bad), *_bounds(found, new, rpm)]:
        click.echo(clean(line))
    if found.input_cost is None and not can_estimate():
        click.echo("  prices are not installed: pip install 'batchq[prices]'")
    return 0


def _is_money(name: str, value: object) -> bool:
    return name.endswith("_cost") and value is not None


def _lines(found: Estimate, new: NewBatch, bad: int) -> list[str]:
    left_out = f", {plural(bad, 'bad row')} left out" if bad else ""
    most = found.output_tokens
    output = "not limited: set max_tokens to bound it" if most is None else f"at most {most:,}"
    return [
        f"{new.name}: {plural(found.rows, 'row')} for {new.model or new.worker}{left_out}; nothing was enqueued",
        f"  input tokens   about {found.input_tokens:,} (four characters each)   {_price(found.input_cost)}",
        f"  output tokens  {output}   {_price(found.output_cost)}",
    ]


def _bounds(found: Estimate, new: NewBatch, rpm: float | None) -> list[str]:
    """Say whether the estimate stays within the budget, and how long the rate limit makes it take."""
    lines = []
    if rpm:
        lines.append(f"  time           at least {duration(found.rows * 60 / rpm)} at {rpm:,.6g} requests/min")
    if new.budget is not None:
        budget = dollars(new.budget)
        costs = [cost for cost in (found.input_cost, found.output_cost) if cost is not None]
        if costs:
            fits = sum(costs) * _NANO <= new.budget
            lines.append(f"  budget         {budget}, which is {'enough for' if fits else 'less than'} that")
        else:
            lines.append(f"  budget         {budget}; where no answer tells its cost, only a few will run")
    return lines


def _price(cost: Decimal | None) -> str:
    return "cost unknown" if cost is None else f"about ${cost:,.4f}"
