"""From each schema version to the next: nothing is lost, all or nothing happens, and what is newer is refused."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import structlog
from older_databases import VERSION_1, described, make_version_1, parts_of
from raw_connection import connect
from sqlalchemy import Engine, event
from store_driver import Hand, check_tallies, done, failed, fill, identity, open_queue, rows, states

from batchq.checkup import check_database
from batchq.cli.commands import batchq
from batchq.cli.exits import run_command
from batchq.database import locate, shown, upgrade_database
from batchq.database.version import check_version
from batchq.errors import NoDatabase, SchemaMismatch
from batchq.installed import installed_version
from batchq.jobs import Batch, Serving
from batchq.schema import SCHEMA_VERSION
from batchq.store import open_store

pytestmark = pytest.mark.anyio

BOTH = (
    Serving("echo", "default", "http://localhost/v1", opened=True),
    Serving("echo", "stuck", "http://localhost/stuck", opened=True),
)
# As `status` does on SQLite, and `db upgrade` on PostgreSQL.
OPEN = "import asyncio, sys; from batchq.database import upgrade_database; print(asyncio.run(upgrade_database(sys.argv[1])))"
KILLED = f"""
import os, signal
from sqlalchemy import Engine, event

@event.listens_for(Engine, "before_cursor_execute")
def kill(_connection, _cursor, statement, *_):
    if statement.startswith("UPDATE meta"):
        os.kill(os.getpid(), signal.SIGKILL)

{OPEN}
"""


@pytest.fixture
def location(empty_location):
    return empty_location


@pytest.fixture
def old(location):
    """Where there is a queue of version 1, with jobs in every state."""
    make_version_1(location)
    return location


def python(code, *arguments):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, check=False, text=True, capture_output=True, timeout=60)


@pytest.fixture
def run(capfd, monkeypatch, tmp_path):
    """Run a command in this process, on the file runs.db or what is given; return its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BATCHQ_DB", raising=False)

    def call(*arguments):
        capfd.readouterr()
        code = run_command(batchq, list(arguments))
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    yield call
    structlog.reset_defaults()


def version_of(location):
    with connect(location) as connection:
        return connection.execute("SELECT value FROM meta WHERE name = 'schema_version'")[0]["value"]


def content_of(location):
    """All rows of the tables and columns of version 1."""
    with connect(location) as connection:
        return {
            name: sorted(
                [tuple(row[column] for column in first) for row in connection.execute(f"SELECT * FROM {name}")],
                key=repr,
            )
            for name, (first, *_) in VERSION_1["rows"].items()
            if name != "meta"
        }


def as_written():
    return {
        name: sorted([tuple(row.values()) for row in found], key=repr)
        for name, found in VERSION_1["rows"].items()
        if name != "meta"
    }


async def findings(location):
    return [finding async for finding in check_database(location, recount=True)]


async def assert_sound(location):
    assert [finding for finding in await findings(location) if finding.level != "ok"] == []


def test_the_first_step_makes_what_the_program_of_version_1_made(path):
    make_version_1(str(path), rows=False)
    made = described(str(path))
    assert made["application"] == VERSION_1["application_id"]
    assert made["sql"] == {name: parts_of(sql) for name, sql in VERSION_1["schema"].items()}


async def test_an_upgraded_schema_is_what_a_new_one_is(location, request, tmp_path):
    make_version_1(location, rows=False)
    assert (await upgrade_database(location))[1] == 1
    upgraded = described(location)
    if "://" in location:
        with connect(location) as connection:
            connection.execute("DROP SCHEMA public CASCADE")
            connection.execute("CREATE SCHEMA public")
        new = location
    else:
        new = str(tmp_path / "new.db")
    async with await open_store(new, create=True):
        pass
    assert upgraded == described(new)


