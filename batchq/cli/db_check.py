"""`batchq db check`: whether a queue's database is as it should be."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from batchq.cli.exits import EXIT_FAILURE
from batchq.cli.options import HELP_NAMES, command_class, database_of, db_option, json_option, run_async
from batchq.escapes import clean

if TYPE_CHECKING:
    from batchq.checkup import Finding


@click.command(cls=command_class(), context_settings=HELP_NAMES, short_help="Look for what is wrong with it.")
@click.option("--no-recount", is_flag=True, help="Do not count all jobs, which takes its time in large queues.")
@click.option("--repair-tallies", is_flag=True, help="Count the jobs of each batch anew for what `status` shows.")
@db_option
@json_option
def check(*, no_recount: bool, repair_tallies: bool, db: str | None, as_json: bool) -> int:
    """Check the database: its schema, its integrity, its indexes, and the tallies against the jobs.

    \b
    batchq db check
    batchq db check --no-recount --json

    Changes nothing without --repair-tallies, except that an older SQLite file is upgraded when it is opened. Ends with
    1 if something is wrong.
    """
    if no_recount and repair_tallies:
        raise click.UsageError("--repair-tallies counts all jobs: leave out --no-recount")
    location = database_of(db)
    found = run_async(lambda: _check(location, not no_recount, repair_tallies, tell=not as_json))
    wrong = any(finding.level == "error" for finding in found)
    if as_json:
        click.echo(json.dumps({"ok": not wrong, "checks": [asdict(finding) for finding in found]}))
    return EXIT_FAILURE if wrong else 0


async def _check(location: str, recount: bool, repair_tallies: bool, *, tell: bool) -> list[Finding]:
    from batchq.checkup import check_database

    found = []
    async for finding in check_database(location, recount=recount, repair_tallies=repair_tallies):
        found.append(finding)
        if tell:
            click.echo(clean(f"{finding.level:<7}  {finding.check}: {finding.message}"))
    return found
