"""The queue at one moment: a bounded number of its batches, in a few statements however many there are. Reads only."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from sqlalchemy import ColumnElement, ScalarSelect, func, literal_column, select

from batchq.database import Transaction
from batchq.database.dialect import json_list
from batchq.database.version import read_moved_to
from batchq.jobs import Batch, BatchState, Lane, Overview
from batchq.schema import CLAIMABLE, batches, jobs
from batchq.store.damage import refuse_odd_times
from batchq.store.find import (
    AMONG_LIVE,
    IN_INDEX_ORDER,
    INFLIGHT,
    PENDING,
    AnyRow,
    batch_from,
    lane_name,
    last_lease,
    next_time,
    now_ms,
)
from batchq.store.lanes import read_lanes
from batchq.store.results import progress_of
from batchq.store.runners import read_runners, read_urls
from batchq.store.tally import read_totals_of

_CHOSEN = (
    select(batches, next_time(PENDING).label("due"), last_lease().label("leased_until"))
    .where(batches.c.id.in_(json_list("ids")))
    .order_by(batches.c.id.desc())
)
_CALLS_BY_LANE = (
    select(jobs.c.batch_id, jobs.c.lane, func.count().label("calls"))
    .where(jobs.c.batch_id.in_(json_list("ids")), INFLIGHT, AMONG_LIVE, jobs.c.claimable_at > now_ms)
    .group_by(jobs.c.batch_id, jobs.c.lane)
)


def read_overview(tx: Transaction, database: str, *, unfinished: int, shown: int) -> Overview:
    """Return up to so many unfinished batches and the newest ones of all, with what is told of each."""
    live = _newest_live(tx, unfinished + 1)
    newest = tx.connection.execute(select(batches.c.id).order_by(batches.c.id.desc()).limit(shown)).scalars()
    ids = {*live[:unfinished], *newest}
    count = tx.connection.execute(select(func.count()).select_from(batches)).scalar_one()
    return _overview(tx, database, ids, left_out=count - len(ids), more_unfinished=len(live) > unfinished)


def read_overview_of(tx: Transaction, database: str, name: str) -> Overview | None:
    """Return the batch of that name, with what is told of it; None if there is none."""
    ids = tx.connection.execute(select(batches.c.id).where(batches.c.name == name)).scalars().all()
    return _overview(tx, database, ids, left_out=0, more_unfinished=False) if ids else None


def _newest_live(tx: Transaction, most: int) -> Sequence[int]:
    """Return the ids of the newest batches with live rows: one seek per batch."""
    walk = select(_last_batch_before(literal_column(str(2**63 - 1))).label("batch_id")).cte("live", recursive=True)
    following = _last_batch_before(walk.c.batch_id).correlate(walk)
    walk = walk.union_all(select(following).select_from(walk).where(walk.c.batch_id.is_not(None)))
    # Neither database walks further than to what is asked for.
    found = tx.connection.execute(select(walk.c.batch_id).limit(most)).scalars().all()
    return [batch_id for batch_id in found if batch_id is not None]


def _last_batch_before(batch_id: ColumnElement[int]) -> ScalarSelect[int]:
    before = select(jobs.c.batch_id).where(CLAIMABLE, jobs.c.batch_id < batch_id)
    backwards = (jobs.c.batch_id.desc(), jobs.c.state.asc(), *(column.desc() for column in IN_INDEX_ORDER[2:]))
    return before.order_by(*backwards).limit(1).scalar_subquery()


def _overview(
    tx: Transaction, database: str, ids: Collection[int], *, left_out: int, more_unfinished: bool
) -> Overview:
    bound = {"ids": json.dumps(sorted(ids))}
    rows = tx.connection.execute(_CHOSEN, bound).all()
    totals = read_totals_of(tx, ids)
    runners = tuple(runner for runner in read_runners(tx) if runner.live)
    found = {row.id: batch_from(row) for row in rows}
    lanes = _lanes_with_calls(tx, found, [row.id for row in rows if row.leased_until is not None])
    used = _Servers(tx, lanes)
    return Overview(
        database=database,
        now=tx.now,
        batches=tuple(
            progress_of(
                found[row.id],
                totals.get(row.id, {}),
                (row.due, row.leased_until),
                finished=_is_finished(found[row.id], row),
                now=tx.now,
                runners=runners,
                lanes=used.lanes_of(found[row.id]),
            )
            for row in rows
        ),
        older=left_out,
        more_unfinished=more_unfinished,
        runners=runners,
        lanes=lanes,
        moved_to=read_moved_to(tx),
    )


def _is_finished(batch: Batch, row: AnyRow) -> bool:
    """Whether the batch is finished (see `results.is_finished`), by the times that were read along with it."""
    refuse_odd_times(batch.name, row.due, row.leased_until)
    complete = batch.sealed_at is not None or batch.state is BatchState.CANCELLED
    return complete and batch.state is not BatchState.PURGING and row.due is row.leased_until is None


def _lanes_with_calls(tx: Transaction, found: Mapping[int, Batch], running: Sequence[int]) -> tuple[Lane, ...]:
    """Return the lanes that ever had news and those that calls of the `running` batches go through, with these."""
    lanes = {lane_name(lane.worker, lane.base_url, lane.model): lane for lane in read_lanes(tx, counted=False)}
    calls: Counter[str] = Counter()
    if running:
        bound = {"ids": json.dumps(running), "now": tx.now}
        for row in tx.connection.execute(_CALLS_BY_LANE, bound).all():
            if row.lane:
                calls[row.lane] += row.calls
                lanes.setdefault(row.lane, _plain_lane(row.lane, found[row.batch_id]))
    return tuple(replace(lanes[name], in_flight=calls[name]) for name in sorted(lanes))


def _plain_lane(name: str, batch: Batch) -> Lane:
    """Return a lane that there never was news of, by its name and a batch whose calls go through it."""
    base_url = name[len(batch.worker) + 1 : len(name) - len(batch.model) - 1]
    return Lane(batch.worker, base_url, batch.model, None, None, None, None)


class _Servers:
    """Which lanes a batch's calls go through, as far as runners have told which servers they call."""

    def __init__(self, tx: Transaction, lanes: Sequence[Lane]) -> None:
        self._tx = tx
        self._lanes = lanes
        self._urls: dict[tuple[str, str], frozenset[str]] = {}

    def lanes_of(self, batch: Batch) -> tuple[Lane, ...]:
        own = [lane for lane in self._lanes if (lane.worker, lane.model) == (batch.worker, batch.model)]
        if not own:
            return ()
        place = (batch.worker, batch.endpoint)
        if place not in self._urls:
            self._urls[place] = read_urls(self._tx, *place)
        urls = self._urls[place]
        return tuple(lane for lane in own if not urls or lane.base_url in urls)
