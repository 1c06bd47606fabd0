"""`batchq enqueue`: add the prompts of a file to a batch."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batchq.cli.estimate import say_estimate
from batchq.cli.limit import LimitsAsked, asked_limits, lane_url, limit_options
from batchq.cli.opening import open_queue
from batchq.cli.options import (
    HELP_NAMES,
    command_class,
    command_line,
    db_option,
    json_option,
    quiet_option,
    run_async,
    settings_of,
)
from batchq.cli.request_options import (
    Asked,
    batch_name,
    policy_of,
    request_options,
    say_policy,
    surveyed,
    thrift_of,
    told_thrift,
)
from batchq.display.messages import is_terminal, say
from batchq.display.text import plural

if TYPE_CHECKING:
    from batchq.jobs import NewBatch
    from batchq.producer import Enqueued
    from batchq.survey import Survey


@click.command(cls=command_class(), context_settings=HELP_NAMES, short_help="Add the prompts of a file to a batch.")
@click.argument("source", metavar="INPUT")
@click.option("--batch", metavar="NAME", help="The batch's name; else that of the file without its ending.")
@click.option("--seal/--no-seal", default=None, help="Whether the batch is complete; from `-` it is not.")
@click.option("--dry-run", is_flag=True, help="Say what there is and what it may cost; write nothing.")
@request_options
@limit_options
@db_option
@json_option
@quiet_option
def enqueue(
    source: str,
    batch: str | None,
    *,
    seal: bool | None,
    dry_run: bool,
    db: str | None,
    as_json: bool,
    **options: Any,  # noqa: ANN401
) -> int:
    """Add the prompts of INPUT, a file or `-`, to a batch; run again, it adds only what is missing.

    JSONL (a string, {"prompt"}, {"messages"} or an OpenAI Batch line per line), TXT (a prompt per line),
    CSV, TSV or Parquet. Everything is checked before anything is written.

    \b
    batchq enqueue prompts.jsonl --model openai/gpt-4o-mini
    batchq enqueue reviews.csv --prompt "Positive or negative? {{ text }}" --set temperature=0
    batchq enqueue prompts.jsonl --budget 5.00 --rpm 600
    batchq enqueue prompts.jsonl --model openai/gpt-4o-mini --model google/gemini-2.5-flash
    batchq enqueue prompts.jsonl --dry-run
    """
    from batchq.terms import check_name

    limits = asked_limits(options)
    asked = Asked(**options)
    if dry_run and asked.skip_bad:
        raise click.UsageError("--dry-run writes nothing: leave --skip-bad out")
    path = None if source == "-" else Path(source)
    name = checked_name(batch, path)
    if path is None and is_terminal(sys.stdin):
        say("batchq: reading rows from the terminal; Ctrl-D ends them")
    settings = settings_of(db=db)
    if asked.endpoint not in settings.known_endpoints():
        say(f"batchq: {settings.unknown_endpoint(asked.endpoint)}; a worker elsewhere must know it")
    with surveyed(path, asked, settings) as (survey, unnamed):
        batches = [replace(new, name=batch_name(name, new, asked.models)) for new in unnamed]
        for new in batches:
            check_name(new.name)
        if dry_run:
            for new in batches:
                say_estimate(survey, new, settings, limits.rpm, as_json=as_json)
            return 0
        url = lane_url(settings, asked.endpoint, limits)
        sealing = path is not None if seal is None else seal
        enqueued = run_async(lambda: _add(settings.db, survey, batches, asked, limits, url, seal=sealing))
    for done in enqueued:
        _tell(done, asked, db, as_json=as_json)
    return 0


def _tell(done: Enqueued, asked: Asked, db: str | None, *, as_json: bool) -> None:
    say_policy(done)
    _report(done, asked, db)
    if as_json:
        click.echo(json.dumps(_summary(done)))


def checked_name(asked: str | None, path: Path | None) -> str:
    """Return the batch's name: as asked for, or the file's. Raises a usage error where it can't be one."""
    from batchq.terms import check_name

    if asked is None and path is None:
        raise click.UsageError("from standard input the batch needs a name: --batch NAME")
    if path is not None and path.is_dir():
        raise click.UsageError(f"{path} is a directory: name a file in it")
    name = asked if asked is not None else path.stem if path is not None else ""
    check_name(name)
    return name


async def _add(
    location: str, survey: Survey, batches: list[NewBatch], asked: Asked, limits: LimitsAsked, url: str, *, seal: bool
) -> list[Enqueued]:
    from batchq.producer import enqueue as add

    policy, thrift = policy_of(asked), thrift_of(asked)
    async with await open_queue(location, create=True, on_locked=lambda why: say(f"batchq: {why}")) as store:
        return [
            await add(
                store, survey, new, seal=seal, policy=policy, thrift=thrift,
                before_adding=limits.setter(store, new.worker, url, new.model),
            )
            for new in batches
        ]  # fmt: skip


def _report(done: Enqueued, asked: Asked, db: str | None) -> None:
    name = done.batch.name
    if done.added:
        parts = [f"added {plural(done.added, 'job')} to {name}"]
        if done.skipped:
            parts.append(f"{done.skipped:,} were there already")
    else:
        rows = "its 1 row is" if done.total == 1 else f"all {done.total:,} rows are"
        parts = [f"nothing to add: {rows} in {name} already"]
    parts += told_thrift(done)
    if done.absent:
        parts.append(f"the batch has {plural(done.absent, 'job')} more, which the input has no row for")
    if done.bad:
        parts.append(f"{plural(done.bad, 'bad row')} left out, see {asked.skip_bad}")
    worker = ["--worker", asked.worker] if ":" in asked.worker else []
    hint = f"{command_line('worker', *worker, db=db)}, then {command_line('collect', name, db=db)}"
    if not done.sealed:
        hint += f"; {command_line('seal', name, db=db)} when it is complete"
    say(f"batchq: {', '.join(parts)}; next: {hint}")


def _summary(done: Enqueued) -> dict[str, object]:
    return {
        "batch": done.batch.name,
        "added": done.added,
        "skipped": done.skipped,
        "bad": done.bad,
        "total": done.total,
        "sealed": done.sealed,
        "absent": done.absent,
        "followers": done.followers,
        "reused": done.reused,
    }
