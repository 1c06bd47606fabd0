"""Stores with one mistake each, for the judges to find: the test of the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from importlib import import_module

import pytest
from sqlalchemy import Integer, Text, and_, func, literal, select, true, update
from sqlalchemy.dialects import postgresql

from batchq.database.staging import StagedRows
from batchq.pacing import lane
from batchq.schema import batches
from batchq.store import claim, find, finished, lanes, operate, results, settle
from batchq.store.log import log_taken_away
from batchq.store.tally import Tally
from machine.arena import Arena

Mutant = Callable[[pytest.MonkeyPatch], None]


def guard_by_id(jobs, rows, now):
    return jobs.c.id == rows.c.job_id


def guard_by_state(jobs, rows, now):
    return and_(jobs.c.id == rows.c.job_id, jobs.c.state == "inflight")


def guard_by_owner(jobs, rows, now):
    return and_(guard_by_state(jobs, rows, now), jobs.c.claimed_by == rows.c.owner)


def guard_by_owner_and_lease(jobs, rows, now):
    return and_(guard_by_owner(jobs, rows, now), jobs.c.claimable_at > now)


def guard_by_attempt_number(jobs, rows, now):
    return and_(guard_by_state(jobs, rows, now), jobs.c.attempts == rows.c.number)


# Each of these lets a stale attempt through.
WEAK_GUARDS = {
    "id": guard_by_id,
    "state": guard_by_state,
    "owner": guard_by_owner,
    "owner and lease": guard_by_owner_and_lease,
    "attempt number": guard_by_attempt_number,
}


def weaken(patch: pytest.MonkeyPatch, arena: Arena, guard) -> None:
    """Let the settling statements pass by `guard` instead of the token."""
    columns = {column.name: column.type for column in settle.ended_rows.c}
    staged = StagedRows("ended", columns | {"number": Integer(), "owner": Text()})
    row_of = settle._row

    def row_with_owner_and_number(item):
        ended = item.ended.claim
        return (*row_of(item), ended.attempts, arena.owners[ended.job_id, ended.token])

    patch.setattr(settle, "ENDED", staged)
    patch.setattr(settle, "ended_rows", staged.rows)
    patch.setattr(settle, "_row", row_with_owner_and_number)
    patch.setattr(settle, "insert", postgresql.insert)
    condition = guard(settle.jobs, staged.rows, settle.now_ms)
    # The log's own key would refuse a second end of one attempt, and so hide what the guard lets through.
    log = settle.log_statement(condition)
    log = log.prefix_with("OR IGNORE") if arena.is_sqlite else log.on_conflict_do_nothing()
    patch.setattr(settle, "LOG_ENDED", log)
    patch.setattr(settle, "SETTLE", settle.settle_statement(condition))
    patch.setattr(settle, "_settle_and_log", _settle_whatever_is_logged)


@cache
def _settle_whatever_is_logged(log, settling):
    logged = log.returning(settle.attempts.c.job_id).cte("logged")
    return settling.where(select(func.count(logged.c.job_id)).scalar_subquery() >= 0)


def pause_is_not_looked_at(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(find, "_open", true())
    patch.setattr(claim, "_still_open", true())
    patch.setattr(claim, "CLAIM_PENDING", claim._claim_pending(~find.is_suspect(claim._candidate.c.losses)))


def budget_is_not_looked_at(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(find, "within_budget", true())
    patch.setattr(
        claim, "AFFORDABLE", select(true(), find.tasters).select_from(batches).where(batches.c.id == claim._batch)
    )


def calls_in_flight_are_not_counted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(lanes, "_IN_FLIGHT", select(literal(0)))


def buckets_are_not_drawn(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(lane, "draw", lambda state, *_: state)


def pauses_of_lanes_are_not_looked_at(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(lane, "ready_at", lambda _state: 0)


def old_news_halts(patch: pytest.MonkeyPatch) -> None:
    halt = lane.halt
    patch.setattr(lane, "halt", lambda state, _epoch, *rest: halt(state, state.epoch, *rest))


def every_exchange_probes(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(claim, "PROBE_EVERY_MS", 0)


def crashes_are_refunded(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(claim, "_LOG_LOST", log_taken_away("lost", claim._chosen, charged=False, error_class="worker_died"))


def leases_are_not_looked_at(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(claim, "now_ms", find.now_ms + 10**9)
    patch.setattr(claim, "CHOOSE_EXPIRED", claim._due("inflight").where(claim._still_open))


def stale_renewals_count(patch: pytest.MonkeyPatch) -> None:
    held = and_(settle.jobs.c.id == settle.held_rows.c.job_id, settle.jobs.c.state == "inflight")
    renewing = update(settle.jobs).where(held).values(claimable_at=settle.now_ms + literal(60_000))
    patch.setattr(settle, "_RENEW", renewing.returning(settle.jobs.c.id))


def followers_weigh_nothing(patch: pytest.MonkeyPatch) -> None:
    move = Tally.move
    patch.setattr(Tally, "move", lambda self, batch_id, source, target, weight=1: move(self, batch_id, source, target))


def what_is_done_runs_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(operate, "_ENDED_BADLY", ("failed", "cancelled", "done"))


def worse_priority_goes_first(patch: pytest.MonkeyPatch) -> None:
    exchange = import_module("batchq.store.exchange")  # the package has a function of that name
    share = exchange.claim_share
    patch.setattr(exchange, "claim_share", lambda tx, book, due, *rest: share(tx, book, [*reversed(due)], *rest))


def half_a_batch_is_taken_for_a_whole(patch: pytest.MonkeyPatch) -> None:
    is_finished = results.is_finished
    patch.setattr(results, "is_finished", lambda tx, batch: is_finished(tx, replace(batch, sealed_at=tx.now)))


def pages_leave_out_a_row(patch: pytest.MonkeyPatch) -> None:
    read = results.read_results
    patch.setattr(results, "read_results", lambda tx, batch_id, after, **rest: read(tx, batch_id, after + 1, **rest))


def what_ended_is_told_again(patch: pytest.MonkeyPatch) -> None:
    read = finished.read_finished

    def read_from_the_same_place(tx, batch_id, place, **options):
        return replace(read(tx, batch_id, place, **options), place=place)

    patch.setattr(finished, "read_finished", read_from_the_same_place)


MUTANTS: dict[str, Mutant] = {
    mutant.__name__: mutant
    for mutant in (
        pause_is_not_looked_at,
        budget_is_not_looked_at,
        calls_in_flight_are_not_counted,
        buckets_are_not_drawn,
        pauses_of_lanes_are_not_looked_at,
        old_news_halts,
        every_exchange_probes,
        crashes_are_refunded,
        leases_are_not_looked_at,
        stale_renewals_count,
        followers_weigh_nothing,
        what_is_done_runs_again,
        worse_priority_goes_first,
        half_a_batch_is_taken_for_a_whole,
        pages_leave_out_a_row,
        what_ended_is_told_again,
    )
}
MUTANTS_BY_GUARD = {f"guard by {name}": guard for name, guard in WEAK_GUARDS.items()}


@contextmanager
def mutated(arena: Arena, name: str) -> Iterator[None]:
    """Make the mistake of that name, for a while."""
    with pytest.MonkeyPatch.context() as patch:
        if name in MUTANTS_BY_GUARD:
            weaken(patch, arena, MUTANTS_BY_GUARD[name])
        else:
            MUTANTS[name](patch)
        _forget_statements(arena)
        try:
            yield
        finally:
            patch.undo()
            _forget_statements(arena)


def _forget_statements(arena: Arena) -> None:
    """Let statements be built, and rows be staged, anew."""
    for built in (find._served, find.find_statement, find.wake_statement):
        built.cache_clear()
    if arena.is_sqlite:
        arena.run(arena.store._database._writer.call(_drop_staged))


def _drop_staged(connection) -> None:
    connection.exec_driver_sql("DROP TABLE IF EXISTS temp.ended")
