"""The group `batchq service`: workers as services of systemd."""

from __future__ import annotations

import click

from batchq.cli.lazy import group_class
from batchq.cli.options import HELP_NAMES

COMMANDS = {
    "install": "batchq.cli.service_install:install",
    "uninstall": "batchq.cli.service_install:uninstall",
}


@click.group(
    cls=group_class(), table=COMMANDS, context_settings=HELP_NAMES, short_help="Run workers as services of systemd."
)
def service() -> None:
    """Run workers as services of systemd: of the whole machine, or your own.

    \b
    sudo batchq service install --workers 4
    batchq service install --user --workers 2
    """  # fmt: skip
