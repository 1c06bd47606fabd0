"""`batchq service install` and `uninstall`: writes the units that ship with batchq, and takes them away."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from batchq.cli.options import HELP_NAMES, command_class, db_option
from batchq.display.messages import say
from batchq.display.text import plural
from batchq.errors import ConfigurationError, UsageError

if TYPE_CHECKING:
    from batchq.service.installation import Plan, Wanted

MOST_WORKERS = 1_000

user_option = click.option("--user", is_flag=True, help="As services of your own, which need no root.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Print what would be written and run; do nothing.")


@click.command(cls=command_class(), context_settings=HELP_NAMES, short_help="Write units for workers and start them.")
@click.option(
    "--workers", type=click.IntRange(1, MOST_WORKERS), default=1, show_default=True, help="How many processes."
)
@user_option
@db_option
@dry_run_option
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="[-- WORKER_OPTIONS...]")
def install(workers: int, *, user: bool, db: str | None, dry_run: bool, options: tuple[str, ...]) -> int:
    """Write the units, then enable and start so many workers; run again with another number, it changes that.

    \b
    sudo batchq service install --workers 4
    sudo batchq service install --workers 4 -- --concurrency 64
    batchq service install --user --workers 2 --db runs.db

    Workers of the machine are the user batchq's, with the queue in /var/lib/batchq; yours work in this directory. Keys
    go into /etc/credstore (batchq.openrouter_api_key, batchq.openai_api_key), or into .env in your directory.
    """  # fmt: skip
    from batchq.service import installation
    from batchq.service.manager import Manager

    manager = Manager(user=user)
    wanted = _wanted(workers, db, options, user=user, careful=not dry_run)
    plan = installation.plan_installation(manager, wanted)
    if dry_run:
        _print_plan(plan)
        return 0
    manager.refuse_absent()
    changed = installation.install(manager, plan, lambda line: say(f"batchq: {line}"))
    if changed:
        say(f"batchq: what runs goes on as it was started: {manager.told('restart', 'batchq.target')} drains it first")
    say(f"batchq: {plural(workers, 'worker')} enabled; {manager.told('status', 'batchq-worker@*')}, {manager.log()}")
    return 0


@click.command(cls=command_class(), context_settings=HELP_NAMES, short_help="Stop the workers and remove their units.")
@user_option
@dry_run_option
def uninstall(*, user: bool, dry_run: bool) -> int:
    """Stop the workers, which lets their calls end, and remove what `install` wrote. The queue and keys stay.

    \b
    sudo batchq service uninstall
    batchq service uninstall --user
    """  # fmt: skip
    from batchq.service import installation
    from batchq.service.manager import Manager

    manager = Manager(user=user)
    plan = installation.plan_removal(manager)
    if dry_run:
        for path in plan.files:
            click.echo(f"rm {path}")
        _print_commands(plan)
        return 0
    manager.refuse_absent()
    installation.uninstall(manager, plan, lambda line: say(f"batchq: {line}"))
    if not plan.files:
        say("batchq: there was nothing to remove")
    return 0


def _wanted(workers: int, db: str | None, options: tuple[str, ...], *, user: bool, careful: bool) -> Wanted:
    from batchq.config import load_settings
    from batchq.config.layers import Place
    from batchq.database import database_file
    from batchq.service.installation import Wanted
    from batchq.service.program import is_hidden, refuse_hidden, this_program

    if any(option == "--db" or option.startswith("--db=") for option in options):
        raise UsageError("name the database before the --: batchq service install --db …")
    settings = load_settings(db=db)
    layer = settings.layers.layer("db")
    # What a file says, services read there themselves.
    known = {Place.SITE, Place.CREDENTIAL} | (set() if not user else {Place.DOTENV, Place.PROJECT, Place.USER})
    told = settings.db if layer is not None and layer.place not in known else None
    file = None if told is None else database_file(told)
    program = this_program()
    if not user:
        if careful:
            refuse_hidden(program)
        if file is not None and is_hidden(file):
            raise ConfigurationError(
                f"services of the machine don't see {file}: keep the queue elsewhere, or use --user"
            )
        if told is not None and file is None:
            _refuse_password(told)
    return Wanted(
        workers,
        [*program, "worker", *options],
        db=str(file) if file is not None else told,
        file=file,
        directory=Path.cwd() if user else None,
    )


def _refuse_password(location: str) -> None:
    from batchq.database.location import holds_password

    if holds_password(location):
        raise ConfigurationError(
            "the URL of the database holds a password, which all users could read in a unit file: write it into"
            " /etc/credstore/batchq.db (mode 0600) and leave out --db"
        )


def _print_plan(plan: Plan) -> None:
    for path, text in plan.files.items():
        click.echo(f"# {path}\n{text}")
    _print_commands(plan)


def _print_commands(plan: Plan) -> None:
    import shlex

    for command in plan.commands:
        click.echo(f"$ {shlex.join(command)}")
