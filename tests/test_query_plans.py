"""The statements that find work and read results must stay seeks, however many rows are finished."""

from __future__ import annotations

import json
import re
import sqlite3
from contextlib import closing

import anyio
import pytest
from plan_cases import BATCHES, JOB_COLUMNS, NOW, ROWS, USES, job_rows, listen, make_batches
from sqlalchemy.dialects import sqlite
from store_driver import SERVING

from batchq.schema import ENDED_KEY
from batchq.store import claim, find, results, settle

TABLES = ("jobs", "batches", "attempts", "lanes")


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
        marks = ", ".join("?" * len(JOB_COLUMNS))
        connection.executemany(f"INSERT INTO jobs ({', '.join(JOB_COLUMNS)}) VALUES ({marks})", job_rows())
        connection.execute("UPDATE batches SET size = ?", (ROWS // BATCHES,))
        connection.execute("COMMIT")
        connection.execute(settle.ENDED._create)
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
    "expired": claim.CHOOSE_EXPIRED,
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
