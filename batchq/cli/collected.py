"""What came of a batch, once its results are written: for people on stderr, for machines on stdout, as an exit code."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from batchq.cli.exits import EXIT_SOME_FAILED
from batchq.cli.options import command_line
from batchq.display.messages import say
from batchq.display.text import example_of, plural, told_cost

if TYPE_CHECKING:
    from pathlib import Path

    from batchq.collecting import Collected, Output


def report(collected: Collected, output: Output, db: str | None, *, as_json: bool) -> None:
    """Tell what was written of a batch, and how jobs failed."""
    say_collected(collected, output, db)
    if as_json:
        click.echo(json.dumps(_as_json(collected, output)))


def require_file(output: Output, *, as_json: bool) -> None:
    """Raise a usage error where a summary in JSON would stand among the results."""
    if as_json and output.path is None:
        raise click.UsageError("--json prints what came of the batch on stdout: write the results to a file with -o")


def _as_json(collected: Collected, output: Output) -> dict[str, object]:
    counts, usage, progress = collected.counts, collected.progress.usage, collected.progress
    return {
        "batch": collected.batch.name,
        "done": counts.done,
        "failed": counts.failed,
        "cancelled": counts.cancelled,
        "unfinished": counts.live,
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cost_nano_dollars": progress.cost,
        "estimated_nano_dollars": progress.estimated,
        "out": _path(output.path),
        "written": collected.written,
        "errors": _path(output.errors),
        "set_aside": collected.set_aside,
        "failures": [
            {"class": group.error_class, "jobs": group.count, "example_position": group.example_position}
            for group in collected.errors
        ],
    }


def _path(path: Path | None) -> str | None:
    return None if path is None else str(path)


def say_collected(collected: Collected, output: Output, db: str | None) -> None:
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
    say(f"batchq: {name}: {', '.join(parts)}{_told_places(collected, output)}")
    for group in collected.errors:
        say(f"  {group.count:,} with {group.error_class}, e.g. {example_of(group)}")
    if collected.errors:
        position = str(collected.errors[0].example_position)
        say(
            f"batchq: {command_line('show', name, position, db=db)} tells all about one,"
            f" {command_line('retry', name, db=db)} runs the failed ones again"
        )


def _told_places(collected: Collected, output: Output) -> str:
    what = "row" if output.actual_format in {"csv", "tsv", "parquet"} else "line"
    written = ((collected.written, output.path), (collected.set_aside, output.errors))
    places = [f"{plural(count, what)} to {path}" for count, path in written if path is not None]
    return f"; wrote {', '.join(places)}" if places else ""


def exit_code(collected: Collected, *, strict: bool) -> int:
    """Return 3 where every job should be done and one is not, else 0."""
    counts = collected.counts
    return EXIT_SOME_FAILED if strict and (counts.failed or counts.cancelled) else 0
