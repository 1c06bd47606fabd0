"""The log's rows for attempts that did not end by themselves: lost with their worker, or cancelled."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Insert, insert, literal, select

from batchq.schema import attempts, jobs
from batchq.store.find import now_ms


def log_taken_away(
    outcome: str, *conditions: ColumnElement[bool], charged: bool, error_class: str | None = None
) -> Insert:
    """Return the INSERT of one row for each claimed job that meets the conditions, from its values as they are.

    An answer that comes all the same is added to that row.
    """
    values: dict[str, ColumnElement[Any]] = {
        "job_id": jobs.c.id,
        "token": jobs.c.token,
        "number": jobs.c.attempts,
        "runner": jobs.c.claimed_by,
        "started_at": jobs.c.claimed_at,
        "ended_at": now_ms,
        "outcome": literal(outcome),
        "charged": literal(charged),
        "late": literal(False),
        "error_class": literal(error_class, attempts.c.error_class.type),
    }
    return insert(attempts).from_select(list(values), select(*values.values()).where(*conditions))
