"""What ended, in the order in which it did: for readers who take answers as they come. Reads only."""

from __future__ import annotations

import json

from sqlalchemy import bindparam, tuple_

from batchq.database import Transaction
from batchq.database.dialect import json_list
from batchq.jobs import FinishedPage, FinishedPlace
from batchq.schema import jobs
from batchq.store.find import AnySelect
from batchq.store.results import result_of, results_statement

_led = jobs.c.leader_id.in_(json_list("led"))


def finished_statement() -> AnySelect:
    """Return the SELECT of what ended behind the bound place, in the order in which it did."""
    place = tuple_(jobs.c.finished_at, jobs.c.id)
    return (
        results_statement(with_prompt=True)
        .add_columns(jobs.c.id, jobs.c.followers)
        .where(
            jobs.c.batch_id == bindparam("of_batch"),
            jobs.c.finished_at.is_not(None),
            place > tuple_(bindparam("at"), bindparam("of_job")),
        )
        .order_by(jobs.c.finished_at, jobs.c.id)
        .limit(bindparam("most"))
    )


def read_finished(tx: Transaction, batch_id: int, place: FinishedPlace, limit: int) -> FinishedPage:
    """Return up to `limit` jobs that ended behind `place`, with all that follow them."""
    rows = tx.connection.execute(
        finished_statement(), {"of_batch": batch_id, "at": place.at, "of_job": place.job_id, "most": limit}
    ).all()
    if not rows:
        return FinishedPage((), place)
    led = json.dumps([row.id for row in rows if row.followers])
    following = results_statement(with_prompt=True).where(_led)
    found = [result_of(row, with_prompt=True) for row in rows]
    if led != "[]":
        followers = tx.connection.execute(following, {"led": led}).all()
        found += [result_of(row, with_prompt=True) for row in followers]
    return FinishedPage(tuple(found), FinishedPlace(rows[-1].finished_at, rows[-1].id))
