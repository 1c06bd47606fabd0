"""Sentences for people on stderr."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TextIO

from batchq.concealing import conceal
from batchq.escapes import clean

_quiet = False


def be_quiet(quiet: bool) -> None:
    """Keep `say` silent from now on, or let it speak."""
    global _quiet  # noqa: PLW0603 - of the process, as its stderr is
    _quiet = quiet


def is_quiet() -> bool:
    """Whether nobody wants to hear more than errors."""
    return _quiet


def say(message: str) -> None:
    """Print a message for people on stderr, unless they asked for quiet."""
    if not _quiet:
        complain(message)


def complain(message: str) -> None:
    """Print why a command failed on stderr, free of control characters and of keys.

    On what `sys.stderr` is now, which click.echo would look through: above the bar while one is shown.
    """
    with suppress(OSError, ValueError):
        if sys.stderr is not None:
            sys.stderr.write(f"{clean(conceal(message))}\n")
            sys.stderr.flush()


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a stream is open and shown to a person."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False
