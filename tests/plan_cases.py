"""What the store asks of a queue of 100,000 jobs, for looks at how the databases go about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from sqlalchemy import event, select, update
from store_driver import SERVING, Hand, done, new_jobs

from batchq.jobs import Batch, Claim, FinishedPlace, NewBatch, Reuse
from batchq.pacing import LaneState, Limits
from batchq.schema import batches
from batchq.store import adding, find, finished, lanes, open_store, operate, results, unfinished
from batchq.store.exchange import exchange

BATCHES = 5
ROWS = 100_000
PER_BATCH = ROWS // BATCHES
LIVE_PER_BATCH = 2_000
NOW = 1_800_000_000_000
TABLES = ("jobs", "batches", "attempts", "lanes")


async def make_batches(location: str) -> None:
    async with await open_store(location, create=True) as store:
        for index in range(BATCHES):
            await store.open_batch(NewBatch(f"batch-{index}", "echo"))


JOB_COLUMNS = (
    "batch_id", "position", "key", "payload", "state", "claimable_at", "claimed_by", "result", "created_at",
    "finished_at", "attempts",
)  # fmt: skip


def job_rows() -> Iterator[tuple[object, ...]]:
    """Ninety in a hundred are done; of the live ones some are in flight, and some are not due yet."""
    for position in range(PER_BATCH):
        live = position < LIVE_PER_BATCH
        inflight = live and position % 20 == 0
        state = "inflight" if inflight else "pending" if live else "done"
        for batch_id in range(1, BATCHES + 1):
            yield (
                batch_id, position, f"{position:032x}", '"prompt"', state, NOW - 1_000 + position,
                "runner" if inflight else None, None if live else '"result"', NOW, None if live else NOW, int(inflight),
            )  # fmt: skip


# Statements that are built where they are used: listened to while the store runs them, then rolled back.


class _Heard(Exception):
    pass


async def listen(location: str, body: Callable) -> list[tuple[str, object]]:
    """Run `body` in a transaction of the store, and undo it; return the statements that it sent."""
    asked: list[tuple[str, object]] = []

    def note(_connection, _cursor, statement, parameters, _context, many) -> None:
        asked.append((statement, parameters[0] if many else parameters))

    def run(transaction) -> None:
        event.listen(transaction.connection.engine, "before_cursor_execute", note)
        body(transaction)
        raise _Heard

    async with await open_store(location, clock=lambda: NOW) as store:
        with pytest.raises(_Heard):
            await store._database.write(run)
    return asked


def batch(transaction, batch_id: int = 3) -> Batch:
    row = transaction.connection.execute(select(batches).where(batches.c.id == batch_id)).one()
    return find.batch_from(row)


def sealed(transaction, batch_id: int = 3) -> Batch:
    return replace(batch(transaction, batch_id), sealed_at=NOW)


def converse(transaction) -> None:
    """Settle, renew, adopt and claim, as a runner does."""
    hand = Hand(None, "runner")
    claims = [Claim(job_id, 0, batch(transaction), 0, None, '"x"', 1, 0, 0) for job_id in range(1, 21)]
    hand.held = {claim.job_id: claim for claim in claims}
    settlements = [done(claim) for claim in claims[:10]]
    exchange(transaction, hand.request(settlements, 500, renew=True, adopt=True, beat=True))


def limit_lane(transaction) -> None:
    """Limit the lane of all batches, so that the calls in it are counted."""
    base_url = SERVING[0].base_url
    lane = LaneState(find.lane_name("echo", base_url, ""), "echo", base_url, "")
    lanes.set_limits(transaction, lane, Limits(max_inflight=5_000))


def converse_within_limits(transaction) -> None:
    """Do the same where calls in flight are limited and budgets are to be held."""
    limit_lane(transaction)
    transaction.connection.execute(update(batches).values(budget=10**9))
    converse(transaction)


def is_wanted(transaction) -> None:
    transaction.connection.execute(update(batches).values(sealed_at=1, enqueue_until=0))
    operate.claim_purge(transaction, batch(transaction))


def count_calls(transaction) -> None:
    limit_lane(transaction)
    lanes.read_lanes(transaction)


USES = {
    "an exchange": converse,
    "an exchange within limits and budgets": converse_within_limits,
    "lanes with their calls": count_calls,
    "is it finished": lambda tx: results.is_finished(tx, sealed(tx)),
    "progress": lambda tx: results.read_progress(tx, "batch-2"),
    "one job": lambda tx: results.read_job(tx, 3, 7),
    "a page of results": lambda tx: results.read_results(tx, 3, 5_000, 500, with_prompt=True),
    "all that is left": unfinished.read_unfinished,
    "failures by class": lambda tx: results.read_errors(tx, 3),
    "abandoned cancels": operate.abandoned_cancels,
    "is it wanted": is_wanted,
    "who holds its jobs": lambda tx: operate.holders(tx, 3),
    "a chunk of a purge": lambda tx: operate.purge_chunk(tx, 3),
    "a chunk of a cancel": lambda tx: (operate.start_cancel(tx, 3), operate.cancel_chunk(tx, 3)),
    "an enqueue by position": lambda tx: adding.add_jobs(tx, 3, new_jobs(100)),
    "what has ended": lambda tx: finished.read_finished(tx, 3, FinishedPlace(5, 5), 500),
    "what follows one job": lambda tx: finished.read_finished(tx, 3, FinishedPlace(NOW, 19_998, 5), 500),
    "an enqueue with reuse": lambda tx: adding.add_jobs(tx, 3, new_jobs(100, PER_BATCH), Reuse(refusals=True)),
    "an enqueue with the answers of others": lambda tx: adding.add_jobs(
        tx, 3, new_jobs(100, PER_BATCH), Reuse(frozenset([1, 2]), refusals=True)
    ),
    "an enqueue of followers": lambda tx: adding.add_jobs(
        tx, 3, [replace(job, leader=7) for job in new_jobs(9, PER_BATCH)]
    ),
    "keys of a batch": lambda tx: adding.read_keys(tx, 3, 500, 100),
    "an enqueue by custom_id": lambda tx: adding.existing_jobs(tx, 3, new_jobs(100, named="x")),
}
