"""`batchq limit`: what may go through a lane, for all workers together; and the same as options of `enqueue`."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any, TypeVar

import click

from batchq.cli.opening import open_queue
from batchq.cli.options import (
    HELP_NAMES,
    MAX_INTEGER,
    command_class,
    db_option,
    json_option,
    quiet_option,
    run_async,
    settings_of,
)
from batchq.display.lanes import limits_of
from batchq.display.messages import say
from batchq.escapes import clean
from batchq.limits import LEAST, LimitChanges, change_limits

if TYPE_CHECKING:
    from batchq.config import Settings
    from batchq.jobs import Lane
    from batchq.store import Store

F = TypeVar("F", bound=Callable[..., Any])


class Amount(click.ParamType[float]):
    """A positive number, or `none` for no limit, as 0."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:  # noqa: ANN401
        """Return the number; 0 stands for `none`."""
        if str(value).strip().lower() == "none":
            return 0.0
        try:
            number = float(value)
        except ValueError:
            self.fail(f"{value!r} is not a number; write 600, or none for no limit", param, ctx)
        if not LEAST <= number <= MAX_INTEGER:
            self.fail(f"{value!r} is not between {LEAST:g} and {MAX_INTEGER:,}; `none` is no limit", param, ctx)
        return number


class LimitsAsked(LimitChanges):
    """What limit options say."""

    __slots__ = ()

    def setter(self, store: Store, worker: str, base_url: str, model: str) -> Callable[[], Awaitable[None]] | None:
        """Return what sets these limits for a lane and says so; None where none was given."""
        if not self:
            return None

        async def set_and_say() -> None:
            say(f"batchq: {describe(await change_limits(store, worker, base_url, model, self))}")

        return set_and_say


def limit_options(command: F) -> F:
    """Add the options that make a `LimitsAsked`."""
    options = (
        click.option("--rpm", type=Amount(), help="Requests per minute, or none."),
        click.option("--tpm", type=Amount(), help="Tokens per minute, in and out together, or none."),
        click.option("--max-inflight", type=Amount(), help="Calls at once, or none."),
        click.option(
            "--burst", type=Amount(), help="Requests that --rpm lets start at once.  [default: 2, or 0.1 s worth]"
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def asked_limits(options: dict[str, Any]) -> LimitsAsked:
    """Take the limits out of a command's options. Raises a usage error for what can't be one."""
    limits = LimitsAsked(**{field.name: options.pop(field.name) for field in fields(LimitsAsked)})
    if limits.max_inflight is not None and limits.max_inflight % 1:
        raise click.UsageError("--max-inflight counts calls: a whole number")
    if limits.burst is not None and 0 < limits.burst < 1:
        raise click.UsageError("--burst must let one call start at least")
    return limits


@click.command(
    cls=command_class(),
    context_settings=HELP_NAMES,
    short_help="Limit a model's rate, for all workers together.",
)
@click.argument("model")
@limit_options
@click.option("--worker", default="openrouter", show_default=True, metavar="NAME", help="The worker that calls it.")
@click.option("--endpoint", default="default", show_default=True, metavar="NAME", help="The server, by its name.")
@click.option("--base-url", metavar="URL", help="The server of the endpoint `default`, instead of OpenRouter.")
@click.option("--forget", is_flag=True, help="Forget the rate that 429s have taught.")
@db_option
@json_option
@quiet_option
def limit(
    model: str,
    *,
    worker: str,
    endpoint: str,
    base_url: str | None,
    forget: bool,
    db: str | None,
    as_json: bool,
    **options: Any,  # noqa: ANN401
) -> None:
    """Set what MODEL may be asked, by all worker processes on this queue together; show it without options.

    Workers heed it from their next claim on. What is not named stays as it is; `none` lifts a limit.

    \b
    batchq limit openai/gpt-4o-mini --rpm 600 --tpm 200000
    batchq limit openai/gpt-4o-mini --max-inflight none
    """
    from batchq.discovery import worker_name

    limits = asked_limits(options)
    settings = settings_of(db=db, base_url=base_url)
    url = settings.require_server(endpoint).base_url
    lane, used, elsewhere = run_async(
        lambda: _limit(settings.db, worker_name(worker), endpoint, url, model, limits, forget=forget)
    )
    told = describe(lane) + ("" if used else f"; no batch asks {worker} for {model} yet")
    if as_json:
        click.echo(json.dumps(asdict(lane) | {"used": used, "other_servers": elsewhere}))
    elif limits or forget:
        say(f"batchq: {told}")
    else:
        click.echo(clean(told))
    for other in elsewhere:
        say(f"batchq: workers call {other} for this endpoint: limit that with --base-url {other}")


async def _limit(
    location: str, worker: str, endpoint: str, base_url: str, model: str, asked: LimitsAsked, *, forget: bool
) -> tuple[Lane, bool, list[str]]:
    async with await open_queue(location, create=bool(asked)) as store:
        lane = await change_limits(store, worker, base_url, model, asked, forget=forget)
        used = any((batch.worker, batch.model) == (worker, model) for batch in await store.batches())
        return lane, used, sorted(await _other_urls(store, worker, endpoint, base_url))


async def _other_urls(store: Store, worker: str, endpoint: str, base_url: str) -> set[str]:
    """Return the servers that live workers call for an endpoint, beside the one that is meant here."""
    found = {
        runner.endpoints[endpoint]
        for runner in await store.runners()
        if runner.live and worker in runner.serves.split(",") and endpoint in runner.endpoints
    }
    return found - {base_url}


def lane_url(settings: Settings, endpoint: str, limits: LimitsAsked) -> str:
    """Return the server whose lane is limited. Raises UsageError where limits name one that is not known here."""
    from batchq.errors import UsageError

    found = settings.server(endpoint)
    if found is None and limits:
        raise UsageError(f"its limits can't be set: {settings.unknown_endpoint(endpoint)}")
    return "" if found is None else found.base_url


def describe(lane: Lane) -> str:
    """Return a lane with its limits in one line."""
    from batchq.waiting import lane_label

    parts = limits_of(lane) or ["no limit"]
    return f"{lane_label(lane)}: {', '.join(parts)}"
