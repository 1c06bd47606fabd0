"""`batchq db upgrade`: brings an older database to what this batchq needs."""

from __future__ import annotations

import json

import click

from batchq.cli.options import HELP_NAMES, command_class, database_of, db_option, json_option, quiet_option, run_async
from batchq.display.messages import say


@click.command(cls=command_class(), context_settings=HELP_NAMES, short_help="Upgrade it to this version of batchq.")
@db_option
@json_option
@quiet_option
def upgrade(*, db: str | None, as_json: bool) -> None:
    """Upgrade a database that an older batchq made. Processes of that version stop at their next step.

    \b
    batchq db upgrade

    A SQLite file is upgraded by whatever command opens it first; PostgreSQL only by this one. There is no way back:
    keep a copy.
    """
    from batchq.config import rules_of_settings
    from batchq.database import upgrade_database
    from batchq.schema import SCHEMA_VERSION

    location = database_of(db)
    shown, since = run_async(lambda: upgrade_database(location, rules=rules_of_settings))
    if as_json:
        click.echo(json.dumps({"database": shown, "upgraded_from": since, "schema": SCHEMA_VERSION}))
    elif since is None:
        say(f"batchq: {shown} has schema {SCHEMA_VERSION} already: nothing to do")
    else:
        say(f"batchq: upgraded {shown} from schema {since} to {SCHEMA_VERSION}")
