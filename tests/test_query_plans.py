"""The statements that find work and read results must stay seeks, however many rows are finished."""

from __future__ import annotations

import json
import re
import sqlite3
from contextlib import closing

import anyio
import pytest
from sqlalchemy import select
from sqlalchemy.dialects import sqlite

from batchq.jobs import NewBatch, Wants
from batchq.schema import batches
from batchq.store import claim, find, operate, open_store, results
from store_driver import SERVING

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
                "runner" if inflight else None, None if live else '"result"', NOW, None if live else NOW,
            )  # fmt: skip


@pytest.fixture(scope="module")
def queue(tmp_path_factory):
    path = tmp_path_factory.mktemp("plans") / "queue.db"
    anyio.run(make_batches, str(path))
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute("BEGIN")
        connection.executemany(
            "INSERT INTO jobs (batch_id, position, key, payload, state, claimable_at, claimed_by, result, created_at, "
            "finished_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            job_rows(),
        )
        connection.execute("COMMIT")
        yield connection


PARAMETERS = {
    "now": NOW,
    "of_batch": 3,
    "limit": 16,
    "lease_ms": 60_000,
    "me": "runner",
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
    text, parameters = compiled(statement)
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
    "expired": claim.CLAIM_EXPIRED,
    "log of the expired": claim._LOG_LOST,
}


@pytest.mark.parametrize("name", CLAIMS)
def test_a_claim_reads_its_rows_in_the_order_of_the_index(queue, name):
    steps = plan(queue, CLAIMS[name])
    (seek,) = seeks(steps, "job_claimable")
    assert re.search(r"\(batch_id=\? AND state=\? AND claimable_at<\?\)", seek)
    assert scans(steps) == sorts(steps) == []


@pytest.mark.parametrize("narrowed", [False, True])
def test_the_walk_of_live_batches_seeks_once_per_batch(queue, narrowed):
    steps = plan(queue, find.find_statement(narrowed=narrowed))
    seeking = seeks(steps, "job_claimable")
    assert any("(batch_id>?)" in step for step in seeking)
    assert sum("(batch_id=? AND state=?" in step for step in seeking) >= 2
    # The recursion starts at the index's first entry: min() reads one, whatever SQLite calls it.
    assert scans(steps) in ([], ["SEARCH jobs USING COVERING INDEX job_claimable"])
    # What is sorted are the few batches found, by priority.
    assert sorts(steps) in ([], ["USE TEMP B-TREE FOR ORDER BY"])


@pytest.mark.parametrize("narrowed", [False, True])
def test_the_next_wake_up_is_read_from_the_index(queue, narrowed):
    steps = plan(queue, find._wake_statement(narrowed=narrowed))
    assert sum("(batch_id=? AND state=?" in step for step in seeks(steps, "job_claimable")) >= 2
    assert scans(steps) == sorts(steps) == []


def statements_of(body) -> list[tuple[str, object]]:
    """Run `body` on a transaction that writes down what it is asked, and return that."""
    asked = []

    class Transaction:
        now = NOW

        @property
        def connection(self):
            return self

        def execute(self, statement, parameters=None):
            asked.append(statement)
            raise _Heard

    with pytest.raises(_Heard):
        body(Transaction())
    return asked


class _Heard(Exception):  # noqa: N818
    pass
