"""The options that say what is logged, and how. They have settings of the same names."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import click

T = TypeVar("T")


def log_options(*, default: str) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Return what adds them to a command that logs from the level `default` on."""
    level = click.option(
        "--log-level",
        type=click.Choice(["debug", "info", "warning", "error"]),
        help=f"The least that is logged.  [default: {default}]",
    )
    form = click.option(
        "--log-format",
        type=click.Choice(["auto", "json", "text"]),
        help="How: by itself text on a terminal, JSON elsewhere.  [default: auto]",
    )
    return lambda command: level(form(command))
