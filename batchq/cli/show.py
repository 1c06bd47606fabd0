"""`batchq show`: one job with its attempts."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from batchq.cli.naming import batch_argument
from batchq.cli.opening import open_queue, tell_if_moved
from batchq.cli.options import HELP_NAMES, MAX_BIGINT, command_class, database_of, db_option, json_option, run_async
from batchq.display.text import dollars, one_line, table
from batchq.escapes import clean

if TYPE_CHECKING:
    from batchq.jobs import Attempt, Json, Result

_ATTEMPTS_HEADER = ("try", "outcome", "started", "seconds", "status", "in", "out", "cost", "error")


@click.command(cls=command_class(), context_settings=HELP_NAMES, short_help="Show one job with its attempts.")
@batch_argument()
@click.argument("position", type=click.IntRange(0, MAX_BIGINT), metavar="POSITION")
@db_option
@json_option
def show(name: str, position: int, *, db: str | None, as_json: bool) -> None:
    """Show the job at POSITION (from 0) of the batch NAME: prompt, result or error, and every attempt.

    \b
    batchq show demo 17
    batchq show demo 17 --json | jq .log
    """  # fmt: skip
    location = database_of(db)
    job, attempts = run_async(lambda: _read(location, name, position))
    if as_json:
        click.echo(json.dumps(_as_json(name, job, attempts)))
        return
    for line in _lines(name, job, attempts):
        click.echo(clean(line))


async def _read(location: str, name: str, position: int) -> tuple[Result, list[Attempt]]:
    from batchq.operating import find_job

    async with await open_queue(location) as store:
        await tell_if_moved(store)
        return await find_job(store, name, position)


def _lines(name: str, job: Result, attempts: list[Attempt]) -> list[str]:
    custom_id = f", custom_id {job.custom_id}" if job.custom_id is not None else ""
    lines = [f"{name} {job.position}{custom_id}: {job.state.value}, attempts {job.attempts}"]
    if job.payload is not None:
        lines += ["", "prompt", _pretty(job.payload)]
    if job.result is not None:
        lines += ["", "result", _pretty(job.result)]
    if job.error is not None or job.error_class is not None:
        lines += ["", f"error ({job.error_class or 'unknown'})", _indented(job.error or "")]
    spent = sum(item.cost or 0 for item in attempts)
    if len(attempts) > 1 and any(item.cost is not None for item in attempts):
        guessed = " (estimated)" if any(item.cost_source == "estimate" for item in attempts) else ""
        lines += ["", f"cost of all attempts {dollars(spent)}{guessed}"]
    if attempts:
        lines += ["", "attempts"]
        lines += ["  " + line for line in table(_ATTEMPTS_HEADER, [_row(item) for item in attempts], left=3)]
    return lines


def _row(item: Attempt) -> tuple[str, ...]:
    started = item.started_at
    seconds = "" if started is None else f"{(item.ended_at - started) / 1000:.1f}"
    when = "" if started is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(started / 1000))
    error = f"{item.error_class}: {item.error}" if item.error_class else item.error or ""
    return (
        str(item.number),
        item.outcome + (" (late)" if item.late else "") + ("" if item.charged else " (not charged)"),
        when,
        seconds,
        _text(item.status),
        _text(item.usage.input_tokens),
        _text(item.usage.output_tokens),
        dollars(item.cost),
        one_line(error),
    )


def _as_json(name: str, job: Result, attempts: list[Attempt]) -> dict[str, object]:
    return {
        "batch": name,
        "position": job.position,
        "custom_id": job.custom_id,
        "key": job.key,
        "state": job.state.value,
        "prompt": _decoded(job.payload),
        "result": _decoded(job.result),
        "error": job.error,
        "error_class": job.error_class,
        "finish_reason": job.finish_reason,
        "meta": _decoded(job.meta),
        "attempts": job.attempts,
        "usage": asdict(job.usage),
        "cost_nano_dollars": job.cost,
        "cost_source": job.cost_source,
        "response": _decoded(job.response),
        "log": [asdict(item) for item in attempts],
    }


def _decoded(text: str | None) -> Json:
    """Decode a stored value; one that is damaged is shown as it is."""
    try:
        value: Json = None if text is None else json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value


def _pretty(text: str) -> str:
    value = _decoded(text)
    return _indented(value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False))


def _indented(text: str) -> str:
    return "\n".join("  " + line for line in text.split("\n"))


def _text(value: int | None) -> str:
    return "" if value is None else str(value)
