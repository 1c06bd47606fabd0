"""`batchq health`: whether the workers on this machine are well. It runs every few seconds, and imports little."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from batchq.cli.exits import EXIT_FAILURE
from batchq.cli.options import HELP_NAMES, command_class, json_option
from batchq.display.messages import say
from batchq.display.text import plural
from batchq.errors import ConfigurationError
from batchq.escapes import clean

if TYPE_CHECKING:
    from batchq.supervision.health import WorkerHealth
    from batchq.supervision.runtime import RuntimeDirectory


@click.command(cls=command_class(), context_settings=HELP_NAMES, short_help="Ask whether the workers here are well.")
@click.argument("names", nargs=-1, metavar="[WORKER]...")
@click.option(
    "--runtime-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where the workers write: their BATCHQ_RUNTIME_DIR, or what is in its place.",
)
@json_option
def health(names: tuple[str, ...], *, runtime_dir: Path | None, as_json: bool) -> int:
    """Ask whether the workers on this machine are well: all of them, or each WORKER, by its pid.

    \b
    batchq health
    batchq health --json
    batchq health --runtime-dir /run/batchq

    One is well while its loop comes round within its lease, which it writes into a small file; neither the database
    nor the provider is asked. Ends with 0 if all are well, with 1 if one is stuck or none runs.
    """
    if sys.platform == "win32":
        raise ConfigurationError("workers don't say how they are on Windows")
    from batchq.supervision.runtime import runtime_directory

    directory = runtime_directory(os.environ, runtime_dir)
    workers = _look(directory)
    asked = [each for each in workers if any(map(each.is_called, names))] if names else workers
    wrong = _what_is_wrong(asked, names, directory.path)
    if as_json:
        told = [{**asdict(each.last), **_judged(each)} for each in asked]
        click.echo(json.dumps({"healthy": not wrong, "reason": "; ".join(wrong) or None, "workers": told}))
    else:
        for each in asked:
            click.echo(clean(_line(each)))
    for sentence in wrong:
        say(f"batchq: {sentence}")
    return EXIT_FAILURE if wrong else 0


def _look(directory: RuntimeDirectory) -> list[WorkerHealth]:
    from batchq.supervision.health import look_at_workers

    try:
        return look_at_workers(directory)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigurationError(f"can't look into {directory.path}: {error.strerror or error}") from None


def _what_is_wrong(workers: list[WorkerHealth], names: tuple[str, ...], directory: Path) -> list[str]:
    """Return a sentence for each worker that is not well, or for there being none."""
    living = [each for each in workers if not each.ended]
    missing = [name for name in names if not any(each.is_called(name) for each in living)]
    wrong = [f"no worker {name} runs here, by what is in {directory}" for name in missing]
    if not living and not names:
        wrong.append(
            f"no worker runs here, by what is in {directory}; --runtime-dir names the place where others write"
        )
    return wrong + [
        f"worker {each.last.pid} is stuck: its loop has not come round for {each.silent_seconds:g} s, and its lease is"
        f" {each.last.lease_seconds:g} s; see its log, or restart it"
        for each in living
        if not each.healthy
    ]


def _line(worker: WorkerHealth) -> str:
    last = worker.last
    if worker.ended:
        return (
            f"worker {last.pid}: gone without a word, last heard of {worker.silent_seconds:g} s ago; the jobs that it"
            " held run again when their leases end"
        )
    state = last.phase if worker.healthy else "stuck"
    away = ", its database is away" if last.database_away else ""
    return (
        f"worker {last.pid}: {state}, {last.in_flight} of {plural(last.concurrency, 'call')} in flight,"
        f" {last.done:,} done, {last.failed:,} failed, came round {worker.silent_seconds:g} s ago{away}"
    )


def _judged(worker: WorkerHealth) -> dict[str, object]:
    return {"healthy": worker.healthy, "ended": worker.ended, "silent_seconds": worker.silent_seconds}