async def test_all_is_there_after_an_upgrade_and_work_goes_on(old, clock):
    assert {job["state"] for job in VERSION_1["rows"]["jobs"]} == {"pending", "inflight", "done", "failed", "cancelled"}
    assert (await upgrade_database(old))[1] == 1
    assert content_of(old) == as_written()
    await assert_sound(old)
    async with await open_queue(old, clock) as store:
        before = {batch.name: batch for batch in await store.batches()}
        assert (await store.progress("states")).cost == 21_000
        assert [item.outcome for item in (await store.job(before["states"], 0))[1]] == ["lost"]
        assert {lane.model: lane.rpm for lane in await store.lanes()} == {"model-a": 600.0, "model-b": None}
        await store.resume(before["paused"])
        await store.retry(before["called_off"])
        await store.seal(before["unsealed"])
        await store.retry(before["states"])
        hand = Hand(store, "new")
        await store.register(hand.runner)
        await run_all(hand, clock)
        for batch in await store.batches():
            assert (await store.progress(batch.name)).finished
            assert states(store, batch).keys() == {"done"} | ({"pending"} if batch.name == "doubles" else set())
            await check_tallies(store, batch)
        answers = [result.value async for result in store.results(before["doubles"])]
        assert answers == ["for all", "new answer", "for all", "for all"]
        kept = [result.value async for result in store.results(before["states"])]
        assert kept == ["new answer", {"answer": "ä \ud83d"}, *["new answer"] * 6]
        await fill(store, 3, "another")
    await assert_sound(old)


async def run_all(hand: Hand, clock) -> None:
    while (await hand.store.unfinished()).live:
        claims = await hand.claim(8, serving=BOTH)
        await hand.settle(*(done(claim, "new answer", cost=1) for claim in claims))
        clock.advance(120_000)


async def test_what_was_in_flight_is_settled_after_an_upgrade(old, clock):
    await upgrade_database(old)
    async with await open_queue(old, clock) as store:
        clock.now = 1_700_000_010_000  # its lease has not run out
        hand = Hand(store, "worker")
        batch: Batch = await store.batch("states")
        (claim,) = (await hand.send(hand.request(slots=1, batch_ids=[batch.id], adopt=True))).claims[:1]
        assert (claim.position, claim.token) == (0, 2)
        await hand.settle(failed(claim))
        assert states(store, batch)["failed"] == 2


def test_six_at_once_upgrade_once(old):
    with ThreadPoolExecutor(6) as threads:
        finished = list(threads.map(lambda _: python(OPEN, old), range(6)))
    assert [each.stderr for each in finished] == [""] * 6
    assert sorted(each.stdout.rpartition(", ")[2].strip(")\n") for each in finished) == ["1"] + ["None"] * 5
    assert version_of(old) == str(SCHEMA_VERSION)
    assert content_of(old) == as_written()


def test_an_upgrade_that_is_killed_half_way_leaves_the_old_version(old):
    before = described(old)
    assert python(KILLED, old).returncode == -signal.SIGKILL
    assert (described(old), version_of(old), content_of(old)) == (before, "1", as_written())
    assert python(OPEN, old).stdout.endswith(", 1)\n")
    assert version_of(old) == str(SCHEMA_VERSION)


async def test_an_upgrade_that_fails_leaves_the_old_version(old):
    before = described(old)

    def fail(_connection, _cursor, statement, *_):
        if statement.startswith("UPDATE meta"):
            raise ZeroDivisionError

    event.listen(Engine, "before_cursor_execute", fail)
    try:
        with pytest.raises(ZeroDivisionError):
            await upgrade_database(old)
    finally:
        event.remove(Engine, "before_cursor_execute", fail)
    assert (described(old), version_of(old)) == (before, "1")
    assert (await upgrade_database(old))[1] == 1


async def test_a_newer_database_is_refused(location):
    async with await open_store(location, create=True) as store:
        with connect(location) as connection:
            connection.execute("UPDATE meta SET value = '99'")
        newer = (
            r"was made or upgraded by a newer batchq \(schema 99, this one knows 2\): upgrade batchq here, and start"
        )
        for attempt in (open_store(location), upgrade_database(location), store.register(identity("r"))):
            with pytest.raises(SchemaMismatch, match=newer):
                await attempt
    (finding,) = await findings(location)
    assert (finding.level, "newer batchq" in finding.message) == ("error", True)


