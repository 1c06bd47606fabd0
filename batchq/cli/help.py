"""`batchq help`: the help of a command, or a table that belongs to none."""

from __future__ import annotations

from collections.abc import Mapping

import click

from batchq.cli.options import HELP_NAMES, command_class
from batchq.exit_codes import ExitCode

# What `status` and `top` say of a batch.
STATES = {
    "adding": "a producer is still adding to it",
    "incomplete": "its producer ended before it was complete: run the same enqueue again, or `batchq seal`",
    "waiting": "nothing of it runs at the moment; `status` says why, and what to do",
    "running": "workers have jobs of it in hand",
    "paused": "`batchq pause` was called: nothing of it starts until `batchq resume`",
    "halted": "the provider refuses every call (a key, credit, the model): `status` has its words",
    "over budget": "it has cost what it may cost: `batchq budget NAME DOLLARS` raises that",
    "cancelled": "what had not ended was cancelled: `batchq retry` revives it",
    "purging": "it is being deleted, or that was broken off: `batchq purge` completes it",
    "finished": "every job has ended, as done, failed or cancelled",
}


@click.command(
    "help", cls=command_class(), context_settings=HELP_NAMES, short_help="Show the help of a command, or a table."
)
@click.argument("topics", nargs=-1, metavar="[COMMAND | exit-codes | states]")
@click.pass_context
def show_help(context: click.Context, topics: tuple[str, ...]) -> None:
    """Show what --help shows of a command; also two tables: exit-codes, and the states of a batch.

    \b
    batchq help worker
    batchq help exit-codes
    batchq help states
    """  # fmt: skip
    match topics:
        case ("exit-codes",):
            _print_table({str(code.value): code.meaning for code in ExitCode})
        case ("states",):
            _print_table(STATES)
        case _:
            click.echo(_help_of(context, topics))


def _print_table(meanings: Mapping[str, str]) -> None:
    width = max(map(len, meanings))
    for word, meaning in meanings.items():
        click.echo(f"{word:<{width}}  {meaning}")


def _help_of(context: click.Context, names: tuple[str, ...]) -> str:
    """Return the help of the command that the names lead to. Raises a usage error where they lead to none."""
    found = context.find_root()
    for name in names:
        group = found.command
        if not isinstance(group, click.Group):
            raise click.UsageError(f"{found.command_path} has no commands of its own")
        resolved, command, _rest = group.resolve_command(found, [name])
        if command is None:
            raise click.UsageError(f"there is no command {name!r}")
        found = command.make_context(resolved, [], parent=found, resilient_parsing=True)
    return found.get_help()
