"""What commands share: options, durations, the database they mean, the event loop."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Coroutine
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from batchq.display.messages import be_quiet, is_terminal
from batchq.durations import parse_duration

if TYPE_CHECKING:
    from batchq.config import Settings

T = TypeVar("T")

HELP_NAMES = {"help_option_names": ["-h", "--help"]}
# What every database holds in an INTEGER, and in a BIGINT.
MAX_INTEGER = 2**31 - 1
MAX_BIGINT = 2**63 - 1
MAX_CONCURRENCY = 10_000


class Duration(click.ParamType[float]):
    """A time like 90s, 15m, 2h or 30d, as seconds; a bare number counts seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:  # noqa: ANN401
        """Return seconds."""
        if isinstance(value, int | float):
            return float(value)
        try:
            return parse_duration(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


DURATION = Duration()


def _allow_network_fs(_context: click.Context, _option: click.Parameter, given: bool) -> None:
    """Put it where all that opens a queue in this process looks."""
    if given:
        os.environ["BATCHQ_ALLOW_NETWORK_FS"] = "1"


def db_option(command: Callable[..., T]) -> Callable[..., T]:
    """Add the options that say where the queue is."""
    allow = click.option(
        "--allow-network-fs",
        is_flag=True,
        expose_value=False,
        callback=_allow_network_fs,
        help="Use a file on a network file system all the same: all processes must run on one machine.",
    )
    location = click.option(
        "--db",
        metavar="PATH|URL",
        help="The queue's database: a file, or postgresql+psycopg://…; else BATCHQ_DB, else runs.db in this directory.",
    )
    return location(allow(command))


insecure_option = click.option(
    "--insecure", is_flag=True, help="Call servers over http:// too: others may read keys, prompts and answers."
)
# These have settings of the same names: what is not given is read there.
concurrency_option = click.option(
    "-c", "--concurrency", type=click.IntRange(1, MAX_CONCURRENCY), help="Calls at once.  [default: 16]"
)
lease_option = click.option("--lease", type=DURATION, help="How long a claim lasts unless renewed.  [default: 60s]")
drain_option = click.option(
    "--drain-timeout",
    type=DURATION,
    help="How long calls may finish after the first Ctrl-C or SIGTERM.  [default: 120s]",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")


def _be_quiet(_context: click.Context, _option: click.Parameter, given: bool) -> None:
    if given:
        be_quiet(True)


quiet_option = click.option(
    "-q", "--quiet", is_flag=True, expose_value=False, callback=_be_quiet, help="Say nothing on stderr but errors."
)


@cache
def on_terminal() -> bool:
    """Whether a person may see colours: NO_COLOR forbids them, FORCE_COLOR wants them into a pipe too."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return is_terminal(sys.stdout) and os.environ.get("TERM") != "dumb"


@cache
def command_class() -> type[click.Command]:
    """Return the class of commands: with coloured help where somebody sees colours."""
    if not on_terminal():
        return click.Command
    from rich_click import RichCommand

    return RichCommand


def settings_of(**flags: object) -> Settings:
    """Read the settings of a command, and see that their database could be one. None was not given."""
    from batchq.config import load_settings
    from batchq.errors import DatabaseUnavailable, UsageError

    settings = load_settings(**flags)
    path = database_path(settings)
    if path is None:
        return settings
    if path.is_dir():
        raise UsageError(f"{path} is a directory: name a file in it with --db")
    if path.exists() and not os.access(path, os.R_OK):
        raise DatabaseUnavailable(f"{path} can't be read: this user has no permission; check its mode and owner")
    return settings


def database_path(settings: Settings) -> Path | None:
    """Return the file of the queue that the settings name; None for a queue on a server."""
    from batchq.database import database_file

    return database_file(settings.db)


def database_of(flag: str | None) -> str:
    """Return the database that a command means: its flag, or what the settings say."""
    return settings_of(db=flag).db


def run_async(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine function to its end."""
    import anyio

    return anyio.run(main)


def command_line(verb: str, *arguments: str, db: str | None = None) -> str:
    """Return a batchq command as a person would type it; `db` only where it was given as a flag."""
    database = ["--db", _without_password(db)] if db else []
    return f"`{shlex.join(['batchq', verb, *arguments, *database])}`"


def _without_password(db: str) -> str:
    if "://" not in db:
        return db
    from batchq.database.location import shown_location

    return shown_location(db)
