"""`batchq collect`: wait for a batch, then write its results in order."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batchq.cli.collected import exit_code, report, require_file
from batchq.cli.naming import batch_argument
from batchq.cli.opening import open_queue
from batchq.cli.options import (
    DURATION,
    HELP_NAMES,
    command_class,
    database_path,
    db_option,
    json_option,
    quiet_option,
    run_async,
    settings_of,
)
from batchq.cli.output_options import output_of, output_options
from batchq.cli.reading_options import INPUT_FORMATS
from batchq.display.messages import is_terminal, say
from batchq.display.text import plural

if TYPE_CHECKING:
    from batchq.collecting import Collected, Output
    from batchq.store import Store


@click.command(cls=command_class(), context_settings=HELP_NAMES, short_help="Wait for a batch; write its results.")
@batch_argument()
@click.option("-o", "--out", type=click.Path(path_type=Path), metavar="FILE", help="Where to; else standard output.")
@output_options
@click.option("--id-field", metavar="NAME", help="The field or column of INPUT with each row's custom_id.")
@click.option("--input-format", type=click.Choice(INPUT_FORMATS), help="Else told by the name of INPUT.")
@click.option("--follow", is_flag=True, help="Write each row as soon as all before it are done; go on with FILE.")
@click.option("--no-wait", is_flag=True, help="Write what there is now.")
@click.option("--wait-timeout", type=DURATION, help="Give up after this long, e.g. 2h: exit code 4.")
@click.option("--strict", is_flag=True, help="Exit with 3 if any job failed or was cancelled.")
@click.option("--force", is_flag=True, help="Overwrite FILE even if it does not hold results.")
@db_option
@json_option
@quiet_option
def collect(
    name: str,
    out: Path | None,
    *,
    id_field: str | None,
    input_format: str | None,
    follow: bool,
    no_wait: bool,
    wait_timeout: float | None,
    strict: bool,
    force: bool,
    db: str | None,
    as_json: bool,
    **options: Any,  # noqa: ANN401
) -> int:
    """Wait until the batch NAME is finished, then write every job in input order: by default a JSON line each.

    \b
    batchq collect demo -o answers.jsonl
    batchq collect demo -o answers.csv --with-input reviews.csv --errors failed.csv
    batchq collect demo -o answers.jsonl --follow
    batchq collect demo --no-wait | head
    """
    from batchq.collecting import check_follow, check_output
    from batchq.formats import ReadOptions

    if input_format is not None and options["with_input"] is None:
        raise click.UsageError("--input-format goes with --with-input")
    if id_field is not None and options["with_input"] is None:
        raise click.UsageError("--id-field goes with --with-input")
    if follow and no_wait:
        raise click.UsageError("--follow waits for the batch: leave out --no-wait")
    output = output_of(out, read=ReadOptions(input_format, id_field=id_field), **options)
    require_file(output, as_json=as_json)
    settings = settings_of(db=db)
    location = settings.db
    if follow:
        check_follow(output, database=database_path(settings))
    else:
        check_output(output, overwrite=force, database=database_path(settings))
    waiting = _Waiting(follow=follow, wait=not no_wait, timeout=wait_timeout, start_over=force)
    collected = run_async(lambda: _collect(location, name, output, waiting))
    report(collected, output, db, as_json=as_json)
    return exit_code(collected, strict=strict)


@dataclass(frozen=True, slots=True)
class _Waiting:
    """How to wait: till the end, or writing meanwhile, or not at all."""

    follow: bool
    wait: bool
    timeout: float | None
    start_over: bool


async def _collect(location: str, name: str, output: Output, waiting: _Waiting) -> Collected:
    from batchq.collecting import check_not_source, write_results

    async with await open_queue(location) as store:
        check_not_source(output, await store.batch(name))
        await _tell_if_moved(store, name, waiting)
        if waiting.follow:
            return await _follow(store, name, output, waiting)
        if waiting.wait:
            await _wait(store, name, waiting)
        return await write_results(store, name, output)


async def _tell_if_moved(store: Store, name: str, waiting: _Waiting) -> None:
    """Say where the queue is by now, if it was moved. Raises QueueMoved where a batch would be waited for in vain."""
    from batchq.errors import QueueMoved
    from batchq.waiting import told_moved

    place = await store.moved_to()
    if place is None:
        return
    if waiting.wait and not (progress := await store.progress(name)).finished:
        left = plural(progress.counts.live, "unfinished job")
        raise QueueMoved(f"{told_moved(place)}: {name} has {left}; --no-wait writes what there is")
    say(f"batchq: {told_moved(place)}")


async def _wait(store: Store, name: str, waiting: _Waiting) -> None:
    from batchq.coordinator import wait_until_finished
    from batchq.display.progress import show_progress

    with show_progress(store.location) as update:
        await wait_until_finished(store, name, wait_timeout=waiting.timeout, on_progress=update)


async def _follow(store: Store, name: str, output: Output, waiting: _Waiting) -> Collected:
    from batchq.collecting import follow
    from batchq.display.progress import show_progress

    with ExitStack() as stack:
        update = None
        if output.path is not None or not is_terminal(sys.stdout):  # a bar among the rows would be in their way
            update = stack.enter_context(show_progress(store.location))
        return await follow(
            store, name, output, start_over=waiting.start_over, wait_timeout=waiting.timeout, on_progress=update
        )
