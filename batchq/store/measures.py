"""What an exporter counts: the sums of all batches, and what ended since it looked before. Reads only."""

from __future__ import annotations

import json
from collections.abc import Sequence

from sqlalchemy import BigInteger, bindparam, select, tuple_

from batchq.database import Transaction
from batchq.database.dialect import json_list, locks_rows
from batchq.jobs import BatchTotals, EndedAttempt, EndedJob, EndedPage, FinishedPlace
from batchq.schema import attempts, batches, jobs
from batchq.store.find import AnyRow
from batchq.store.finished import STILL_COMMITTING_MS
from batchq.store.tally import read_totals

_ENDED = (
    select(jobs.c.id, jobs.c.state, jobs.c.followers, jobs.c.created_at, jobs.c.finished_at)
    .where(
        jobs.c.batch_id == bindparam("of_batch"),
        jobs.c.finished_at.is_not(None),
        tuple_(jobs.c.finished_at, jobs.c.id) > tuple_(bindparam("at"), bindparam("of_job")),
        jobs.c.finished_at <= bindparam("until", type_=BigInteger),
    )
    .order_by(jobs.c.finished_at, jobs.c.id)
    .limit(bindparam("most"))
)
# What had ended before somebody began to count is not counted; `retry` sends jobs back that have such attempts.
_ATTEMPTS = select(attempts.c.job_id, attempts.c.outcome, attempts.c.started_at, attempts.c.duration_ms).where(
    attempts.c.job_id.in_(json_list("ids")), attempts.c.ended_at > bindparam("since", type_=BigInteger)
)


def read_all_totals(tx: Transaction) -> tuple[int, dict[int, BatchTotals]]:
    """Return the time, and the sums of every batch that there is: a few rows for each."""
    sums = read_totals(tx)
    rows = tx.connection.execute(select(batches.c.id, batches.c.worker, batches.c.model)).all()
    return tx.now, {row.id: BatchTotals(row.worker, row.model, sums.get(row.id, {})) for row in rows}


def read_ended(tx: Transaction, batch_id: int, place: FinishedPlace, since: int, limit: int) -> EndedPage:
    """Return up to `limit` jobs of a batch that ended behind `place`, with their attempts that ended after `since`.

    What ended a moment ago is left for the next time where a transaction that began before it may end after it.
    """
    until = tx.now - STILL_COMMITTING_MS if locks_rows(tx) else tx.now
    bound = {"of_batch": batch_id, "at": place.at, "of_job": place.job_id, "until": until, "most": limit}
    ended = tx.connection.execute(_ENDED, bound).all()
    if not ended:
        return EndedPage((), (), place, is_full=False)
    of_jobs = {"ids": json.dumps([row.id for row in ended]), "since": since}
    made = tx.connection.execute(_ATTEMPTS, of_jobs).all()
    first_claims = _first_claims(made)
    return EndedPage(
        tuple(
            EndedJob(row.state, 1 + row.followers, _waited(row.created_at, first_claims.get(row.id))) for row in ended
        ),
        tuple(EndedAttempt(row.outcome, row.duration_ms) for row in made),
        FinishedPlace(ended[-1].finished_at, ended[-1].id),
        is_full=len(ended) == limit,
    )


def _first_claims(made: Sequence[AnyRow]) -> dict[int, int]:
    first: dict[int, int] = {}
    for row in made:
        if row.started_at is not None:
            first[row.job_id] = min(row.started_at, first.get(row.job_id, row.started_at))
    return first


def _waited(created_at: int, claimed_at: int | None) -> int | None:
    return None if claimed_at is None else max(0, claimed_at - created_at)
