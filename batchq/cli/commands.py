"""The group `batchq` and the table of its commands."""

from __future__ import annotations

import difflib
from importlib import import_module
from typing import cast

import click

from batchq.cli.options import HELP_NAMES, on_terminal

# In the order in which they are needed; a module is imported when its command is.
COMMANDS = {
    "run": "batchq.cli.run:run",
    "enqueue": "batchq.cli.enqueue:enqueue",
    "worker": "batchq.cli.worker:worker",
    "collect": "batchq.cli.collect:collect",
    "status": "batchq.cli.status:status",
    "show": "batchq.cli.show:show",
    "retry": "batchq.cli.operate:retry",
    "cancel": "batchq.cli.operate:cancel",
    "pause": "batchq.cli.operate:pause",
    "resume": "batchq.cli.operate:resume",
    "limit": "batchq.cli.limit:limit",
    "budget": "batchq.cli.money:budget",
    "concurrency": "batchq.cli.concurrency:concurrency",
    "seal": "batchq.cli.operate:seal",
    "purge": "batchq.cli.purge:purge",
}


class LazyCommands(click.Group):
    """A group that imports a command when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import a command."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name].partition(":")
        return cast("click.Command", getattr(import_module(module), attribute))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; an unknown one is answered with the nearest."""
        name = args[0]
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        if near and name not in COMMANDS and not name.startswith("-"):
            ctx.fail(f"No such command {name!r}. Did you mean {near[0]!r}?")
        return super().resolve_command(ctx, args)


def _group_class() -> type[click.Group]:
    """Return the group with coloured help where somebody sees colours; rich costs as much as all the rest."""
    if not on_terminal():
        return LazyCommands
    from rich_click import RichGroup

    return type("RichLazyCommands", (LazyCommands, RichGroup), {})


@click.group(cls=_group_class(), context_settings=HELP_NAMES)
@click.version_option(package_name="batchq", message="%(prog)s %(version)s")
def batchq() -> None:
    """Run many prompts through a language model, and lose none.

    \b
    batchq enqueue prompts.jsonl --batch demo --model openai/gpt-4o-mini
    batchq worker --concurrency 16
    batchq collect demo -o answers.jsonl

    `batchq run prompts.jsonl -o answers.jsonl` does the three in one.
    """
