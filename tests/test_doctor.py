"""`batchq doctor` tells each thing that is wrong, by its real cause, and changes nothing."""

import os
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from pathlib import Path

import forked
import pytest
from doctors import doctor, look
from older_databases import make_version_1
from processes import ON_BOTH, bench, bench_for, wait_for
from raw_connection import connect
from store_driver import Hand, fill, halt
from terminal import on_terminal
from test_bad_files import without_privileges

from batchq.database.sqlite import network
from batchq.doctor import counts, log_file
from batchq.doctor.finding import error, ok
from batchq.doctor.guarding import guarded
from batchq.doctor.installation import has_wal_reset_bug
from batchq.store import open_store

pytestmark = pytest.mark.anyio
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="/proc/locks")
POSIX = pytest.mark.skipif(os.name != "posix", reason="modes of files")
# A reader that stays in its transaction, and a writer in his: until their standard input is closed.
HOLDING = """
import sqlite3, sys
held = sqlite3.connect(sys.argv[1], isolation_level=None)
for statement in sys.argv[2:]:
    held.execute(statement).fetchall()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def place(request, tmp_path):
    with bench_for(request, tmp_path) as made:
        yield made


def enqueued(place, *options, count=3):
    place.write_prompts(count)
    done = place.run("enqueue", "prompts.jsonl", "--batch", "demo", "--worker", "echo", *options)
    assert done.returncode == 0, done.stderr
    return place


def files_in(directory):
    return {file.name: file.read_bytes() for file in sorted(directory.iterdir()) if file.is_file()}


@ON_BOTH
def test_a_queue_that_is_well_has_no_warning_but_that_nobody_works(place):
    enqueued(place)
    before = files_in(place.directory)
    found = doctor(place, "--offline", code=0)
    assert found.names("error") == set()
    assert found.names("warning") - {"endpoint", "place", "server"} == {"batches"}
    assert "demo waits: no live worker serves echo -> start one with `batchq worker" in found.of("batches", "warning")
    assert "3 jobs in 1 batch counted, as their tallies say" in found.of("tallies", "ok")
    assert files_in(place.directory) == before


@ON_BOTH
def test_a_finished_queue_and_all_of_it_read(place):
    enqueued(place)
    assert place.run("worker", "--until-empty").returncode == 0
    found = doctor(place, "--offline", "--full", code=0)
    assert found.of("batches", "ok") == "none is unfinished -> "
    assert found.of("integrity", "ok")
    assert found.of("tables", "ok") == "all tables and indexes are there -> "


def test_what_a_killed_process_left_in_the_log_stays_there(place):
    enqueued(place)
    log = place.directory / "runs.db-wal"
    code = "import os, sqlite3, sys; c = sqlite3.connect('runs.db', isolation_level=None)"
    code += "; c.execute('PRAGMA wal_autocheckpoint=0'); c.execute('UPDATE batches SET priority = 5'); os._exit(9)"
    forked.run([sys.executable, "-c", code], cwd=place.directory)
    before, file = log.read_bytes(), (place.directory / "runs.db").read_bytes()
    assert before
    found = doctor(place, "--offline")
    assert "left by a process that was killed" in found.of("log", "ok") or sys.platform != "linux"
    assert (log.read_bytes(), (place.directory / "runs.db").read_bytes()) == (before, file)


def test_a_file_that_is_not_there_is_not_made(place):
    found = doctor(place, "--offline", code=0)
    assert "there is no queue at" in found.of("database", "warning")
    chosen = doctor(place, "--offline", "--db", "other.db", code=1)
    assert "`batchq enqueue` makes one" in chosen.of("database", "error")
    assert doctor(place, "--offline", "--db", "no/such/place/q.db", code=1).of("database", "error")
    assert [file.name for file in place.directory.iterdir()] == []


def directory(path):
    path.mkdir()


def foreign(path):
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE theirs (a)")


def newer(path):
    make_version_1(str(path))
    with connect(path) as connection:
        connection.execute("UPDATE meta SET value = '99' WHERE name = 'schema_version'")


def malformed(path):
    make_version_1(str(path))
    damaged = bytearray(path.read_bytes())
    damaged[100:4096] = b"\xff" * 3996
    path.write_bytes(damaged)


WRONG_FILES = {
    "directory": (directory, "database", "is a directory -> name a file in it"),
    "empty": (Path.touch, "database", "is empty: there is no queue in it"),
    "text": (lambda path: path.write_text("no database " * 50), "database", "is no SQLite database"),
    "foreign": (foreign, "database", "is a database, but not one of batchq's"),
    "newer": (newer, "schema", "upgrade batchq here"),
    "malformed": (malformed, "database", "sqlite3 FILE .recover"),
    "fifo": (os.mkfifo, "database", "is no regular file"),
}


@POSIX
@pytest.mark.parametrize("wrong", WRONG_FILES)
async def test_a_file_that_can_hold_no_queue_is_a_finding(path, wrong):
    make, name, told = WRONG_FILES[wrong]
    make(path)
    before = files_in(path.parent)
    found = await look(path)
    assert told in found.of(name, "error")
    assert {"python", "sqlite"} <= found.names("ok")
    after = files_in(path.parent)
    assert after[path.name] == before[path.name] if path.is_file() else after == before


async def test_names_that_no_database_can_have(tmp_path):
    for location, told in {
        ":memory:": "a queue needs a file",
        "mysql://host/queue": "mysql is not supported",
        "postgresql://user:secret@/": "names no database",
    }.items():
        found = await look(location)
        assert told in found.of("database", "error")
        assert "secret" not in repr([each.what for each in found.all])


def test_an_older_file_is_told_of_and_stays_as_it_is(place):
    make_version_1(str(place.directory / "runs.db"))
    found = doctor(place, "--offline", code=0)
    assert "`batchq db upgrade --db" in found.of("schema", "warning")
    assert place.query("SELECT value FROM meta WHERE name = 'schema_version'") == [("1",)]


async def test_older_and_newer_schemas_on_a_server(postgres_url):
    make_version_1(postgres_url)
    assert "`batchq db upgrade" in (await look(postgres_url)).of("schema", "error")
    with connect(postgres_url) as connection:
        connection.execute("UPDATE meta SET value = '99' WHERE name = 'schema_version'")
    assert "upgrade batchq here" in (await look(postgres_url)).of("schema", "error")


@POSIX
async def test_a_damaged_page_is_found_when_all_is_read(path):
    async with await open_store(str(path), create=True) as store:
        await fill(store, 20)
    with connect(path) as connection:
        (root,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'job_failed'")
    damaged = bytearray(path.read_bytes())
    damaged[4096 * (root["rootpage"] - 1)] = 0xFF
    path.write_bytes(damaged)
    (told,) = [each for each in (await look(path, full=True)).all if each.name == "integrity"]
    assert (told.level, "copy the file first" in told.what_to_do) == ("error", True)
    assert "copy the file first" not in told.what


@POSIX
def test_who_may_use_the_files(place):
    enqueued(place)
    file = place.directory / "runs.db"
    assert "has mode 0600" in doctor(place, "--offline").of("permissions", "ok")
    file.chmod(0o644)
    assert f"can read the prompts and answers in {file} -> chmod o-rwx {file}" in doctor(place, "--offline", code=0).of(
        "permissions", "warning"
    )
    file.chmod(0o600)
    place.directory.chmod(0o777)
    assert f"can replace the files in {place.directory}" in doctor(place, "--offline").of("permissions", "warning")


@POSIX
async def test_a_user_who_may_not_use_the_queue_is_told_whose_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "queue.db"
    async with await open_store(str(path), create=True):
        pass
    path.chmod(0o440 if os.geteuid() else 0o600)
    with without_privileges(path):
        found = await look(path)
    assert "this user can't" in found.of("permissions", "error")
    assert "BATCHQ_DB_MODE=0660" in found.of("permissions", "error")
    assert {file.name for file in tmp_path.iterdir()} == {"queue.db"}


@POSIX
def test_keys_that_others_can_read_and_settings_that_others_can_change(place):
    dotenv, toml = place.directory / ".env", place.directory / "batchq.toml"
    key, file = "sk-or-v1-0123456789abcdef", place.directory / "other.key"
    dotenv.write_text(f"OPENROUTER_API_KEY={key}\n")
    file.write_text(key)
    toml.write_text(f'[endpoints.other]\nbase_url = "https://api.example.com/v1"\napi_key_file = "{file}"\n')
    for each in (dotenv, file):
        each.chmod(0o644)
    done = place.run("doctor", "--offline")
    for each in (dotenv, file):
        assert f"-> chmod 600 {each}" in done.stdout
    assert key not in done.stdout + done.stderr
    assert done.returncode == 0
    for each in (dotenv, file):
        each.chmod(0o640)
    toml.chmod(0o666)
    found = doctor(place, "--offline", code=1)
    assert found.of("settings", "warning") == ""
    assert f"-> chmod o-w {toml}" in found.of("settings", "error")


def test_settings_that_cannot_be_read_keep_nothing_from_being_looked_at(place):
    enqueued(place)
    (place.directory / "batchq.toml").write_text("concurrency = 0\n")
    found = doctor(place, "--offline", code=1)
    assert "concurrency" in found.of("settings", "error")
    assert {"permissions", "schema", "tallies"} <= found.names("ok")


@LINUX
async def test_a_queue_in_memory_and_one_on_a_share(tmp_path, monkeypatch):
    table = tmp_path / "mounts"
    monkeypatch.setattr(network, "_MOUNTS", table)
    table.write_text(f"/dev/vda / ext4 rw 0 0\ntmpfs {tmp_path} tmpfs rw 0 0\n")
    assert "is in memory, and gone when this machine restarts" in (await look(tmp_path / "q.db")).of("place", "warning")
    table.write_text("overlay / overlay rw 0 0\n")
    assert "the queue goes away with the container" in (await look(tmp_path / "q.db")).of("place", "warning")
    table.write_text(f"/dev/vda / ext4 rw 0 0\nserver:/x {tmp_path} nfs4 rw 0 0\n")
    assert "nfs4, a file system that machines share" in (await look(tmp_path / "q.db")).of("place", "error")
    monkeypatch.setenv("BATCHQ_ALLOW_NETWORK_FS", "1")
    found = await look(tmp_path / "q.db")
    assert (found.of("place", "error"), "allowed by" in found.of("place", "warning")) == ("", True)


@LINUX
def test_a_disk_that_is_nearly_full(tmp_path):
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(tmp_path)], check=False)
    if mounted.returncode:
        pytest.skip("this user may mount nothing")
    try:
        with bench(tmp_path) as place:
            found = doctor(place, "--offline", code=1)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
    assert f"2 MB are free in {tmp_path} -> make room" in found.of("disk", "error")


@contextmanager
def holding(place, *statements):
    command = [sys.executable, "-c", HOLDING, str(place.database), *statements]
    with forked.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process


@LINUX
def test_who_reads_for_long_and_holds_the_log_back_is_named(place):
    enqueued(place)
    with holding(place, "BEGIN", "SELECT * FROM batches") as held:
        os.truncate(place.directory / "runs.db-wal", log_file.LARGE_BYTES + 4096)
        found = doctor(place, "--offline", code=0)
    assert f"process {held.pid} (" in found.of("locks", "warning")
    assert "the log can't be folded in and grows" in found.of("locks", "warning")
    assert "a reader holds or held it back -> see `locks` above" in found.of("log", "warning")


@LINUX
def test_who_keeps_all_others_from_writing_is_named(place):
    enqueued(place)
    with holding(place, "BEGIN IMMEDIATE", "UPDATE batches SET priority = 1") as held:
        found = doctor(place, "--offline", code=0)
    assert f"process {held.pid} (" in found.of("locks", "warning")
    assert "nobody else can commit" in found.of("locks", "warning")
    assert f"kill -CONT {held.pid}" in found.of("locks", "warning")


@LINUX
def test_who_only_has_it_open_or_works_on_it_is_in_nobodys_way(place):
    enqueued(place)
    with holding(place, "SELECT * FROM batches"):
        found = doctor(place, "--offline")
    assert found.of("locks", "ok") == "1 process has it open, none is in the way -> "


def test_a_file_whose_journal_mode_was_switched(place):
    enqueued(place)
    with closing(sqlite3.connect(place.database)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
    assert "journal mode delete" in doctor(place, "--offline").of("journal", "warning")
    with closing(sqlite3.connect(place.database)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)


@ON_BOTH
def test_a_worker_that_was_killed_is_named(place):
    enqueued(place)
    worker = place.start("worker", "--worker", "echo")
    wait_for(lambda: place.count("done") == 3, "the jobs")
    assert "1 alive" in doctor(place, "--offline").of("workers", "ok")
    worker.kill()
    worker.wait()
    found = doctor(place, "--offline", code=0)
    assert f"pid {worker.pid} died moments ago" in found.of("workers", "warning")
    assert "none is alive" in found.of("workers", "ok")
    alter(place.database, "UPDATE runners SET seen_at = seen_at - 600000, pid_space = 'elsewhere'")
    assert f"pid {worker.pid} is silent" in doctor(place, "--offline").of("workers", "warning")


def alter(location, *statements):
    with connect(location) as connection:
        for statement in statements:
            connection.execute(statement)


async def test_leases_that_ran_out_and_nobody_took_up(location):
    async with await open_store(location, create=True) as store:
        await fill(store, 5)
        await Hand(store).claim(2)
    alter(location, "UPDATE jobs SET claimable_at = claimable_at - 600000 WHERE state = 'inflight'")
    found = await look(location)
    assert "demo: 2 jobs are in flight by leases that ran out at" in found.of("leases", "warning")
    assert "no live worker serves it -> `batchq worker --db" in found.of("leases", "warning")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("sealed_at = NULL, enqueue_until = 1", "demo is incomplete: its enqueue died"),
        ("state = 'cancelled'", "demo is cancelled, and some of its jobs are not"),
        ("state = 'purging'", "demo is being purged, or its purge was left half-way"),
        ("budget = 0", "demo waits: "),
    ],
)
async def test_batches_that_somebody_left_half_way(location, change, told):
    async with await open_store(location, create=True) as store:
        await fill(store, 2)
    alter(location, f"UPDATE batches SET {change}")
    found = await look(location)
    assert told in found.of("batches", "warning")


async def test_a_batch_that_somebody_has_changed_by_hand(location):
    async with await open_store(location, create=True) as store:
        await fill(store, 2)
    alter(location, "UPDATE batches SET settings = '['")
    assert "something else than batchq has changed the database" in (await look(location)).of("batches", "error")


async def test_a_paused_batch_is_as_it_was_asked_to_be(location):
    async with await open_store(location, create=True) as store:
        await store.pause(await fill(store, 2))
    found = await look(location)
    assert (found.of("batches", "warning"), "paused: `batchq resume" in found.of("batches", "ok")) == ("", True)


async def test_a_halted_lane_is_an_error_while_something_waits_for_it(location):
    async with await open_store(location, create=True) as store:
        batch = await fill(store, 1)
        await halt(store, Hand(store))
        found = await look(location)
        assert "is halted since" in found.of("lanes", "error")
        assert "no credit; demo can't go on -> mend the cause, then `batchq resume --db" in found.of("lanes", "error")
        await store.cancel(batch)
    assert "nothing waits for it" in (await look(location)).of("lanes", "ok")


async def test_tallies_that_are_wrong(location):
    async with await open_store(location, create=True) as store:
        await fill(store, 3)
    alter(location, "UPDATE tallies SET done = done + 1")
    found = await look(location)
    told = "batch demo: its tallies say 1 done, 3 pending, and there are 3 pending -> "
    assert found.of("tallies", "error").startswith(told)
    assert "`batchq db check --repair-tallies`" in found.of("tallies", "error")


async def test_large_batches_are_counted_only_when_that_is_asked_for(location, monkeypatch):
    monkeypatch.setattr(counts, "MOST_ROWS", 10)
    async with await open_store(location, create=True) as store:
        await fill(store, 12, "large")
        await fill(store, 4, "small")
    assert "4 of 16 jobs were counted, in 1 of 2 batches; --full counts all" in (await look(location)).of("tallies")
    alter(location, "UPDATE tallies SET pending = pending + 1 WHERE pending = 12")
    assert (await look(location)).of("tallies", "error") == ""
    assert "batch large: its tallies say" in (await look(location, full=True)).of("tallies", "error")


async def test_a_clock_that_was_set_back(location):
    async with await open_store(location, create=True) as store:
        await fill(store, 1)
    ahead = round(time.time() * 1000) + 3_600_000
    alter(location, f"UPDATE batches SET created_at = {ahead}, sealed_at = {ahead}")
    found = (await look(location)).of("clock", "warning")
    assert "was set back by 3,6" in found or "was set back by 3,5" in found
    assert "start a worker" in found


@pytest.mark.parametrize("seconds", [-600, 600])
async def test_a_server_whose_clock_is_another(postgres_queue, monkeypatch, seconds):
    true_time = time.time
    monkeypatch.setattr(time, "time", lambda: true_time() + seconds)
    told = (await look(postgres_queue)).of("clock", "warning")
    assert ("600.0 s ahead of" if seconds < 0 else "600.0 s behind") in told or "599.9 s" in told


async def test_a_queue_that_was_moved(location):
    async with await open_store(location, create=True):
        pass
    alter(location, "UPDATE meta SET value = 'moved 2 /elsewhere/q.db' WHERE name = 'schema_version'")
    assert "this queue was moved to /elsewhere/q.db" in (await look(location)).of("queue", "warning")


async def test_a_check_that_fails_leaves_the_others_be(location):
    async with await open_store(location, create=True) as store:
        await fill(store, 2)
    alter(location, "ALTER TABLE lanes RENAME TO lost")
    found = await look(location, full=True)
    assert found.of("batches", "error")
    assert "the table lanes is missing: go back to a copy" in found.of("tables", "error").replace(" -> ", ": ")
    assert "2 jobs in 1 batch counted" in found.of("tallies", "ok")


async def test_a_check_that_takes_too_long_says_so():
    import anyio

    async def slow():
        yield ok("slow", "so far")
        await anyio.sleep(60)

    async def broken():
        yield error("broken", "one")
        raise ValueError("sk-or-v1-0123456789abcdef")

    first, second = await guarded("slow", slow, 0.05)
    assert (first.what, second.level, "took longer than 0.05 s" in second.what) == ("so far", "error", True)
    first, second = await guarded("broken", broken)
    assert (first.what, second.level) == ("one", "error")
    assert "ValueError: [redacted]" in second.what


def test_which_sqlite_has_the_bug():
    affected = [(3, 7, 0), (3, 40, 1), (3, 44, 5), (3, 46, 1), (3, 50, 6), (3, 51, 2)]
    sound = [(3, 6, 23), (3, 44, 6), (3, 50, 7), (3, 51, 3), (3, 54, 1)]
    assert [has_wal_reset_bug(version) for version in affected + sound] == [True] * 6 + [False] * 5


def test_lines_for_pipes_and_for_terminals(place):
    (place.directory / "batchq.toml").write_text("")
    plain = place.run("doctor", "--offline")
    lines = plain.stdout.splitlines()
    assert lines[-1] == "0 errors, 2 warnings, " + lines[-1].rpartition(", ")[2]
    assert lines[0].startswith("ok       python        ")
    assert all(line[9:23].strip() == "" for line in lines if line[23:].startswith("-> "))
    assert "\x1b" not in plain.stdout
    with on_terminal(place.directory, place.environment, "doctor", "--offline", columns=60, lines=60) as (seen, _):
        shown = seen.wait_for("0 errors, 2 warnings")
        assert {"green", "brown"} <= seen.styles()
    assert all(len(line) <= 60 for line in shown.splitlines())
    folded = [line for line in shown.splitlines() if line.startswith(" " * 23) and line[23:].strip()]
    assert folded, shown


def test_names_from_the_database_cannot_move_the_cursor(place):
    enqueued(place)
    alter(place.database, "UPDATE batches SET name = 'a' || char(27) || '[2J'")
    done = place.run("doctor", "--offline")
    assert "\\x1b[2J waits" in done.stdout
    assert "\x1b" not in done.stdout
