"""`batchq collect`: wait for a batch, then write its results in order."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from batchq.cli.exits import EXIT_SOME_FAILED
from batchq.cli.options import (
    DURATION,
    HELP_NAMES,
    command_class,
    command_line,
    database_path,
    db_option,
    run_async,
    settings_of,
)
from batchq.display.messages import say
from batchq.display.text import one_line, plural, told_cost

if TYPE_CHECKING:
    from batchq.coordinator import Collected


@click.command(cls=command_class(), context_settings=HELP_NAMES, short_help="Wait for a batch; write its results.")
@click.argument("name")
@click.option("-o", "--out", type=click.Path(path_type=Path), metavar="FILE", help="Where to; else standard output.")
@click.option("--with-prompt", is_flag=True, help="Put each prompt beside its result.")
@click.option("--no-wait", is_flag=True, help="Write what there is now.")
@click.option("--wait-timeout", type=DURATION, help="Give up after this long, e.g. 2h: exit code 4.")
@click.option("--strict", is_flag=True, help="Exit with 3 if any job failed or was cancelled.")
@click.option("--force", is_flag=True, help="Overwrite FILE even if it does not hold results.")
@db_option
def collect(
    name: str,
    out: Path | None,
    *,
    with_prompt: bool,
    no_wait: bool,
    wait_timeout: float | None,
    strict: bool,
    force: bool,
    db: str | None,
) -> int:
    """Wait until the batch NAME is finished, then write every job in input order, one JSON line each.

    \b
    batchq collect demo -o answers.jsonl
    batchq collect demo --no-wait | head
    """
    from batchq.coordinator import check_output

    if out == Path("-"):
        out = None
    settings = settings_of(db=db)
    location = settings.db
    if out is not None:
        check_output(out, overwrite=force, database=database_path(settings))
    collected = run_async(
        lambda: _collect(location, name, out, with_prompt=with_prompt, wait=not no_wait, wait_timeout=wait_timeout)
    )
    report(collected, out, db)
    return exit_code(collected, strict=strict)


async def _collect(
    location: str, name: str, out: Path | None, *, with_prompt: bool, wait: bool, wait_timeout: float | None
) -> Collected:
    from batchq.coordinator import check_not_source, wait_until_finished, write_results
    from batchq.display.progress import show_progress
    from batchq.store import open_store

    async with await open_store(location) as store:
        if out is not None:
            check_not_source(out, await store.batch(name))
        if wait:
            with show_progress(store.location) as update:
                await wait_until_finished(store, name, wait_timeout=wait_timeout, on_progress=update)
        return await write_results(store, name, out, with_prompt=with_prompt)


def report(collected: Collected, out: Path | None, db: str | None) -> None:
    """Say on stderr what was written, and how jobs failed, with one example of each kind."""
    name, counts, usage = collected.batch.name, collected.counts, collected.progress.usage
    parts = [f"{counts.done:,} done"]
    parts += [
        f"{count:,} {what}"
        for count, what in (
            (counts.failed, "failed"),
            (counts.cancelled, "cancelled"),
            (counts.live, "not finished"),
        )
        if count
    ]
    if usage.input_tokens or usage.output_tokens:
        parts.append(f"{usage.input_tokens or 0:,} tokens in, {usage.output_tokens or 0:,} out")
    if collected.progress.cost:
        parts.append(told_cost(collected.progress))
    where = f"; wrote {plural(counts.total, 'line')} to {out}" if out is not None else ""
    say(f"batchq: {name}: {', '.join(parts)}{where}")
    for group in collected.errors:
        example = f"position {group.example_position}: {one_line(group.example)}"
        say(f"  {group.count:,} with {group.error_class}, e.g. {example}")
    if collected.errors:
        position = str(collected.errors[0].example_position)
        say(
            f"batchq: {command_line('show', name, position, db=db)} tells all about one,"
            f" {command_line('retry', name, db=db)} runs the failed ones again"
        )


def exit_code(collected: Collected, *, strict: bool) -> int:
    """Return 3 where every job should be done and one is not, else 0."""
    counts = collected.counts
    return EXIT_SOME_FAILED if strict and (counts.failed or counts.cancelled) else 0
