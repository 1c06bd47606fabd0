"""`batchq doctor`: looks everything over that may keep batchq from its work, and says what to do."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from batchq.cli.exits import EXIT_FAILURE
from batchq.cli.options import (
    DURATION,
    HELP_NAMES,
    command_class,
    db_option,
    insecure_option,
    json_option,
    on_terminal,
    run_async,
)
from batchq.concealing import conceal
from batchq.escapes import clean

if TYPE_CHECKING:
    from batchq.doctor import Asked, Finding

_LEVEL_WIDTH, _NAME_WIDTH = 7, 12
_COLOURS = {"ok": "green", "warning": "yellow", "error": "bold red"}


@click.command(cls=command_class(), context_settings=HELP_NAMES, short_help="Look for what keeps it from working.")
@click.option("--offline", is_flag=True, help="Ask no provider.")
@click.option("--full", is_flag=True, help="Read all of the database, and count all jobs, however many they are.")
@click.option(
    "--timeout", type=DURATION, default="5s", show_default=True, help="How long a provider may take to answer."
)
@click.option("--model", metavar="MODEL", help="Look for this model, too.  [default: MODEL, BATCHQ_MODEL]")
@click.option("--base-url", metavar="URL", help="As if workers were given this server.")
@click.option("--api-key-file", type=click.Path(path_type=Path), metavar="FILE", help="And this file with its key.")
@insecure_option
@db_option
@json_option
def doctor(*, offline: bool, full: bool, timeout: float, as_json: bool, insecure: bool, **flags: object) -> int:
    """Look at the installation, the settings, the queue and its workers, and the providers.

    \b
    batchq doctor
    batchq doctor --offline --json
    batchq doctor --full --db postgresql+psycopg://host/queue

    Each line is ok, a warning or an error, and says what to do. Changes nothing. Ends with 1 if there is an error.
    """
    from batchq.doctor import Asked

    asked = Asked({**flags, "insecure": insecure or None}, None if offline else timeout, full=full)
    found = run_async(lambda: _examine(asked, _no_word if as_json else _teller()))
    counts = Counter(finding.level.value for finding in found)
    if as_json:
        summary = {level: counts[level] for level in _COLOURS}
        click.echo(json.dumps({"ok": not counts["error"], "findings": [*map(asdict, found)], "summary": summary}))
    else:
        click.echo(
            f"\n{_counted(counts['error'], 'error')}, {_counted(counts['warning'], 'warning')}, {counts['ok']} ok"
        )
    return EXIT_FAILURE if counts["error"] else 0


async def _examine(asked: Asked, tell: Callable[[Finding], None]) -> list[Finding]:
    from batchq.doctor import examine

    found = []
    async for finding in examine(asked):
        found.append(finding)
        tell(finding)
    return found


def _no_word(_finding: Finding) -> None:
    """Say nothing yet."""


def _teller() -> Callable[[Finding], None]:
    """Return what prints a finding: in colours and folded to the width of a terminal, plainly elsewhere."""
    return _print_folded if on_terminal() else _print_plain


def _print_plain(finding: Finding) -> None:
    what, what_to_do = _texts(finding)
    click.echo(f"{finding.level.value:<{_LEVEL_WIDTH}}  {finding.name:<{_NAME_WIDTH}}  {what}")
    if what_to_do:
        click.echo(f"{'':<{_LEVEL_WIDTH}}  {'':<{_NAME_WIDTH}}  -> {what_to_do}")


def _print_folded(finding: Finding) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    what, what_to_do = _texts(finding)
    told = Text(what)
    if what_to_do:
        told.append(f"\n→ {what_to_do}", style="bold")
    row = Table.grid(padding=(0, 2), expand=True)
    row.add_column(width=_LEVEL_WIDTH)
    row.add_column(width=_NAME_WIDTH)
    row.add_column(ratio=1, overflow="fold")
    row.add_row(Text(finding.level.value, style=_COLOURS[finding.level.value]), Text(finding.name), told)
    Console(highlight=False).print(row)


def _texts(finding: Finding) -> tuple[str, str]:
    return clean(conceal(" ".join(finding.what.split()))), clean(conceal(" ".join(finding.what_to_do.split())))


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
