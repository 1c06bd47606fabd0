"""What commands share: options, durations, the database they mean, the event loop."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Callable, Coroutine
from functools import cache
from typing import Any, TypeVar

import click

T = TypeVar("T")

HELP_NAMES = {"help_option_names": ["-h", "--help"]}
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0, "": 1.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|)")


class Duration(click.ParamType[float]):
    """A time like 90s, 15m, 2h or 30d, as seconds; a bare number counts seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:  # noqa: ANN401
        """Return seconds."""
        if isinstance(value, int | float):
            return float(value)
        match = _DURATION.fullmatch(str(value).strip().lower())
        if match is None:
            self.fail(f"{value!r} is not a duration; write 90s, 15m, 2h or 30d", param, ctx)
        return float(match[1]) * _UNITS[match[2]]


DURATION = Duration()

db_option = click.option(
    "--db", metavar="PATH", help="The queue's database; else BATCHQ_DB, else runs.db in this directory."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")


@cache
def on_terminal() -> bool:
    """Whether a person may see colours."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("NO_COLOR")


@cache
def command_class() -> type[click.Command]:
    """Return the class of commands: with coloured help where somebody sees colours."""
    if not on_terminal():
        return click.Command
    from rich_click import RichCommand

    return RichCommand


def database_of(flag: str | None) -> str:
    """Return the database that a command means: its flag, or what the settings say."""
    from batchq.config import load_settings

    return load_settings(db=flag).db


def run_async(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine function to its end."""
    import anyio

    return anyio.run(main)


def command_line(verb: str, *arguments: str, db: str | None = None) -> str:
    """Return a batchq command as a person would type it; `db` only where it was given as a flag."""
    database = ["--db", db] if db else []
    return f"`{shlex.join(['batchq', verb, *arguments, *database])}`"
