"""What readers see: results in order, progress, one job with its attempts. Reads only, in short pages."""

from __future__ import annotations

from collections.abc import Mapping
from types import NoneType

from sqlalchemy import BigInteger, ColumnElement, ScalarSelect, Text, cast, func, null, select

from batchq.database import Transaction
from batchq.errors import DamagedRow
from batchq.jobs import Attempt, Batch, BatchState, ErrorGroup, JobState, Lane, Progress, Result, RunnerInfo, Usage
from batchq.schema import FAILED, attempts, batches, jobs
from batchq.store.damage import as_text, refuse_odd, refuse_odd_times
from batchq.store.enqueue import find_batch
from batchq.store.find import AMONG_LIVE, INFLIGHT, PENDING, AnyRow, AnySelect, last_lease, next_time
from batchq.store.followers import LEADER, read_through
from batchq.store.lanes import read_lanes
from batchq.store.runners import read_runners, read_urls
from batchq.store.tally import counts_of, read_totals

_RESULT_COLUMNS = (
    *(
        read_through(name)
        for name in (
            "position", "custom_id", "key", "state", "attempts", "result", "error", "error_class", "status",
            "finish_reason", "meta", "input_tokens", "output_tokens", "cached_tokens", "reasoning_tokens", "cost",
            "cost_source", "response", "finished_at",
        )
    ),
    LEADER.c.position.label("leader"),
    read_through("payload"),
)  # fmt: skip
_WITHOUT_PROMPT = (*_RESULT_COLUMNS[:-1], null().label("payload"))


# What a column may hold; a follower whose leader has been purged has nothing at all.
_TEXT = frozenset({str, NoneType})
_NUMBER = frozenset({int, NoneType})
_WEIGHT = cast(func.sum(1 + jobs.c.followers), BigInteger)


def results_statement(*, with_prompt: bool) -> AnySelect:
    """Return the SELECT of results; followers are read through their leaders."""
    columns = _RESULT_COLUMNS if with_prompt else _WITHOUT_PROMPT
    return select(*columns).select_from(jobs).outerjoin(LEADER, LEADER.c.id == jobs.c.leader_id)


def read_results(
    tx: Transaction, batch_id: int, after: int, limit: int, *, with_prompt: bool, unique: bool = False
) -> list[Result]:
    """Return up to `limit` results behind position `after`, in order; `unique` ones follow no other."""
    statement = results_statement(with_prompt=with_prompt).where(jobs.c.batch_id == batch_id, jobs.c.position > after)
    if unique:
        statement = statement.where(jobs.c.leader_id.is_(None))
    rows = tx.connection.execute(statement.order_by(jobs.c.position).limit(limit))
    return [result_of(row) for row in rows]


def read_job(tx: Transaction, batch_id: int, position: int) -> tuple[Result, list[Attempt]] | None:
    """Return one job with its attempts, oldest first: its leader's where it follows one."""
    row = tx.connection.execute(
        results_statement(with_prompt=True)
        .add_columns(func.coalesce(jobs.c.leader_id, jobs.c.id).label("runs_as"))
        .where(jobs.c.batch_id == batch_id, jobs.c.position == position)
    ).one_or_none()
    if row is None:
        return None
    log = tx.connection.execute(
        select(attempts).where(attempts.c.job_id == row.runs_as).order_by(attempts.c.token)
    ).all()
    return result_of(row), [_attempt(entry) for entry in log]


def is_finished(tx: Transaction, batch: Batch) -> bool:
    """Whether the batch is sealed, or cancelled, and has no live row: asked of the index, never of the tallies.

    One that is being purged is not: what is left of it is no whole.
    """
    complete = batch.sealed_at is not None or batch.state is BatchState.CANCELLED
    if not complete or batch.state is BatchState.PURGING:
        return False
    live, held = (_first_time(batch.id, state) for state in (PENDING, INFLIGHT))
    return all(time is None for time in tx.connection.execute(select(live, held)).one())


def _first_time(batch_id: int, state: ColumnElement[bool]) -> ScalarSelect[int]:
    # Not EXISTS: PostgreSQL reads all rows for that, where it believes that one of the first is such a row.
    rows = select(jobs.c.claimable_at).where(jobs.c.batch_id == batch_id, state, AMONG_LIVE)
    return rows.order_by(jobs.c.claimable_at).limit(1).scalar_subquery()


def read_progress(tx: Transaction, name: str) -> Progress | None:
    """Return the batch of that name at this moment."""
    batch = find_batch(tx, name)
    if batch is None:
        return None
    totals = read_totals(tx, batch.id).get(batch.id, {})
    times = tx.connection.execute(
        select(next_time(PENDING).label("due"), last_lease().label("leased_until"))
        .select_from(batches)
        .where(batches.c.id == batch.id)
    ).one()
    refuse_odd_times(batch.name, times.due, times.leased_until)
    return progress_of(
        batch,
        totals,
        (times.due, times.leased_until),
        finished=is_finished(tx, batch),
        now=tx.now,
        runners=tuple(runner for runner in read_runners(tx) if runner.live),
        lanes=_lanes_of(tx, batch),
    )