def test_postgresql_is_upgraded_by_the_command_only(postgres_url, run):
    make_version_1(postgres_url)
    Path("prompts.txt").write_text("Hello\n")
    needed = f"has schema 1, this batchq needs 2: `batchq db upgrade --db {shown(locate(postgres_url))}` upgrades it"
    for command in (["status"], ["enqueue", "prompts.txt", "--worker", "echo"], ["worker"]):
        code, out, err = run(*command, "--db", postgres_url)
        assert (code, out, needed in err) == (1, "", True)
    assert version_of(postgres_url) == "1"
    code, out, _ = run("db", "check", "--db", postgres_url)
    assert (code, out.endswith(f"{needed}\n")) == (1, True)

    code, out, err = run("db", "upgrade", "--db", postgres_url)
    assert (code, out, err.endswith("from schema 1 to 2\n")) == (0, "", True)
    code, out, err = run("db", "upgrade", "--db", postgres_url)
    assert (code, out, err.endswith("has schema 2 already: nothing to do\n")) == (0, "", True)
    assert run("status", "--db", postgres_url)[0] == 0


@pytest.mark.parametrize(
    ("url", "command"),
    [
        ("postgresql+psycopg://me@host/queue", "`batchq db upgrade --db postgresql+psycopg://me@host/queue`"),
        ("postgresql+psycopg://me@host/queue?x=1&y=2", "--db 'postgresql+psycopg://me@host/queue?x=1&y=2'`"),
        ("postgresql+psycopg://me:secret@host/queue", "--db postgresql+psycopg://me@host/queue`"),
    ],
)
def test_how_to_upgrade_can_be_copied_and_tells_no_password(url, command):
    with pytest.raises(SchemaMismatch) as refused:
        check_version(shown(locate(url)), "1")
    assert f"{command} upgrades it" in str(refused.value)
    assert "secret" not in str(refused.value)


async def test_there_is_nothing_to_upgrade_where_there_is_no_queue(location):
    with pytest.raises(NoDatabase):
        await upgrade_database(location)


async def test_an_upgrade_of_postgresql_waits_for_who_is_at_work(postgres_url):
    make_version_1(postgres_url)
    with connect(postgres_url) as worker:
        worker.execute("BEGIN")
        worker.execute("SELECT value FROM meta")
        upgrading = asyncio.ensure_future(upgrade_database(postgres_url))
        await asyncio.sleep(1)
        # It stands in no way while it waits.
        worker.execute("UPDATE batches SET priority = 1")
        worker.execute("UPDATE jobs SET losses = 0")
        assert not upgrading.done()
        worker.execute("COMMIT")
        assert (await upgrading)[1] == 1


@pytest.mark.parametrize("old", [False, True], ids=["made", "upgraded"])
async def test_who_waits_longer_than_for_any_lock_waits_on(postgres_url, old):
    if old:
        make_version_1(postgres_url)
    impatient = f"{postgres_url}?options=-c%20lock_timeout%3D50ms"
    with connect(postgres_url) as other:
        other.execute("BEGIN")
        other.execute("SELECT pg_advisory_xact_lock(1650681969)")
        opening = asyncio.ensure_future(upgrade_database(impatient) if old else open_store(impatient, create=True))
        await asyncio.sleep(0.3)
        assert not opening.done()
        other.execute("COMMIT")
    if not old:
        await (await opening).close()
    else:
        assert (await opening)[1] == 1


def test_any_command_upgrades_a_file(run):
    make_version_1("runs.db")
    told = f"batchq: upgraded {Path('runs.db').absolute()} from schema 1 to 2; an older batchq can't open it any more\n"
    code, out, err = run("collect", "doubles", "--no-wait", "--format", "txt")
    assert (code, err.count(told), err.startswith(told)) == (0, 1, True)
    assert out == "for all\n\nfor all\nfor all\n"
    assert "upgraded" not in run("collect", "doubles", "--no-wait", "--format", "txt")[2]
    assert version_of("runs.db") == str(SCHEMA_VERSION)


def test_db_upgrade_says_what_it_did_to_a_file(run, tmp_path):
    make_version_1("runs.db")
    file = tmp_path / "runs.db"
    assert run("db", "upgrade") == (0, "", f"batchq: upgraded {file} from schema 1 to 2\n")
    assert run("db", "upgrade") == (0, "", f"batchq: {file} has schema 2 already: nothing to do\n")


