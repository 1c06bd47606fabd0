"""The group `batchq config`: what this process was told."""

from __future__ import annotations

import click

from batchq.cli.lazy import group_class
from batchq.cli.options import HELP_NAMES

COMMANDS = {"show": "batchq.cli.config_show:show"}


@click.group(
    cls=group_class(), table=COMMANDS, context_settings=HELP_NAMES, short_help="Show the settings and their sources."
)
def config() -> None:
    """Look at the settings.

    \b
    batchq config show
    """  # fmt: skip