def progress_of(
    batch: Batch,
    totals: Mapping[str, int],
    times: tuple[int | None, int | None],
    *,
    finished: bool,
    now: int,
    runners: tuple[RunnerInfo, ...],
    lanes: tuple[Lane, ...],
) -> Progress:
    """Build the value from what was read; `times` are when the next job is due, and when the last lease ends."""
    due, leased_until = times
    return Progress(
        batch=batch,
        counts=counts_of(totals),
        finished=finished,
        now=now,
        usage=Usage(
            totals.get("input_tokens", 0),
            totals.get("output_tokens", 0),
            totals.get("cached_tokens", 0),
            totals.get("reasoning_tokens", 0),
        ),
        cost=totals.get("cost") if totals.get("priced") else None,
        attempts=totals.get("attempts", 0),
        losses=totals.get("losses", 0),
        next_due_at=due,
        runners=runners,
        lanes=lanes,
        leased_until=leased_until,
        estimated=totals.get("estimated", 0),
        priced=totals.get("priced", 0),
        unpriced=totals.get("unpriced", 0),
        throttles=totals.get("throttles", 0),
    )


def _lanes_of(tx: Transaction, batch: Batch) -> tuple[Lane, ...]:
    """Return the lanes that a batch's calls go through, as far as its runners have told which servers they call."""
    lanes = read_lanes(tx, counted=False)
    urls = read_urls(tx, batch.worker, batch.endpoint) if lanes else frozenset()
    return tuple(
        lane
        for lane in lanes
        if (lane.worker, lane.model) == (batch.worker, batch.model) and (not urls or lane.base_url in urls)
    )


def read_errors(tx: Transaction, batch_id: int) -> list[ErrorGroup]:
    """Return the batch's failures by class, most frequent first, with the first one as the example."""
    groups = tx.connection.execute(
        select(jobs.c.error_class, _WEIGHT.label("jobs"), func.min(jobs.c.position).label("first"))
        .where(jobs.c.batch_id == batch_id, FAILED)
        .group_by(jobs.c.error_class)
        .order_by(_WEIGHT.desc(), jobs.c.error_class)
    ).all()
    found = []
    for group in groups:
        example = tx.connection.execute(
            select(jobs.c.error).where(jobs.c.batch_id == batch_id, jobs.c.position == group.first)
        ).scalar_one()
        error_class, told = as_text(group.error_class or "unknown"), as_text(example or "")
        found.append(ErrorGroup(error_class, group.jobs, group.first, told))
    return found


def recount(tx: Transaction, batch_id: int) -> dict[str, int]:
    """Count a batch's jobs by state, row by row: what the tallies must agree with."""
    rows = tx.connection.execute(
        select(jobs.c.state, _WEIGHT.label("jobs"))
        .where(jobs.c.batch_id == batch_id, jobs.c.leader_id.is_(None))
        .group_by(jobs.c.state)
    ).all()
    return {row.state: row.jobs for row in rows}


def result_of(row: AnyRow) -> Result:
    """Build the value from a row of `results_statement`."""
    # Unpacked: by name each column costs as much as building the whole value does.
    (
        position, custom_id, key, state, attempts, result, error, error_class, status, finish_reason, meta,
        input_tokens, output_tokens, cached_tokens, reasoning_tokens, cost, cost_source, response, finished_at,
        leader, payload, *_others,
    ) = row  # fmt: skip
    texts = (custom_id, result, error, error_class, finish_reason, meta, cost_source, response, payload)
    numbers = (attempts, status, input_tokens, output_tokens, cached_tokens, reasoning_tokens, cost, finished_at)
    if not (_TEXT.issuperset(map(type, texts)) and _NUMBER.issuperset(map(type, numbers))):
        _refuse_odd(row)
    return Result(
        position,
        custom_id,
        key,
        JobState(state),
        attempts,
        result,
        error,
        error_class,
        finish_reason,
        Usage(input_tokens, output_tokens, cached_tokens, reasoning_tokens),
        cost,
        meta,
        payload,
        cost_source,
        response,
        status,
        finished_at,
        leader,
    )


def _refuse_odd(row: AnyRow) -> None:
    """Raise DamagedRow, naming the column."""
    columns = zip(_RESULT_COLUMNS, row, strict=False)
    kinds = ((column.name, value, _TEXT if isinstance(column.type, Text) else _NUMBER) for column, value in columns)
    refuse_odd(f"the job at position {row.position}", kinds)


def _attempt(row: AnyRow) -> Attempt:
    numbers = (row.number, row.started_at, row.ended_at, row.status, row.cost, row.input_tokens, row.output_tokens)
    if not _NUMBER.issuperset(map(type, numbers)):
        raise DamagedRow("the log of the job can't be read: something else than batchq has changed the database")
    return Attempt(
        token=row.token,
        number=row.number,
        runner=row.runner,
        started_at=row.started_at,
        ended_at=row.ended_at,
        outcome=row.outcome,
        charged=row.charged,
        error=row.error,
        error_class=row.error_class,
        status=row.status,
        usage=Usage(row.input_tokens, row.output_tokens, row.cached_tokens, row.reasoning_tokens),
        cost=row.cost,
        cost_source=row.cost_source,
        late=row.late,
    )
