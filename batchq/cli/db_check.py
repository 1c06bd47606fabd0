"""`batchq db check`: whether a queue's database is as it should be."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from batchq.cli.exits import EXIT_FAILURE
from batchq.cli.options import HELP_NAMES, command_class, database_of, db_option, json_option, run_async
from batchq.display.text import clean

if TYPE_CHECKING:
    from batchq.checkup import Finding


@click.command(cls=command_class(), context_settings=HELP_NAMES, short_help="Look for what is wrong with it.")
@click.option("--no-recount", is_flag=True, help="Do not count all jobs, which takes its time in large queues.")
@db_option
@json_option
def check(*, no_recount: bool, db: str | None, as_json: bool) -> int:
    """Check the database: its schema, its integrity, its indexes, and the tallies against the jobs.

    Changes nothing, except that an older SQLite file is upgraded when it is opened. Ends with 1 if something is wrong.
    """
    location = database_of(db)
    found = run_async(lambda: _check(location, recount=not no_recount, tell=not as_json))
    wrong = any(finding.level == "error" for finding in found)
    if as_json:
        click.echo(json.dumps({"ok": not wrong, "checks": [asdict(finding) for finding in found]}))
    return EXIT_FAILURE if wrong else 0


async def _check(location: str, *, recount: bool, tell: bool) -> list[Finding]:
    from batchq.checkup import check_database

    found = []
    async for finding in check_database(location, recount=recount):
        found.append(finding)
        if tell:
            click.echo(clean(f"{finding.level:<7}  {finding.check}: {finding.message}"))
    return found
