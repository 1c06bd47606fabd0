"""Groups whose commands are imported when they are asked for."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib import import_module
from typing import Any, cast

import click

from batchq.cli.options import on_terminal


class LazyCommands(click.Group):
    """A group that imports a command when it is asked for; `table` says where each is, in the order of the help."""

    def __init__(self, *arguments: Any, table: Mapping[str, str], **options: Any) -> None:  # noqa: ANN401 - click's
        """Take the commands from `table`, as "module:attribute"."""
        super().__init__(*arguments, **options)
        self._table = table

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the names in the order of the table."""
        return list(self._table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import a command."""
        if cmd_name not in self._table:
            return None
        module, _, attribute = self._table[cmd_name].partition(":")
        return cast("click.Command", getattr(import_module(module), attribute))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; an unknown one is answered with the nearest."""
        name = args[0]
        near = difflib.get_close_matches(name, self._table, n=1)
        if near and name not in self._table and not name.startswith("-"):
            ctx.fail(f"No such command {name!r}. Did you mean {near[0]!r}?")
        return super().resolve_command(ctx, args)


def group_class() -> type[LazyCommands]:
    """Return the group with coloured help where somebody sees colours; rich costs as much as all the rest."""
    if not on_terminal():
        return LazyCommands
    from rich_click import RichGroup

    return type("RichLazyCommands", (LazyCommands, RichGroup), {})
