"""`batchq db copy`: move the whole queue into another database."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from batchq.cli.options import HELP_NAMES, command_class, database_of, json_option, quiet_option, run_async
from batchq.display.messages import say
from batchq.display.text import plural

if TYPE_CHECKING:
    from batchq.transfer import Moved
    from batchq.transfer_progress import Step

_UNITS = {"batches": "batch", "jobs": "job", "attempts": "attempt", "lanes": "lane"}


@click.command(cls=command_class(), context_settings=HELP_NAMES, short_help="Move the queue to another database.")
@click.argument("source", metavar="SOURCE")
@click.argument("target", metavar="TARGET")
@click.option("--force", is_flag=True, help="Also if somebody is at work on SOURCE; their calls may be paid for twice.")
@click.option("--no-verify", is_flag=True, help="Do not compare all rows afterwards.")
@click.option("--undo", is_flag=True, help="Let SOURCE be used again, after a copy that was broken off.")
@json_option
@quiet_option
def copy(source: str, target: str, *, force: bool, no_verify: bool, undo: bool, as_json: bool) -> None:
    """Move the queue in SOURCE to TARGET: each a file or a URL, as --db takes it; TARGET is made if it is not there.

    \b
    batchq db copy runs.db postgresql+psycopg://user@host/queue

    Stop workers and producers before. SOURCE can only be read from then on, so that no job is paid for in both; TARGET
    opens when all is there and compared. Broken off at any point, the same command goes on.
    """
    source, target = database_of(source), database_of(target)
    if undo:
        undone = _undo(source, target, force=force)
        if as_json:
            click.echo(json.dumps({"undone": undone}))
        return
    moved = _move(source, target, force=force, verify=not no_verify)
    if as_json:
        click.echo(json.dumps(asdict(moved)))
    _report(moved)


def _move(source: str, target: str, *, force: bool, verify: bool) -> Moved:
    from batchq.display.steps import show_steps
    from batchq.errors import BatchqError
    from batchq.transfer import move_queue

    begun = False
    try:
        with show_steps() as show:

            def on_step(step: Step) -> None:
                nonlocal begun
                begun = True
                show(step)

            return run_async(
                lambda: move_queue(
                    source,
                    target,
                    force=force,
                    verify=verify,
                    on_step=on_step,
                    on_locked=lambda reason: say(f"batchq: {reason}"),
                )
            )
    except BaseException as error:
        if begun and not (isinstance(error, BatchqError) and "--undo" in str(error)):
            say(
                "batchq: the copy is not complete: run the same command again to go on, or with --undo to use the"
                " source again"
            )
        raise


def _report(moved: Moved) -> None:
    if moved.already:
        say(f"batchq: {moved.target} holds the queue of {moved.source} already: nothing was copied")
        return
    parts = [plural(moved.rows.get(table, 0), unit) for table, unit in _UNITS.items()]
    if moved.states:
        parts[1] += f" ({', '.join(f'{count:,} {state}' for state, count in sorted(moved.states.items()))})"
    compared = f"compared, checksum {moved.checksum}" if moved.checksum else "not compared"
    say(f"batchq: copied {', '.join(parts)}; {compared}")
    if moved.shift_ms:
        say(f"batchq: the clocks of the two differ: all times were moved by {moved.shift_ms / 1000:+,.1f} s")
    say(f"batchq: {moved.source} is only read from now on; use {moved.target}")


def _undo(source: str, target: str, *, force: bool) -> bool:
    from batchq.transfer import take_back

    undone = run_async(lambda: take_back(source, target, force=force))
    if undone:
        say("batchq: the source can be used again; delete what the copy has left in its target")
    else:
        say("batchq: the source was not copied away: nothing changed")
    return undone