def test_db_upgrade_tells_machines(run, tmp_path):
    make_version_1("runs.db")
    for since in (1, None):
        code, out, err = run("db", "upgrade", "--json")
        assert (code, err) == (0, "")
        assert json.loads(out) == {"database": str(tmp_path / "runs.db"), "upgraded_from": since, "schema": 2}


def test_db_check_says_that_it_has_upgraded_a_file(run):
    make_version_1("runs.db")
    code, out, _ = run("db", "check")
    assert (code, out.splitlines()[0].split()[:2]) == (0, ["warning", "schema:"])
    assert "had schema 1, and was upgraded to 2 just now: an older batchq can't open it any more" in out
    assert run("db", "check")[1].splitlines()[0].endswith("has schema 2, as this batchq needs")


def test_a_worker_logs_an_upgrade_and_says_it_not_again(run):
    make_version_1("runs.db")
    err = run("worker", "--until-empty", "--batch", "no-such-batch")[2]
    assert [json.loads(line)["event"] for line in err.splitlines()] == ["database.upgraded", "worker.failed"]


async def test_that_a_file_was_upgraded_is_logged_once(path, caplog):
    structlog.reset_defaults()
    caplog.set_level("INFO", "batchq")
    make_version_1(str(path))
    for _ in range(2):
        async with await open_store(str(path)):
            pass
    assert [record.getMessage() for record in caplog.records] == [
        f"event='database.upgraded' database='{path}' since=1 to=2"
    ]


@pytest.mark.skipif(os.name == "nt", reason="permission bits of POSIX")
async def test_an_old_file_that_cannot_be_written_is_refused():
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "queue.db"
        make_version_1(str(path))
        # What another process that has it open leaves beside it.
        with closing(sqlite3.connect(path)) as other:
            other.execute("SELECT * FROM meta").fetchall()
            for file in Path(directory).iterdir():
                file.chmod(0o444)
            Path(directory).chmod(0o555)
            with (
                without_privileges(),
                pytest.raises(SchemaMismatch, match="has schema 1, this batchq needs 2, and can't"),
            ):
                await open_store(str(path))
        Path(directory).chmod(0o755)
        assert version_of(path) == "1"


class without_privileges:
    """Let the system ask for permission, also where it is root that runs the tests."""

    def __enter__(self):
        self._user = os.geteuid()
        if self._user == 0:
            os.seteuid(65534)

    def __exit__(self, *_):
        os.seteuid(self._user)


@pytest.mark.parametrize(
    "code",
    [
        "from batchq.cli import main; sys.argv[1:] = ['--help']; main()",
        "from batchq.cli import main; sys.argv[1:] = ['db', '--help']; main()",
        "import asyncio; from batchq.store import open_store; asyncio.run(open_store(sys.argv[1]))",
    ],
)
async def test_alembic_is_imported_only_for_an_upgrade(path, code):
    async with await open_store(str(path), create=True):
        pass
    told = python(
        "import atexit, sys\n"
        "atexit.register(lambda: print([name for name in sys.modules if 'alembic' in name or 'migrations' in name]))\n"
        + code,
        path,
    )
    assert told.stdout.endswith("[]\n"), told.stderr


def test_status_tells_of_workers_of_another_version(run):
    version = installed_version()
    asyncio.run(register_at("runs.db", version))
    assert "it is batchq" not in run("status")[1]
    asyncio.run(register_at("runs.db", "0.0.9"))
    asyncio.run(register_at("runs.db", None))
    lines = run("status")[1].splitlines()
    assert len([line for line in lines if line.endswith("serves echo")]) == 1
    assert len([line for line in lines if line.endswith(f"; it is batchq 0.0.9, this is {version}")]) == 1
    assert (
        len([line for line in lines if line.endswith(f"; it is batchq of an unknown version, this is {version}")]) == 1
    )
    workers = json.loads(run("status", "--json")[1])["workers"]
    assert {worker["version"] for worker in workers} == {version, "0.0.9", None}


