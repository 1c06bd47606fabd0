"""The statements that find work and read results must stay seeks, however many rows are finished."""

from __future__ import annotations

import json
import re
import sqlite3
from contextlib import closing
from dataclasses import replace

import anyio
import pytest
from sqlalchemy import event, select, update
from sqlalchemy.dialects import sqlite
from store_driver import SERVING, Hand, done, new_jobs

from batchq.jobs import Claim, FinishedPlace, NewBatch, Reuse
from batchq.pacing import LaneState, Limits
from batchq.schema import ENDED_KEY, batches
from batchq.store import adding, claim, find, finished, lanes, open_store, operate, results, unfinished
from batchq.store.exchange import exchange

BATCHES = 5
ROWS = 100_000
LIVE_PER_BATCH = 2_000
NOW = 1_800_000_000_000
TABLES = ("jobs", "batches", "attempts", "lanes")


async def make_batches(location: str) -> None:
    async with await open_store(location, create=True) as store:
        for index in range(BATCHES):
            await store.open_batch(NewBatch(f"batch-{index}", "echo"))


def job_rows():
    """Ninety in a hundred are done; of the live ones some are in flight, and some are not due yet."""
    per_batch = ROWS // BATCHES
    for position in range(per_batch):
        live = position < LIVE_PER_BATCH
        inflight = live and position % 20 == 0
        state = "inflight" if inflight else "pending" if live else "done"
        for batch_id in range(1, BATCHES + 1):
            yield (
                batch_id, position, f"{position:032x}", '"prompt"', state, NOW - 1_000 + position,
                "runner" if inflight else None, None if live else '"result"', NOW, None if live else NOW, int(inflight),
            )  # fmt: skip


@pytest.fixture(scope="module")
def location(tmp_path_factory):
    return str(tmp_path_factory.mktemp("plans") / "queue.db")


