"""On PostgreSQL too the statements that find work and read results stay seeks, with statistics and without."""

from __future__ import annotations

import json

import anyio
import psycopg
import pytest
from plan_cases import JOB_COLUMNS, PER_BATCH, USES, batch, job_rows, listen, make_batches
from postgres import fresh_database, plain
from store_driver import done

from batchq.jobs import Claim
from batchq.schema import ENDED_KEY
from batchq.store import settle
from batchq.store.tally import Tally


def load(url: str) -> None:
    """Fill a database that is never looked at by autovacuum: right after an enqueue there are no statistics."""
    anyio.run(make_batches, url)
    with psycopg.connect(plain(url), autocommit=True) as connection:
        connection.execute("ALTER TABLE jobs SET (autovacuum_enabled = false)")
        with connection.cursor().copy(f"COPY jobs ({', '.join(JOB_COLUMNS)}) FROM STDIN") as copy:
            for row in job_rows():
                copy.write_row(row)
        connection.execute("UPDATE batches SET size = %s", [PER_BATCH])
        connection.execute(ENDED_KEY)


@pytest.fixture(scope="module")
def loaded(postgres, postgres_connection):
    with fresh_database(postgres, postgres_connection) as url:
        load(url)
        yield url


@pytest.fixture(scope="module", params=["without statistics", "analyzed"])
def queue(request, loaded, postgres, postgres_connection):
    """The URL of the queue, and a connection to it."""
    if request.param == "without statistics":
        with psycopg.connect(plain(loaded), autocommit=True) as connection:
            assert connection.execute("SELECT count(*) FROM pg_stats WHERE tablename = 'jobs'").fetchone() == (0,)
            yield loaded, connection
        return
    with (
        fresh_database(postgres, postgres_connection, template=loaded.rpartition("/")[2]) as url,
        psycopg.connect(plain(url), autocommit=True) as connection,
    ):
        connection.execute("ANALYZE")
        yield url, connection


def steps(connection, text: str, parameters) -> list[dict]:
    """The nodes of the plan that PostgreSQL makes for a statement of the store."""
    (plan,) = connection.execute(f"EXPLAIN (FORMAT JSON) {text}", parameters).fetchone()
    return nodes_of(plan)


def nodes_of(plan) -> list[dict]:
    found, waiting = [], [plan[0]["Plan"]]
    while waiting:
        found.append(waiting.pop())
        waiting += found[-1].get("Plans", [])
    return found


def plans(queue, use: str) -> list[tuple[str, list[dict]]]:
    url, connection = queue
    asked = [(text, values) for text, values in anyio.run(listen, url, USES[use]) if " jobs" in text]
    return [(text, steps(connection, text, values)) for text, values in asked]


def indexes(nodes: list[dict]) -> set[str]:
    return {node["Index Name"] for node in nodes if "Index Name" in node}


@pytest.mark.parametrize("use", USES)
def test_no_statement_reads_all_jobs(queue, use):
    asked = plans(queue, use)
    assert asked
    for text, nodes in asked:
        scanned = [node for node in nodes if node["Node Type"] == "Seq Scan" and node["Relation Name"] == "jobs"]
        assert scanned == [], f"{text}\n{json.dumps(nodes[0], indent=1)}"


def test_a_claim_reads_its_rows_by_the_index(queue):
    claims = claims_in(queue)
    assert claims
    for nodes in claims:
        (seek,) = (node for node in nodes if node.get("Index Name") == "job_claimable")
        for column in ("batch_id", "state", "claimable_at"):
            assert column in seek["Index Cond"]


def test_a_claim_reads_its_rows_in_the_order_of_the_index(queue):
    """It reads as many as it takes, and not all that are due to sort them."""
    for nodes in claims_in(queue):
        assert [node["Node Type"] for node in nodes if node["Node Type"] in {"Sort", "Bitmap Heap Scan"}] == []


def claims_in(queue) -> list[list[dict]]:
    return [
        nodes for text, nodes in plans(queue, "an exchange") if text.startswith("WITH chosen") and "FOR UPDATE" in text
    ]


def test_the_walk_of_live_batches_seeks_once_per_batch(queue):
    finding = [
        nodes
        for text, nodes in plans(queue, "an exchange")
        if text.startswith("WITH RECURSIVE live") and "UPDATE" not in text
    ]
    assert finding
    for nodes in finding:
        # Calls in flight are counted: all of them are read, which a bitmap does as well.
        of_jobs = [node for node in nodes if node.get("Relation Name") == "jobs" and "Bitmap" not in node["Node Type"]]
        assert {node.get("Index Name", node["Node Type"]) for node in of_jobs} == {"job_claimable"}
        counted = {node["Index Name"] for node in nodes if node["Node Type"] == "Bitmap Index Scan"}
        assert counted <= {"job_claimable", "tallies_pkey"}


@pytest.mark.parametrize(
    ("use", "index"),
    [
        ("is it finished", "job_claimable"),
        ("a page of results", "job_position"),
        ("failures by class", "job_failed"),
        ("what has ended", "job_finished"),
        ("what follows one job", "job_followers"),
        ("an enqueue with reuse", "job_ended_key"),
        ("an enqueue by custom_id", "job_custom_id"),
    ],
)
def test_what_is_read_is_read_by_its_index(queue, use, index):
    assert index in set().union(*(indexes(nodes) for _, nodes in plans(queue, use)))


FEW_JOBS, ENDED_AT_ONCE = 4_000, 1_000


def test_what_ends_is_settled_in_one_pass_when_statistics_know_of_nothing_in_flight(postgres_queue):
    """Statistics say so before a batch begins; a row that ended must not be compared with each one in flight."""
    anyio.run(make_batches, postgres_queue)
    with psycopg.connect(plain(postgres_queue), autocommit=True) as connection:
        connection.execute("ALTER TABLE jobs SET (autovacuum_enabled = false)")
        connection.execute(
            "INSERT INTO jobs (batch_id, position, key, payload, state, claimable_at, created_at) "
            "SELECT 3, n, lpad(to_hex(n), 32, '0'), '\"prompt\"', 'pending', 0, 0 FROM generate_series(1, %s) AS n",
            [FEW_JOBS],
        )
        connection.execute("ANALYZE jobs")
        connection.execute(
            "UPDATE jobs SET state = 'inflight', token = 1, attempts = 1, claimed_by = 'runner', claimed_at = 0 "
            "WHERE position <= %s",
            [ENDED_AT_ONCE],
        )
        ids = [job_id for (job_id,) in connection.execute("SELECT id FROM jobs WHERE state = 'inflight'")]

        def end_all(transaction) -> None:
            ran = batch(transaction)
            settlements = [done(Claim(job_id, 1, ran, 0, None, '"x"', 1, 0, 0)) for job_id in ids]
            settled, late = settle.write_settlements(transaction, settlements, Tally())
            assert (len(settled), late) == (ENDED_AT_ONCE, ())

        asked = [(text, values) for text, values in anyio.run(listen, postgres_queue, end_all) if " jobs" in text]
        assert asked
        for text, values in asked:
            (plan,) = connection.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {text}", values).fetchone()
            looked_at = [(rows_looked_at(node), node["Node Type"]) for node in nodes_of(plan)]
            assert max(looked_at)[0] <= 2 * FEW_JOBS, f"{text}\n{looked_at}"


def rows_looked_at(node: dict) -> float:
    removed = sum(count for name, count in node.items() if name.startswith("Rows Removed by"))
    return (node["Actual Rows"] + removed) * node["Actual Loops"]
