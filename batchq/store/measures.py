"""What an exporter counts: the sums of all batches, and what ended since it looked before. Reads only."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence

from sqlalchemy import BigInteger, bindparam, select, tuple_

from batchq.database import Transaction
from batchq.database.dialect import json_list, locks_rows
from batchq.jobs import BatchTotals, EndedAttempt, EndedJob, EndedPage, FinishedPlace
from batchq.schema import attempts, batches, jobs
from batchq.store.find import AnyRow
from batchq.store.finished import STILL_COMMITTING_MS
from batchq.store.tally import read_totals

_ENDED = (
    select(jobs.c.id, jobs.c.state, jobs.c.attempts, jobs.c.followers, jobs.c.created_at, jobs.c.finished_at)
    .where(
        jobs.c.batch_id == bindparam("of_batch"),
        jobs.c.finished_at.is_not(None),
        tuple_(jobs.c.finished_at, jobs.c.id) > tuple_(bindparam("at"), bindparam("of_job")),
        jobs.c.finished_at <= bindparam("until", type_=BigInteger),
    )
    .order_by(jobs.c.finished_at, jobs.c.id)
    .limit(bindparam("most"))
)
# What had ended before somebody began to count is not counted.
_ATTEMPTS = (
    select(
        attempts.c.job_id, attempts.c.token, attempts.c.number, attempts.c.charged, attempts.c.outcome,
        attempts.c.started_at, attempts.c.duration_ms,
    )
    .where(attempts.c.job_id.in_(json_list("ids")), attempts.c.ended_at > bindparam("since", type_=BigInteger))
    .order_by(attempts.c.job_id, attempts.c.token.desc())
)  # fmt: skip
_FIRST_TOKEN = 1


def read_all_totals(tx: Transaction) -> tuple[int, dict[int, BatchTotals]]:
    """Return the time, and the sums of every batch that there is: a few rows for each."""
    sums = read_totals(tx)
    rows = tx.connection.execute(select(batches.c.id, batches.c.worker, batches.c.model)).all()
    return tx.now, {row.id: BatchTotals(row.worker, row.model, sums.get(row.id, {})) for row in rows}


def read_ended(tx: Transaction, batch_id: int, place: FinishedPlace, since: int, limit: int) -> EndedPage:
    """Return up to `limit` jobs of a batch that ended behind `place`, with their attempts that ended after `since`.

    What ended a moment ago is left for the next time where a transaction that began before it may end after it.
    """
    until = tx.now - (STILL_COMMITTING_MS if locks_rows(tx) else 1)  # more may end within this millisecond
    bound = {"of_batch": batch_id, "at": place.at, "of_job": place.job_id, "until": until, "most": limit}
    ended = tx.connection.execute(_ENDED, bound).all()
    if not ended:
        return EndedPage((), (), place, is_full=False)
    made = _attempts_by_job(tx, [row.id for row in ended], since)
    last = {row.id: tuple(_since_sent(made[row.id], row.attempts)) for row in ended}
    return EndedPage(
        tuple(EndedJob(row.state, 1 + row.followers, _waited(row.created_at, last[row.id])) for row in ended),
        tuple(EndedAttempt(attempt.outcome, attempt.duration_ms) for each in last.values() for attempt in each),
        FinishedPlace(ended[-1].finished_at, ended[-1].id),
        is_full=len(ended) == limit,
    )


def _attempts_by_job(tx: Transaction, job_ids: Sequence[int], since: int) -> defaultdict[int, list[AnyRow]]:
    found: defaultdict[int, list[AnyRow]] = defaultdict(list)
    for row in tx.connection.execute(_ATTEMPTS, {"ids": json.dumps(job_ids), "since": since}):
        found[row.job_id].append(row)
    return found


def _since_sent(newest_first: Sequence[AnyRow], charged: int) -> Iterator[AnyRow]:
    """Yield the attempts at a job since it was last sent back by `retry`: those before were counted when it ended then.

    Their numbers began at 1 again, and one that was not charged has the number of the next.
    """
    number = charged + 1
    for row in newest_first:
        if row.number > number or (row.charged and row.number == number):
            return
        yield row
        number = row.number


def _waited(created_at: int, newest_first: Sequence[AnyRow]) -> int | None:
    """Return how long a job waited for its first claim; None where that was counted before, or there was none."""
    if not newest_first or newest_first[-1].token != _FIRST_TOKEN:
        return None
    claimed_at: int | None = newest_first[-1].started_at
    return None if claimed_at is None else max(0, claimed_at - created_at)
