"""The argument NAME: a batch, which a shell completes from the queue."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

_MOST = 100
# A shell inserts the rest of a name as it is: what it would run, expand or take for an option is not offered.
_PLAIN = re.compile(r"[\w./@][\w./@~+:%-]*")


def batch_argument(*, required: bool = True) -> Callable[[F], F]:
    """Add the argument NAME."""
    return click.argument("name", required=required, shell_complete=complete_batches)


def complete_batches(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the names of batches that begin so; none where they can't be had at once."""
    try:
        from batchq.config import load_settings
        from batchq.database.glance import names_at_a_glance

        db = context.params.get("db")
        names = names_at_a_glance(load_settings(db=db).db, incomplete, _MOST)
    except Exception:
        if os.environ.get("BATCHQ_DEBUG"):
            raise
        return []
    return [name for name in names if _PLAIN.fullmatch(name)]
