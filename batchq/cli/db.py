"""The group `batchq db`: what is done to a queue's database as a whole."""

from __future__ import annotations

import click

from batchq.cli.lazy import group_class
from batchq.cli.options import HELP_NAMES

COMMANDS = {
    "check": "batchq.cli.db_check:check",
    "upgrade": "batchq.cli.db_upgrade:upgrade",
    "copy": "batchq.cli.db_copy:copy",
}


@click.group(
    cls=group_class(), table=COMMANDS, context_settings=HELP_NAMES, short_help="Check, upgrade or copy the database."
)
def db() -> None:
    """Look after the database that the queue is in.

    \b
    batchq db check
    batchq db copy runs.db postgresql+psycopg://user@host/queue
    """  # fmt: skip
