"""Sentences for people on stderr."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TextIO

from batchq.concealing import conceal
from batchq.escapes import clean


def say(message: str) -> None:
    """Print a message for people on stderr, free of control characters and of keys.

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
