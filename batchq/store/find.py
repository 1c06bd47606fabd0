"""Find work: walk the batches that have unfinished rows, over the one index that knows them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

from sqlalchemy import (
    CTE,
    BigInteger,
    Boolean,
    ColumnElement,
    Row,
    ScalarSelect,
    Select,
    Text,
    UnaryExpression,
    and_,
    bindparam,
    case,
    cast,
    false,
    func,
    literal,
    literal_column,
    null,
    or_,
    select,
    text,
    true,
)

from batchq.database import Transaction
from batchq.database.dialect import json_list, json_rows, on_sqlite
from batchq.jobs import SUSPECT_LOSSES, UNKNOWN_COST_ANSWERS, Batch, BatchState, Serving, Wants
from batchq.schema import CLAIMABLE, LIVE_STATES, batches, jobs, lanes, tallies
from batchq.store.damage import settings_of, sound_values

BATCHES_PER_EXCHANGE = 8

# States stand literally in the statements: a bound value can't prove that the partial index applies.
PENDING = jobs.c.state == literal_column("'pending'")
INFLIGHT = jobs.c.state == literal_column("'inflight'")

# The order of the index of live rows, and what is to be said beside a state so that it applies.
IN_INDEX_ORDER = (jobs.c.batch_id, jobs.c.state.desc(), jobs.c.claimable_at, jobs.c.id)
AMONG_LIVE = and_(on_sqlite(text(LIVE_STATES)), text("leader_id IS NULL"))

now_ms = bindparam("now", type_=BigInteger)
_serving = json_rows("serving", {"worker": Text(), "endpoint": Text(), "base_url": Text(), "opened": Boolean()})
_open = batches.c.state == literal_column("'open'")

# Rows and statements of many columns: naming each type would say nothing that the table does not.
AnyRow = Row[*tuple[Any, ...]]
AnySelect = Select[*tuple[Any, ...]]


def live_batches() -> CTE:
    """Return the ids of batches with live rows: one seek per batch, however many rows are finished."""
    walk = select(_first_batch_after(literal_column("0")).label("batch_id")).cte("live", recursive=True)
    following = _first_batch_after(walk.c.batch_id).correlate(walk)
    return walk.union_all(select(following).select_from(walk).where(walk.c.batch_id.is_not(None)))


def _first_batch_after(batch_id: ColumnElement[int]) -> ScalarSelect[int]:
    # Not min(), and in the whole order of the one index that holds nothing finished: PostgreSQL would read all rows, or
    # walk another index, depending on its statistics.
    after = select(jobs.c.batch_id).where(CLAIMABLE, jobs.c.batch_id > batch_id)
    return after.order_by(*IN_INDEX_ORDER).limit(1).scalar_subquery()


def is_suspect(losses: ColumnElement[int]) -> ColumnElement[bool]:
    """Whether a job may be what kills its workers: a runner holds one of these at a time."""
    return losses >= literal_column(str(SUSPECT_LOSSES))


def next_time(*conditions: ColumnElement[bool]) -> ScalarSelect[int]:
    """Return the earliest `claimable_at` of a batch's rows in a state: one seek."""
    return _time(jobs.c.claimable_at.asc(), *conditions)


def last_lease() -> ScalarSelect[int]:
    """Return when the last lease of a batch's rows ends: one seek."""
    return _time(jobs.c.claimable_at.desc(), INFLIGHT)


def _time(order: UnaryExpression[int], *conditions: ColumnElement[bool]) -> ScalarSelect[int]:
    return (
        select(jobs.c.claimable_at)
        .where(jobs.c.batch_id == batches.c.id, *conditions, AMONG_LIVE)
        .order_by(order)
        .limit(1)
        .correlate(batches)
        .scalar_subquery()
    )


def _next_due(*, suspects: bool) -> ScalarSelect[int]:
    return next_time(PENDING) if suspects else next_time(PENDING, ~is_suspect(jobs.c.losses))


_next_expiry = next_time(INFLIGHT)

_lane_name = batches.c.worker + literal(" ") + _serving.c.base_url + literal(" ") + batches.c.model
_lane_ready_at = func.coalesce(lanes.c.ready_at, 0)


def _sum(*counters: str) -> ScalarSelect[int]:
    total = sum((tallies.c[name] for name in counters[1:]), start=tallies.c[counters[0]])
    return (
        select(cast(func.coalesce(func.sum(total), 0), BigInteger))
        .where(tallies.c.batch_id == batches.c.id)
        .correlate(batches)
        .scalar_subquery()
    )


# Counted, never a counter, which would leak with every crash. Leases that ran out are nobody's calls.
calls_in_flight = (
    select(func.count())
    .where(jobs.c.batch_id == batches.c.id, INFLIGHT, AMONG_LIVE, jobs.c.claimable_at > now_ms)
    .correlate(batches)
    .scalar_subquery()
)

