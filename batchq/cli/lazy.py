"""Groups whose commands are imported when they are asked for."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from typing import Any, cast

import click

from batchq.cli.options import on_terminal


class LazyCommands(click.Group):
    """A group that imports a command when it is asked for; `table` says where each is, in the order of the help."""

    def __init__(
        self,
        *arguments: Any,  # noqa: ANN401 - click's
        table: Mapping[str, str],
        sections: Mapping[str, Sequence[str]] | None = None,
        summaries: Mapping[str, str] | None = None,
        **options: Any,  # noqa: ANN401
    ) -> None:
        """Take the commands from `table`, as "module:attribute", and show them in `sections`, by title.

        A command with a summary is not imported to be shown.
        """
        super().__init__(*arguments, **options)
        self._table = table
        self._sections = sections or {"Commands": ()}
        self._summaries = summaries or {}

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the names in the order of the table."""
        return list(self._table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import a command."""
        if cmd_name not in self._table:
            return None
        module, _, attribute = self._table[cmd_name].partition(":")
        return cast("click.Command", getattr(import_module(module), attribute))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections."""
        for title, names in sections_of(self._table, self._sections).items():
            with formatter.section(title):
                formatter.write_dl([(name, self._summary(ctx, name)) for name in names])

    def _summary(self, ctx: click.Context, name: str) -> str:
        command = None if name in self._summaries else self.get_command(ctx, name)
        return self._summaries.get(name, "") if command is None else command.get_short_help_str(60)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; an unknown one is answered with the nearest."""
        name = args[0]
        near = difflib.get_close_matches(name, self._table, n=1)
        if near and name not in self._table and not name.startswith("-"):
            ctx.fail(f"No such command {name!r}. Did you mean {near[0]!r}?")
        return super().resolve_command(ctx, args)


def sections_of(table: Iterable[str], sections: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return those commands of each section that there are; what is in none stands in the last."""
    names = list(table)
    placed = {name for members in sections.values() for name in members}
    found = {title: [name for name in members if name in names] for title, members in sections.items()}
    found[list(found)[-1]] += [name for name in names if name not in placed]
    return {title: members for title, members in found.items() if members}


def group_class() -> type[LazyCommands]:
    """Return the group with coloured help where somebody sees colours; rich costs as much as all the rest."""
    if not on_terminal():
        return LazyCommands
    from rich_click import RichGroup
    from rich_click.rich_panel import RichCommandPanel

    def make(self: Any, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 - made of two classes at run time
        LazyCommands.__init__(self, *arguments, **options)
        for title, names in sections_of(self._table, self._sections).items():
            self.add_panel(RichCommandPanel(title, commands=names))

    own = {"__init__": make, "format_commands": RichGroup.format_commands}
    return type("RichLazyCommands", (LazyCommands, RichGroup), own)
