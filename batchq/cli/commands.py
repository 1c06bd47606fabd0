"""The group `batchq` and the table of its commands."""

from __future__ import annotations

import click

from batchq.cli.lazy import group_class
from batchq.cli.options import HELP_NAMES

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
    "db": "batchq.cli.db:db",
}


@click.group(cls=group_class(), table=COMMANDS, context_settings=HELP_NAMES)
@click.version_option(package_name="batchq", message="%(prog)s %(version)s")
def batchq() -> None:
    """Run many prompts through a language model, and lose none.

    \b
    batchq enqueue prompts.jsonl --batch demo --model openai/gpt-4o-mini
    batchq worker --concurrency 16
    batchq collect demo -o answers.jsonl

    `batchq run prompts.jsonl -o answers.jsonl` does the three in one.
    """
