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
    "top": "batchq.cli.top:top",
    "health": "batchq.cli.health:health",
    "doctor": "batchq.cli.doctor:doctor",
    "exporter": "batchq.cli.exporter:exporter",
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
    "service": "batchq.cli.service:service",
    "db": "batchq.cli.db:db",
    "config": "batchq.cli.config:config",
    "completion": "batchq.cli.completion:completion",
    "help": "batchq.cli.help:show_help",
}
# What has no section here stands in the last.
SECTIONS = {
    "Run prompts": ("run", "enqueue", "worker", "collect"),
    "See how it goes": ("status", "top", "show"),
    "Operate": ("retry", "cancel", "pause", "resume", "seal", "limit", "budget", "concurrency", "purge"),
    "Look after it": ("health", "doctor", "exporter", "service", "db", "config", "completion", "help"),
}
# As the commands have it themselves; it is here so that the list of all imports none of them.
SUMMARIES = {
    "run": "Enqueue, work and collect in one.",
    "enqueue": "Add the prompts of a file to a batch.",
    "worker": "Run jobs; start as many as you like.",
    "collect": "Wait for a batch; write its results.",
    "status": "Show batches, workers and what waits.",
    "top": "Watch batches, workers and limits on the terminal.",
    "show": "Show one job with its attempts.",
    "retry": "Run a batch's failed jobs again.",
    "cancel": "Cancel what a batch has not finished.",
    "pause": "Start no more jobs of a batch.",
    "resume": "Go on after a pause or a halt.",
    "seal": "Say that a batch is complete.",
    "limit": "Limit a model's rate, for all workers together.",
    "budget": "Show or change what a batch may cost.",
    "concurrency": "Change how many calls workers make.",
    "purge": "Delete batches and their results.",
    "health": "Ask whether the workers here are well.",
    "doctor": "Look for what keeps it from working.",
    "exporter": "Serve metrics of the queue to Prometheus.",
    "service": "Run workers as services of systemd.",
    "db": "Check, upgrade or copy the database.",
    "config": "Show the settings and their sources.",
    "completion": "Print the completion script of a shell.",
    "help": "Show the help of a command, or a table.",
}


@click.group(cls=group_class(), table=COMMANDS, sections=SECTIONS, summaries=SUMMARIES, context_settings=HELP_NAMES)
@click.version_option(package_name="batchq", message="%(prog)s %(version)s")
def batchq() -> None:
    """Run many prompts through a language model, and lose none.

    \b
    batchq enqueue prompts.jsonl --batch demo --model openai/gpt-4o-mini
    batchq worker --concurrency 16
    batchq collect demo -o answers.jsonl

    `batchq run prompts.jsonl -o answers.jsonl` does the three in one.
    """
