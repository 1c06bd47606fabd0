"""What ended, in the order in which it did: for readers who take answers as they come. Reads only."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace

from sqlalchemy import BigInteger, bindparam, select, tuple_

from batchq.database import Transaction
from batchq.database.dialect import json_list, locks_rows
from batchq.jobs import FinishedPage, FinishedPlace, Result, Usage
from batchq.schema import jobs
from batchq.store.find import AnyRow, AnySelect
from batchq.store.results import result_of, results_statement

_FREE = Usage(0, 0, 0, 0)
# How long a transaction that settles takes at most, as a rule; who took longer is found by the last look.
STILL_COMMITTING_MS = 500
_ALWAYS = 2**63 - 1
# What is a follower's own. Its leader's answer is read once, not with each of them.
_follower = select(jobs.c.id, jobs.c.leader_id, jobs.c.position, jobs.c.custom_id, jobs.c.key, jobs.c.payload)
_of_several = _follower.where(jobs.c.leader_id.in_(json_list("led")))
_of_one = (
    _follower.where(jobs.c.leader_id == bindparam("of_leader"), jobs.c.id > bindparam("after"))
    .order_by(jobs.c.id)
    .limit(bindparam("most"))
)


def finished_statement() -> AnySelect:
    """Return the SELECT of what ended behind the bound place, in the order in which it did."""
    place = tuple_(jobs.c.finished_at, jobs.c.id)
    return (
        _jobs()
        .where(
            jobs.c.batch_id == bindparam("of_batch"),
            jobs.c.finished_at.is_not(None),
            place > tuple_(bindparam("at"), bindparam("of_job")),
            jobs.c.finished_at <= bindparam("until", type_=BigInteger),
        )
        .order_by(jobs.c.finished_at, jobs.c.id)
        .limit(bindparam("most"))
    )


def read_finished(
    tx: Transaction, batch_id: int, place: FinishedPlace, limit: int, *, running: bool = False
) -> FinishedPage:
    """Return up to `limit` jobs that ended behind `place`, and up to `limit` that follow them.

    Those that follow one job may take several pages. While the batch is `running`, what ended a moment ago is left
    for the next time where a transaction that began before it may end after it.
    """
    if place.follower_id is not None:
        page = _followers_behind(tx, place, limit)
        if page.results:
            return page
        place = page.place
    until = tx.now - STILL_COMMITTING_MS if running and locks_rows(tx) else _ALWAYS
    bound = {"of_batch": batch_id, "at": place.at, "of_job": place.job_id, "until": until, "most": limit}
    rows = tx.connection.execute(finished_statement(), bound).all()
    if not rows:
        return FinishedPage((), place)
    if rows[0].followers > limit:
        page = _followers_behind(tx, FinishedPlace(rows[0].finished_at, rows[0].id, -1), limit)
        return FinishedPage((_result(rows[0]), *page.results), page.place)
    rows = list(_with_followers_up_to(rows, limit))
    return FinishedPage(tuple(_whole(tx, rows)), FinishedPlace(rows[-1].finished_at, rows[-1].id))


def _jobs() -> AnySelect:
    return results_statement(with_prompt=True).add_columns(jobs.c.id, jobs.c.followers)


def _with_followers_up_to(rows: Sequence[AnyRow], limit: int) -> Iterator[AnyRow]:
    """Yield the first rows, which have up to `limit` followers together."""
    left = limit
    for row in rows:
        left -= row.followers
        if left < 0:
            return
        yield row


def _whole(tx: Transaction, rows: Sequence[AnyRow]) -> Iterator[Result]:
    """Yield jobs, then all that follow them."""
    leaders = {row.id: _result(row) for row in rows}
    yield from leaders.values()
    led = [row.id for row in rows if row.followers]
    if led:
        for follower in tx.connection.execute(_of_several, {"led": json.dumps(led)}):
            yield _as_its_leader(follower, leaders[follower.leader_id])


def _followers_behind(tx: Transaction, place: FinishedPlace, limit: int) -> FinishedPage:
    """Return the next of those that follow the job at `place`; none where they have all been read."""
    over = replace(place, follower_id=None)
    found = tx.connection.execute(_jobs().where(jobs.c.id == place.job_id)).one_or_none()
    if found is None or found.finished_at is None:  # purged, or sent back: its followers are no results any more
        return FinishedPage((), over)
    leader = _result(found)
    rows = tx.connection.execute(_of_one, {"of_leader": place.job_id, "after": place.follower_id, "most": limit}).all()
    behind = over if len(rows) < limit else replace(place, follower_id=rows[-1].id)
    return FinishedPage(tuple(_as_its_leader(row, leader) for row in rows), behind)


def _result(row: AnyRow) -> Result:
    return result_of(row)


def _as_its_leader(row: AnyRow, leader: Result) -> Result:
    """Return a follower as `results_statement` reads it; the texts are those of its leader."""
    return replace(
        leader,
        position=row.position,
        custom_id=row.custom_id,
        key=row.key,
        payload=row.payload or leader.payload,  # stored empty where it is the same
        usage=_FREE,
        cost=0,
        leader=leader.position,
    )