@pytest.fixture(scope="module")
def queue(location):
    anyio.run(make_batches, location)
    with closing(sqlite3.connect(location, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute("BEGIN")
        connection.execute(ENDED_KEY)
        connection.executemany(
            "INSERT INTO jobs (batch_id, position, key, payload, state, claimable_at, claimed_by, result, created_at, "
            "finished_at, attempts) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            job_rows(),
        )
        connection.execute("UPDATE batches SET size = ?", (ROWS // BATCHES,))
        connection.execute("COMMIT")
        yield connection


PARAMETERS = {
    "now": NOW,
    "of_batch": 3,
    "limit": 16,
    "lease_ms": 60_000,
    "me": "runner",
    "of_lane": "lane",
    "lane": "lane",
    "in_hand": json.dumps(list(range(1, 17))),
    "attempt_limit": 8,
    "serving": json.dumps([("echo", "default", SERVING[0].base_url, 1)]),
    "batch_ids": "[2, 3]",
}


def compiled(statement) -> tuple[str, list[object]]:
    """Return the statement's text as the driver gets it, and its parameters in their order."""
    text = statement.compile(dialect=sqlite.dialect(), compile_kwargs={"render_postcompile": True})
    values = text.params | {name: value for name, value in PARAMETERS.items() if name in text.params}
    return str(text), [values[name] for name in text.positiontup]


def plan(queue, statement) -> list[str]:
    return explain(queue, *compiled(statement))


def explain(queue, text: str, parameters) -> list[str]:
    return [row[3] for row in queue.execute(f"EXPLAIN QUERY PLAN {text}", parameters)]


def scans(steps: list[str]) -> list[str]:
    """Return the steps that read a whole table or index of ours."""
    return [step for step in steps if re.match(rf"SCAN (candidate|{'|'.join(TABLES)})\b", step)]


def seeks(steps: list[str], index: str) -> list[str]:
    return [step for step in steps if step.startswith("SEARCH") and f" INDEX {index} " in step]


def sorts(steps: list[str]) -> list[str]:
    return [step for step in steps if "TEMP B-TREE" in step]


def page_statement():
    return results.results_statement(with_prompt=True).where(
        results.jobs.c.batch_id == 3, results.jobs.c.position > 5_000
    ).limit(500)  # fmt: skip


CLAIMS = {
    "pending": claim.CLAIM_PENDING,
    "suspect": claim.CLAIM_SUSPECT,
    "expired": claim.CLAIM_EXPIRED,
    "log of the expired": claim._LOG_LOST,
}


@pytest.mark.parametrize("name", CLAIMS)
def test_a_claim_reads_its_rows_in_the_order_of_the_index(queue, name):
    steps = plan(queue, CLAIMS[name])
    (seek,) = seeks(steps, "job_claimable")
    assert re.search(r"\(batch_id=\? AND state=\? AND claimable_at<\?\)", seek)
    assert scans(steps) == sorts(steps) == []


@pytest.mark.parametrize("suspects", [False, True])
@pytest.mark.parametrize("narrowed", [False, True])
def test_the_walk_of_live_batches_seeks_once_per_batch(queue, narrowed, suspects):
    steps = plan(queue, find.find_statement(narrowed=narrowed, suspects=suspects))
    seeking = seeks(steps, "job_claimable")
    assert any("(batch_id>?)" in step for step in seeking)
    assert sum("(batch_id=? AND state=?" in step for step in seeking) >= 2
    # The recursion starts at the index's first entry: min() reads one, whatever SQLite calls it.
    assert scans(steps) in ([], ["SEARCH jobs USING COVERING INDEX job_claimable"])
    # What is sorted are the few batches found, by priority.
    assert sorts(steps) in ([], ["USE TEMP B-TREE FOR ORDER BY"])


@pytest.mark.parametrize("suspects", [False, True])
@pytest.mark.parametrize("narrowed", [False, True])
def test_the_next_wake_up_is_read_from_the_index(queue, narrowed, suspects):
    steps = plan(queue, find.wake_statement(narrowed=narrowed, suspects=suspects))
    assert sum("(batch_id=? AND state=?" in step for step in seeks(steps, "job_claimable")) >= 2
    assert scans(steps) == sorts(steps) == []


# Statements that are built where they are used: listened to while the store runs them, then rolled back.


class _Heard(Exception):
    pass


async def listen(location: str, body) -> list[tuple[str, object]]:
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


def batch(transaction, batch_id: int = 3):
    row = transaction.connection.execute(select(batches).where(batches.c.id == batch_id)).one()
    return find.batch_from(row)


def sealed(transaction, batch_id: int = 3):
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
    "a chunk of a purge": lambda tx: operate.purge_chunk(tx, 3),
    "a chunk of a cancel": lambda tx: (operate.start_cancel(tx, 3), operate.cancel_chunk(tx, 3)),
    "an enqueue by position": lambda tx: adding.add_jobs(tx, 3, new_jobs(100)),
    "what has ended": lambda tx: finished.read_finished(tx, 3, FinishedPlace(5, 5), 500),
    "what follows one job": lambda tx: finished.read_finished(tx, 3, FinishedPlace(NOW, 19_998, 5), 500),
    "an enqueue with reuse": lambda tx: adding.add_jobs(tx, 3, new_jobs(100, 9_000), Reuse(refusals=True)),
    "an enqueue with the answers of others": lambda tx: adding.add_jobs(
        tx, 3, new_jobs(100, 9_100), Reuse(frozenset([1, 2]), refusals=True)
    ),
    "an enqueue of followers": lambda tx: adding.add_jobs(
        tx, 3, [replace(job, leader=7) for job in new_jobs(9, 9_200)]
    ),
    "keys of a batch": lambda tx: adding.read_keys(tx, 3, 500, 100),
    "an enqueue by custom_id": lambda tx: adding.existing_jobs(tx, 3, new_jobs(100, named="x")),
}


@pytest.mark.parametrize("name", USES)
def test_no_statement_reads_all_jobs(queue, location, name):
    asked = [(text, values) for text, values in anyio.run(listen, location, USES[name]) if " jobs" in text]
    assert asked
    for text, values in asked:
        steps = explain(queue, text, values)
        assert [step for step in scans(steps) if "jobs" in step] == [], text


def test_pages_of_results_are_read_in_the_order_of_the_index(queue):
    steps = plan(queue, page_statement())
    # SQLite's own name for the index of UNIQUE (batch_id, position), the first constraint of `jobs`.
    assert steps == [
        "SEARCH jobs USING INDEX sqlite_autoindex_jobs_1 (batch_id=? AND position>?)",
        "SEARCH leader USING INTEGER PRIMARY KEY (rowid=?) LEFT-JOIN",
    ]


def test_followers_of_one_job_are_read_in_the_order_of_the_index(queue, location):
    asked = anyio.run(listen, location, USES["what follows one job"])
    (text, values) = next((text, values) for text, values in asked if "jobs.leader_id = ?" in text)
    assert explain(queue, text, values) == ["SEARCH jobs USING INDEX job_followers (leader_id=? AND rowid>?)"]


def test_failures_are_counted_by_the_index_that_holds_nothing_else(queue, location):
    text, values = anyio.run(listen, location, USES["failures by class"])[-1]
    steps = explain(queue, text, values)
    assert steps[0] == "SEARCH jobs USING COVERING INDEX job_failed (batch_id=? AND state=?)"
    # What is sorted are the few classes, by how often.
    assert sorts(steps) in ([], ["USE TEMP B-TREE FOR ORDER BY"])


def test_whether_a_batch_is_finished_is_two_seeks(queue, location):
    text, values = anyio.run(listen, location, USES["is it finished"])[-1]
    steps = explain(queue, text, values)
    assert len(seeks(steps, "job_claimable")) == 2
    assert scans(steps) == sorts(steps) == []