async def register_at(location, version):
    async with await open_store(location, create=True) as store:
        runner = identity(f"of version {version}")
        await store.register(replace(runner, version=version, batch_ids=frozenset([1])))


def test_a_worker_says_which_batchq_it_is(run):
    Path("prompts.txt").write_text("Hello\n")
    run("enqueue", "prompts.txt", "--worker", "echo")
    assert run("worker", "--until-empty")[0] == 0
    with connect("runs.db") as connection:
        assert [row["version"] for row in connection.execute("SELECT version FROM runners")] == [installed_version()]


CHECKED = {
    "tallies": ("UPDATE tallies SET done = done + 1", "its tallies say"),
    "size": ("UPDATE batches SET size = size + 1 WHERE name = 'states'", "it should have 9 jobs, and has 8"),
    "followers": ("UPDATE jobs SET followers = 5 WHERE followers = 2", "their leaders know of 5"),
    "leaders": ("UPDATE jobs SET leader_id = 1 WHERE leader_id IS NOT NULL", "2 of them nobody of this batch"),
    "claims": ("UPDATE jobs SET token = 0 WHERE state = 'inflight'", "1 jobs are in flight and were never claimed"),
    "index": ("DROP INDEX job_failed", "the index job_failed is missing, and what needs it is slow: run with "),
    "column": (
        "ALTER TABLE runners DROP COLUMN wanted_concurrency",
        "the column runners.wanted_concurrency is missing",
    ),
    "table": ("DROP TABLE lanes", "the table lanes is missing: go back to a copy"),
}


@pytest.mark.parametrize("wrong", CHECKED)
async def test_db_check_finds_what_is_wrong(old, wrong):
    await upgrade_database(old)
    await assert_sound(old)
    sql, told = CHECKED[wrong]
    with connect(old) as connection:
        connection.execute(sql)
    errors = [finding for finding in await findings(old) if finding.level == "error"]
    assert any(told in error.message for error in errors), errors


async def test_db_check_says_what_makes_a_missing_index(old):
    await upgrade_database(old)
    with connect(old) as connection:
        connection.execute("DROP INDEX job_failed")
    (error,) = [finding for finding in await findings(old) if finding.level == "error"]
    program, _, ddl = error.message.partition(" run with ")[2].partition(": ")
    assert program == ("`psql DATABASE`" if "://" in old else "`sqlite3 FILE`")
    with connect(old) as connection:
        connection.execute(ddl)
    await assert_sound(old)


async def test_wrong_tallies_are_told_and_mended(old, clock):
    await upgrade_database(old)
    with connect(old) as connection:
        connection.execute("UPDATE tallies SET done = done + 3, pending = pending - 1")
    (told, *_) = [finding.message for finding in await findings(old) if finding.level == "error"]
    assert "only `status` and progress show them" in told
    assert "`batchq db check --repair-tallies` counts them anew" in told
    mended = [finding async for finding in check_database(old, recount=True, repair_tallies=True)]
    assert [finding for finding in mended if finding.level == "error"] == []
    warnings = [finding.message for finding in mended if finding.level == "warning"]
    assert "its tallies were counted anew: done -3, pending +1" in warnings
    await assert_sound(old)
    async with await open_queue(old, clock) as store:
        for batch in await store.batches():
            await check_tallies(store, batch)
            assert await store.mend_tallies(batch) == {}
        assert await store.mend_tallies(replace(batch, id=77)) == {}


async def test_tallies_are_mended_while_others_work_and_mend(location):
    async with await open_store(location, create=True) as store, await open_store(location) as other:
        batch = await fill(store, 200)
        with connect(location) as connection:
            connection.execute("UPDATE tallies SET pending = pending + 50")

        async def work(store):
            hand = Hand(store, f"r{id(store)}")
            while claims := await hand.claim(5):
                await hand.settle(*map(done, claims))

        async def mend(store):
            return [await store.mend_tallies(batch) for _ in range(20)]

        _, _, one, two = await asyncio.gather(work(store), work(other), mend(store), mend(other))
        assert [changes for changes in one + two if changes] == [{"pending": -50}]
        await check_tallies(store, batch)