# Of a batch with a budget, before any answer told a cost: how many may still run to find out whether one does.
tasters = case(
    (batches.c.budget.is_(None) | batches.c.allow_unknown_cost, null()),
    (_sum("priced") > 0, null()),
    else_=UNKNOWN_COST_ANSWERS - _sum("unpriced") - calls_in_flight,
)
# Answers that told no cost count like those that did (see Batch.has_spent).
_answers = case((batches.c.allow_unknown_cost, _sum("priced")), else_=_sum("priced", "unpriced"))
_spent = _sum("cost") * literal(1.0) * _answers >= literal(1.0) * batches.c.budget * _sum("priced")
within_budget = case(
    (batches.c.budget.is_(None), true()),
    (and_(_sum("priced") > 0, _spent), false()),
    else_=func.coalesce(tasters > 0, true()),
)


def lane_name(worker: str, base_url: str, model: str) -> str:
    """Return the name of the lane that a batch's calls share."""
    return f"{worker} {base_url} {model}"


@cache
def _served(*, narrowed: bool) -> AnySelect:
    live = live_batches()
    source = (
        live.join(batches, batches.c.id == live.c.batch_id)
        .join(_serving, and_(_serving.c.worker == batches.c.worker, _serving.c.endpoint == batches.c.endpoint))
        .outerjoin(lanes, lanes.c.name == _lane_name)
    )
    statement = select().select_from(source).where(_open, within_budget, _lane_name.not_in(json_list("shut", Text())))
    return statement.where(batches.c.id.in_(json_list("batch_ids"))) if narrowed else statement


@cache
def find_statement(*, narrowed: bool, suspects: bool) -> AnySelect:
    """Return the SELECT of batches with a due or expired row, best priority first."""
    due = _next_due(suspects=suspects) <= now_ms
    # The time is in the condition, so that what this transaction has settled is not even looked at.
    expired = next_time(INFLIGHT, jobs.c.claimable_at <= now_ms).is_not(None)
    return (
        _served(narrowed=narrowed)
        .add_columns(
            *batches.columns,
            _serving.c.base_url,
            _serving.c.opened,
            _lane_name.label("lane"),
            tasters.label("tasters"),
            due.label("due"),
            expired.label("expired"),
        )
        .where(or_(due, expired), _lane_ready_at <= now_ms)
        .order_by(batches.c.priority.desc(), func.random())
        .limit(BATCHES_PER_EXCHANGE)
    )


@cache
def wake_statement(*, narrowed: bool, suspects: bool) -> AnySelect:
    """Return the SELECT of the next times when a row is due and when one expires, lanes considered."""
    served = _served(narrowed=narrowed).add_columns(
        _next_due(suspects=suspects).label("due"), _next_expiry.label("expiry"), _lane_ready_at.label("lane_at")
    )
    times = served.subquery()
    due = case((times.c.due < times.c.lane_at, times.c.lane_at), else_=times.c.due)
    expiry = case((times.c.expiry < times.c.lane_at, times.c.lane_at), else_=times.c.expiry)
    return select(func.min(due).label("due"), func.min(expiry).label("expiry"))


def _parameters(tx: Transaction, wants: Wants, shut: Iterable[str]) -> dict[str, object]:
    serving = [(item.worker, item.endpoint, item.base_url, item.opened) for item in wants.serving]
    parameters: dict[str, object] = {
        "now": tx.now, "serving": json.dumps(serving), "shut": json.dumps(sorted(shut)),
    }  # fmt: skip
    if wants.batch_ids is not None:
        parameters["batch_ids"] = json.dumps(sorted(wants.batch_ids))
    return parameters


def find_due(tx: Transaction, wants: Wants, *, suspects: bool, shut: Iterable[str] = ()) -> Sequence[AnyRow]:
    """Return up to eight served batches with work that may start now, outside of the lanes that are `shut`.

    Suspects count if they are wanted.
    """
    statement = find_statement(narrowed=wants.batch_ids is not None, suspects=suspects)
    return tx.connection.execute(statement, _parameters(tx, wants, shut)).all()


def next_wake_ms(
    tx: Transaction, wants: Wants, *, suspects: bool, expired_too: bool, shut: Iterable[str] = ()
) -> int | None:
    """Return the milliseconds until something served becomes due; None if nothing waits.

    Without `expired_too`, leases that have run out are no reason to wake; nor are suspects unless wanted,
    nor what is in a lane that is `shut`.
    """
    statement = wake_statement(narrowed=wants.batch_ids is not None, suspects=suspects)
    row = tx.connection.execute(statement, _parameters(tx, wants, shut)).one()
    times = [row.due] if isinstance(row.due, int) else []
    if isinstance(row.expiry, int) and (expired_too or row.expiry > tx.now):
        times.append(row.expiry)
    return max(0, min(times) - tx.now) if times else None


def unopened(due: Iterable[AnyRow]) -> tuple[Serving, ...]:
    """Return the workers that have due work but are not open yet."""
    return tuple({Serving(row.worker, row.endpoint, row.base_url, opened=False) for row in due if not row.opened})


def batch_from(row: AnyRow) -> Batch:
    """Build the value from a row that has all columns of `batches`."""
    settings, unreadable = settings_of(row.settings)
    values, odd = sound_values(row._mapping)  # noqa: SLF001 - the public name of it, for all its underscore
    return Batch(
        id=row.id,
        settings=settings,
        state=BatchState(row.state),
        source=row.source,
        allow_unknown_cost=row.allow_unknown_cost,
        allow_truncated=row.allow_truncated,
        keep_response=row.keep_response,
        synchronised=row.synchronised,
        fault=unreadable or odd,
        **values,
    )