async def test_a_batch_without_any_tallies_gets_them_again(old):
    await upgrade_database(old)
    with connect(old) as connection:
        connection.execute("DELETE FROM tallies")
    mended = [finding async for finding in check_database(old, recount=True, repair_tallies=True)]
    assert [finding for finding in mended if finding.level == "error"] == []
    await assert_sound(old)


async def test_db_check_finds_rows_that_belong_to_nothing(old):
    await upgrade_database(old)
    with connect(old) as connection:
        connection.execute("DELETE FROM tallies WHERE batch_id = 1")
        connection.execute("DELETE FROM batches WHERE id = 1")
        connection.execute("DELETE FROM jobs WHERE id = 2")
    told = "\n".join(finding.message for finding in await findings(old) if finding.level == "error")
    if "://" in old:
        assert "there are jobs of 1 batches that do not exist" in told
        assert "the log has 1 jobs that do not exist" in told
    else:
        assert "belongs to none of batches" in told
        assert "of attempts belongs to none of jobs" in told


async def test_db_check_finds_an_index_that_was_left_half_made(postgres_url):
    async with await open_store(postgres_url, create=True):
        pass
    with connect(postgres_url) as connection:
        connection.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'job_failed'::regclass")
    (error,) = [finding for finding in await findings(postgres_url) if finding.level == "error"]
    assert error.message == "the index job_failed is not valid: `REINDEX INDEX CONCURRENTLY job_failed` makes it anew"


async def test_db_check_counts_in_chunks(old, monkeypatch):
    monkeypatch.setattr("batchq.store.audit.CHUNK_ROWS", 3)
    await upgrade_database(old)
    await assert_sound(old)


async def test_db_check_finds_a_damaged_file(path):
    make_version_1(str(path))
    async with await open_store(str(path)) as store:
        (root,) = rows(store, "SELECT rootpage FROM sqlite_master WHERE name = 'job_failed'")
    damaged = bytearray(path.read_bytes())
    damaged[4096 * (root["rootpage"] - 1)] = 0xFF
    path.write_bytes(damaged)
    errors = [finding.message for finding in await findings(str(path)) if finding.level == "error"]
    assert any("copy the file first" in error and "sqlite3 FILE .recover" in error for error in errors), errors


async def test_a_file_that_cannot_be_opened_for_damage_leads_to_what_saves_it(path):
    make_version_1(str(path))
    async with await open_store(str(path)):
        pass
    damaged = bytearray(path.read_bytes())
    damaged[100:4096] = b"\xff" * 3996
    path.write_bytes(damaged)
    (finding,) = await findings(str(path))
    assert finding.level == "error"
    assert "malformed: copy the file first" in finding.message
    assert "sqlite3 FILE .recover" in finding.message


async def test_db_check_promises_no_more_of_a_server_than_it_looks_at(location):
    async with await open_store(location, create=True):
        pass
    (integrity,) = [finding.message for finding in await findings(location) if finding.check == "integrity"]
    looked = "no index is invalid, and nothing else was looked at: `pg_amcheck` reads tables and indexes"
    assert integrity == (looked if "://" in location else "nothing is damaged")


def test_db_check_prints_lines_or_json(run):
    assert run("db", "check")[0] == 2
    Path("prompts.txt").write_text("Hello\nYou\n")
    run("enqueue", "prompts.txt", "--worker", "echo", "--batch", "demo")
    code, out, err = run("db", "check")
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()] == ["ok"] * 5
    assert out.splitlines()[-1] == "ok       batch demo: 2 jobs, as its tallies say"
    with connect("runs.db") as connection:
        connection.execute("UPDATE tallies SET pending = 7")
    assert run("db", "check", "--no-recount")[0] == 0
    assert run("db", "check", "--no-recount", "--repair-tallies")[0] == 2
    code, out, _ = run("db", "check", "--json")
    assert code == 1
    found = json.loads(out)
    assert found["ok"] is False
    assert [each["check"] for each in found["checks"] if each["level"] == "error"] == ["batch demo"]
    code, out, _ = run("db", "check", "--repair-tallies")
    assert (code, "batch demo: its tallies were counted anew: pending -5" in out) == (0, True)
    assert run("db", "check")[0] == 0
