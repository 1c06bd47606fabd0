"""Real worker processes on a PostgreSQL that fails them in every way, with the provider's ledger as the judge."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from fake_provider import Provider, running_provider
from postgres_server import PostgresServer, postgres_server
from processes import Bench, bench, wait_for
from sqlalchemy.exc import DBAPIError
from tcp_proxy import tcp_proxy

from batchq import open_queue
from batchq.coordinator import watch
from batchq.database.postgres import listening, refusal, silence
from batchq.errors import DatabaseUnavailable, DataRefused, NoDatabase
from batchq.jobs import NewBatch
from batchq.store import open_store

DRIVERS = ["psycopg", "asyncpg"]
# What is to take 10 s at most may take three times as long on a machine that others use, too.
BACK_WITHIN = 30.0
END_WITHIN = 120.0
_COMPLAINTS = r"Traceback|Warning|never awaited|batchq: unexpected"
PGBOUNCER = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin")
# Starts batchq with shorter waits than people want, so that a test does not last as long as they do, but lets it take
# its time to open the queue: on a machine that is busy, it would not get that far.
QUICK = """
import sys
from batchq.database import postgres
from batchq.database.postgres import engine, listening, silence
open_at_leisure = postgres.PostgresDatabase.prepare
async def open_and_hurry(database, **options):
    await open_at_leisure(database, **options)
    silence.SILENCE_SECONDS, engine.CONNECT_SECONDS = 1.0, 2
    listening.CHECK_SECONDS, listening.POLL_SECONDS = 1.0, {poll}
postgres.PostgresDatabase.prepare = open_and_hurry
from batchq.cli import main
main()
"""
# What was cut in the middle of a transaction keeps its locks on the server until this ends it: else after 30 s.
FORGOTTEN_SOON = "?options=-cidle_in_transaction_session_timeout%3D1s"


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """A server of this module's own, which syncs like a real one, since it is stopped like a real one."""
    with postgres_server(durable=True) as started:
        # No superuser: those are let in whatever the limit of connections says.
        started.execute("CREATE ROLE plain LOGIN; CREATE ROLE locked LOGIN PASSWORD 'right'")
        rules = started.data / "pg_hba.conf"
        rules.write_text("host all locked 127.0.0.1/32 scram-sha-256\n" + rules.read_text())
        started.execute("SELECT pg_reload_conf()")
        yield started


@dataclass
class Scene:
    """A queue on the server, a provider, and the processes that stand between them."""

    server: PostgresServer
    database: str
    place: Bench
    provider: Provider

    def url(self, *, driver: str = "psycopg", port: int | None = None, query: str = "") -> str:
        return f"postgresql+{driver}://plain@127.0.0.1:{port or self.server.port}/{self.database}{query}"

    def enqueue(self, count: int, name: str = "prompts", url: str | None = None) -> None:
        """Enqueue prompts that are not like those of any other batch, by the library: that starts no process."""

        async def add() -> None:
            async with open_queue(url or self.url()) as queue:
                await queue.enqueue([f"{name} {number}" for number in range(count)], batch=name, model="m")

        asyncio.run(add())

    def worker(self, *options: str, url: str | None = None, concurrency: int = 8) -> subprocess.Popen:
        return self.place.start("worker", *self._flags(concurrency, url), *options)

    def quick_worker(self, *options: str, url: str, concurrency: int = 8, poll: float = 1.0) -> subprocess.Popen:
        """A worker with shorter waits."""
        command = [sys.executable, "-c", QUICK.format(poll=poll), "worker", *self._flags(concurrency, url), *options]
        errors = (self.place.directory / f"{len(self.place.started)}.err").open("w")
        with errors:
            process = subprocess.Popen(
                command, cwd=self.place.directory, env=self.place.environment, text=True, stderr=errors
            )
        self.place.started.append(process)
        return process

    def _flags(self, concurrency: int, url: str | None) -> list[str]:
        return ["--base-url", self.provider.base_url, "-c", str(concurrency), *(["--db", url] if url else [])]

    def ask(self, sql: str) -> list[tuple]:
        return self.server.execute(sql, self.database)

    def count(self, state: str) -> int:
        return self.ask(f"SELECT count(*) FROM jobs WHERE state = '{state}'")[0][0]

    def calls(self) -> int:
        return self.provider.ledger()["calls"]

    def kill_backends(self) -> int:
        """End the connections of all others to the database; return how many there were."""
        return self.ask(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )[0][0]

    def log(self, process: subprocess.Popen) -> list[dict]:
        return [json.loads(line) for line in self.place.errors(process).splitlines() if line.startswith("{")]

    def events(self, process: subprocess.Popen) -> Counter:
        return Counter(line["event"] for line in self.log(process))

    def finish(self, jobs: int, deadline: float = END_WITHIN) -> None:
        """Wait for the end: each job was asked once, was charged one attempt, and is done."""
        wait_for(lambda: self.count("done") == jobs, f"{jobs} jobs done", deadline)
        assert self.ask("SELECT state, attempts, count(*) FROM jobs GROUP BY 1, 2") == [("done", 1, jobs)]
        assert self.ask("SELECT outcome, charged, late, count(*) FROM attempts GROUP BY 1, 2, 3") == [
            ("succeeded", True, False, jobs)
        ]
        ledger = self.provider.ledger(prompts=True)
        assert (ledger["calls"], len(ledger["prompts"]), ledger["cancelled"]) == (jobs, jobs, 0)

    def stop(self, *processes: subprocess.Popen) -> None:
        """Stop workers: each ends well, and has complained of nothing unexpected."""
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            said = self.place.errors(process)
            assert process.wait(30) == 0, said
            assert not re.search(_COMPLAINTS, said), said


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with running_provider(latency=0.2) as running:
        yield running


@pytest.fixture
def scene(server, provider, tmp_path) -> Iterator[Scene]:
    name = f"outage_{uuid.uuid4().hex}"
    server.create_database(name)
    server.execute(f"ALTER DATABASE {name} OWNER TO plain")
    provider.reset()
    with bench(tmp_path) as place:
        made = Scene(server, name, place, provider)
        place.environment["BATCHQ_DB"] = made.url()
        yield made
    if not server.is_running():
        server.start()
    server.execute("ALTER ROLE plain CONNECTION LIMIT -1")
    server.drop_database(name)


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_server_that_crashes_and_comes_back_loses_nothing_and_doubles_nothing(scene, driver):
    jobs, slots, url = 160, 8, scene.url(driver=driver)
    scene.enqueue(jobs, url=url)
    workers = [scene.worker(url=url, concurrency=slots) for _ in range(2)]
    wait_for(lambda: scene.count("done") >= 40, "the first answers")
    scene.server.stop("immediate")
    stopped = time.monotonic()
    before = scene.calls()
    time.sleep(1.0)
    during = scene.calls()
    time.sleep(1.0)

    assert during - before <= 2 * slots  # what was claimed by then
    ledger = scene.provider.ledger()
    assert (ledger["calls"], ledger["in_flight"]) == (during, 0)
    scene.server.start()
    done = scene.count("done")
    wait_for(lambda: scene.count("done") >= done + 2 * slots, "more answers", BACK_WITHIN)
    assert time.monotonic() - stopped < BACK_WITHIN

    scene.finish(jobs)
    for worker in workers:
        told = [line for line in scene.log(worker) if line["event"] == "database.unavailable"]
        assert 1 <= len(told) <= 10, told
        assert scene.events(worker)["database.back"] == 1
    scene.stop(*workers)
    assert len(scene.place.results("prompts", "--db", url)) == jobs


def test_backends_that_are_killed_twice_a_second_cost_nothing(scene):
    jobs, url = 160, scene.url()
    scene.enqueue(jobs)
    workers = [scene.worker(url=url) for _ in range(2)]
    wait_for(lambda: scene.count("done") >= 16, "the first answers")
    killed = 0
    for _ in range(6):
        killed += scene.kill_backends()
        time.sleep(0.5)
    assert killed >= 6
    scene.finish(jobs)
    scene.stop(*workers)


@pytest.mark.parametrize("driver", DRIVERS)
def test_an_enqueue_whose_backends_are_killed_is_complete_at_the_latest_when_run_again(scene, driver):
    rows = 20_000
    arguments = ["enqueue", str(scene.place.write_prompts(rows)), "--model", "m", "--db", scene.url(driver=driver)]
    enqueue = scene.place.start(*arguments)
    wait_for(lambda: _rows(scene) > 0 or enqueue.poll() is not None, "the first rows")
    while enqueue.poll() is None:
        scene.kill_backends()
        time.sleep(random.uniform(0.05, 0.3))
    assert enqueue.returncode in {0, 1}, scene.place.errors(enqueue)
    if enqueue.returncode:
        assert "whether the last change was stored is unknown" in scene.place.errors(enqueue)
        again = scene.place.run(*arguments)
        assert again.returncode == 0, again.stderr
    assert scene.ask("SELECT count(*), count(DISTINCT position), max(position) FROM jobs") == [(rows, rows, rows - 1)]
    assert scene.ask("SELECT size, sealed_at IS NOT NULL FROM batches") == [(rows, True)]


def _rows(scene: Scene) -> int:
    with suppress(psycopg.Error):  # no table yet
        return scene.ask("SELECT count(*) FROM jobs")[0][0]
    return 0


def test_connections_taken_by_others_are_waited_for_by_those_who_start_and_those_who_work(scene):
    jobs = 160
    scene.enqueue(jobs)
    first = scene.worker()
    wait_for(lambda: scene.count("done") >= 16, "the first answers")
    scene.server.execute("ALTER ROLE plain CONNECTION LIMIT 0")
    scene.kill_backends()
    second = scene.worker()
    wait_for(lambda: scene.events(first)["database.unavailable"], "word of it")
    wait_for(lambda: scene.provider.ledger()["in_flight"] == 0, "the calls in flight")
    calls = scene.calls()
    time.sleep(1.0)
    assert scene.calls() == calls
    assert second.poll() is None
    scene.server.execute("ALTER ROLE plain CONNECTION LIMIT -1")
    scene.finish(jobs)
    wait_for(lambda: scene.events(second)["worker.started"], "the second worker")
    scene.stop(first, second)


def test_a_connection_that_is_half_open_is_noticed_either_way(scene):
    jobs = 120
    scene.enqueue(jobs)
    with tcp_proxy(scene.server.port) as proxy:
        worker = scene.quick_worker(url=scene.url(port=proxy.port, query=FORGOTTEN_SOON), concurrency=16)
        wait_for(lambda: scene.count("done") >= 16, "the first answers")
        for ways in (("up",), ("down",), ("up", "down")):
            proxy.go_silent(*ways)
            done = scene.count("done")
            # Beyond what was in flight; it takes a second, and a moment.
            more = min(done + 17, jobs)
            wait_for(lambda more=more: scene.count("done") >= more, f"answers in spite of {ways}", BACK_WITHIN)
        proxy.delay = 0.005
        scene.finish(jobs)
        scene.stop(worker)


def test_half_open_connections_are_noticed_within_half_a_minute():
    assert silence.SILENCE_SECONDS <= 30
    assert listening.CHECK_SECONDS + silence.SILENCE_SECONDS <= 60


@pytest.mark.parametrize("change", ["claimed", "settled"])
def test_a_commit_of_which_no_word_came_back_is_neither_lost_nor_done_twice(scene, change):
    jobs, state = 48, {"claimed": "inflight", "settled": "done"}[change]
    scene.enqueue(jobs)
    # The next commit of such a change takes a moment, in which the connection breaks.
    scene.ask(f"""
        CREATE SEQUENCE slow; GRANT ALL ON SEQUENCE slow TO plain;
        CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN IF nextval('slow') = 1 THEN PERFORM pg_sleep(0.4); END IF; RETURN NULL; END $$;
        CREATE CONSTRAINT TRIGGER slow AFTER UPDATE ON jobs DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW WHEN (NEW.state = '{state}' AND OLD.state <> '{state}') EXECUTE FUNCTION slow()
    """)
    with tcp_proxy(scene.server.port) as proxy:
        worker = scene.quick_worker(url=scene.url(port=proxy.port, query=FORGOTTEN_SOON))
        sleeping = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"
        wait_for(lambda: scene.ask(sleeping), "a commit")
        proxy.reset()
        wait_for(lambda: scene.events(worker)["database.unavailable"], "word of it")
        scene.finish(jobs)
        scene.stop(worker)


@pytest.mark.parametrize("code", ["40001", "40P01"])
def test_a_transaction_that_lost_to_another_is_repeated_whole(scene, code):
    jobs, times = 40, 30
    scene.enqueue(jobs)
    scene.ask(f"""
        CREATE SEQUENCE refused; GRANT ALL ON SEQUENCE refused TO plain;
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN IF nextval('refused') <= {times} THEN RAISE 'not now' USING ERRCODE = '{code}'; END IF; RETURN NULL; END $$;
        CREATE TRIGGER refuse AFTER UPDATE ON jobs FOR EACH STATEMENT EXECUTE FUNCTION refuse()
    """)
    worker = scene.worker(url=scene.url())
    scene.finish(jobs)
    assert scene.ask("SELECT last_value FROM refused")[0][0] > times
    scene.stop(worker)


def test_a_deadlock_with_another_program_is_repeated(scene):
    jobs = 40
    scene.server.execute(f"ALTER DATABASE {scene.database} SET deadlock_timeout = '100ms'")
    scene.enqueue(jobs)
    worker = scene.worker()
    with scene.server.connect(scene.database) as other, scene.server.connect(scene.database) as third:
        third.execute("SET deadlock_timeout = '10s'")
        other.execute("SET deadlock_timeout = '10s'")
        for _ in range(20):
            for session in (other, third):
                with suppress(psycopg.errors.DeadlockDetected), session.transaction():
                    # The other way round than batchq does.
                    session.execute("SELECT id FROM jobs ORDER BY id DESC FOR UPDATE")
                    session.execute("SELECT id FROM batches FOR UPDATE")
            time.sleep(0.05)
    scene.finish(jobs)
    scene.stop(worker)


def test_a_standby_that_only_reads_is_waited_out(scene):
    jobs = 120
    scene.enqueue(jobs)
    worker = scene.worker()
    wait_for(lambda: scene.count("done") >= 8, "the first answers")
    scene.server.execute(f"ALTER DATABASE {scene.database} SET default_transaction_read_only = on")
    scene.kill_backends()
    wait_for(lambda: "read-only" in scene.place.errors(worker), "word of it")
    scene.server.execute(f"ALTER DATABASE {scene.database} RESET default_transaction_read_only")
    scene.finish(jobs)
    scene.stop(worker)


def test_a_worker_that_is_frozen_in_a_transaction_does_not_hold_up_the_others_for_long(scene):
    jobs = 80
    scene.enqueue(jobs)
    scene.ask("""
        CREATE SEQUENCE slow; GRANT ALL ON SEQUENCE slow TO plain;
        CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN IF nextval('slow') = 1 THEN PERFORM pg_sleep(0.5); END IF; RETURN NULL; END $$;
        CREATE TRIGGER slow AFTER UPDATE ON jobs FOR EACH STATEMENT EXECUTE FUNCTION slow()
    """)
    # What a URL says itself counts; else it is 30 s.
    query = "?options=-c%20idle_in_transaction_session_timeout%3D2s"
    frozen = scene.worker(url=scene.url(query=query))
    state = "FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'batchq'"
    wait_for(lambda: scene.ask(f"SELECT 1 {state} AND wait_event = 'PgSleep'"), "the middle of an exchange")
    frozen.send_signal(signal.SIGSTOP)
    wait_for(lambda: scene.ask(f"SELECT 1 {state} AND state = 'idle in transaction'"), "its transaction left open")
    other = scene.worker()
    wait_for(lambda: scene.count("done") == jobs, "all jobs done by the other", BACK_WITHIN)
    frozen.send_signal(signal.SIGCONT)
    scene.finish(jobs)
    scene.stop(other, frozen)


@pytest.mark.anyio
async def test_sessions_of_batchq_leave_no_transaction_open_for_long(scene):
    asked = "SELECT current_setting('idle_in_transaction_session_timeout')"
    for driver in DRIVERS:
        async with await open_store(scene.url(driver=driver), create=True) as store:
            found = await store._database.read(lambda tx: tx.connection.exec_driver_sql(asked).scalar_one())
            assert found == "30s"
            assert not store._database._pooled


@pytest.mark.anyio
async def test_who_watches_a_batch_is_told_that_the_server_is_away_and_goes_on(scene):
    async with await open_store(scene.url(), create=True) as store:
        await store.open_batch(NewBatch("b", "echo"))
        async with aclosing(watch(store, "b")) as watched:
            await anext(watched)
            scene.server.execute("ALTER ROLE plain CONNECTION LIMIT 0")
            scene.kill_backends()
            for _ in range(2):
                progress = await asyncio.wait_for(anext(watched), 10)
                assert progress.away == 'too many connections for role "plain"'
            scene.server.execute("ALTER ROLE plain CONNECTION LIMIT -1")
            while progress.away:
                progress = await asyncio.wait_for(anext(watched), BACK_WITHIN)
            assert progress.batch.name == "b"


# Waking up.


def test_an_idle_worker_hears_of_new_work_also_after_its_listening_connection_was_lost(scene):
    scene.enqueue(1, "first")
    with tcp_proxy(scene.server.port) as proxy:
        worker = scene.quick_worker(url=scene.url(port=proxy.port, query=FORGOTTEN_SOON), poll=60.0)
        wait_for(lambda: scene.count("done") == 1, "the first job")
        sessions = "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
        for turn, lose in enumerate((lambda: None, scene.kill_backends, lambda: proxy.go_silent("up", "down")), 2):
            known = scene.ask(sessions)
            lose()
            if turn > 2:
                listens = f"{sessions} AND query LIKE 'LISTEN%'"
                wait_for(lambda known=known, listens=listens: set(scene.ask(listens)) - set(known), "a new listener")
            scene.enqueue(1, f"number{turn}")
            wait_for(lambda turn=turn: scene.count("done") == turn, "the next job")
        waits = scene.ask("SELECT claimed_at - created_at FROM jobs WHERE id > 1 ORDER BY id")
        # By polling it would take a minute, or the five seconds of a beat.
        assert sorted(wait for (wait,) in waits)[1] < 500, waits
        scene.stop(worker)


@pytest.mark.anyio
async def test_notices_of_a_burst_are_few_and_the_last_one_comes_behind_the_last_change(scene):
    writes = 200
    async with await open_store(scene.url(), create=True) as store:
        batch = await store.open_batch(NewBatch("b", "echo"))
        with scene.server.connect(scene.database) as ears:
            ears.execute("LISTEN batchq")
            began = time.monotonic()
            for _ in range(writes):
                await store.keep_alive(batch)
            took = time.monotonic() - began
            last = scene.ask("SELECT enqueue_until FROM batches")
            await asyncio.sleep(0.3)
            heard = list(ears.notifies(timeout=0.2))
    assert 1 <= len(heard) <= took / 0.02 + 3
    assert last


@pytest.mark.anyio
async def test_a_watcher_is_told_in_a_moment_of_what_another_process_has_written(scene):
    async with (
        await open_store(scene.url(), create=True) as here,
        await open_store(scene.url()) as there,
    ):
        batch = await there.open_batch(NewBatch("b", "echo"))
        watcher = here.watch()
        await asyncio.sleep(0.5)
        waits = []
        for _ in range(5):
            watcher.changed()
            await there.keep_alive(batch)
            began = time.monotonic()
            while not watcher.changed():
                await asyncio.sleep(0.005)
            waits.append(time.monotonic() - began)
        watcher.close()
    assert sorted(waits)[2] < 0.5, waits  # a poll would take a second


# Leaving.


def test_a_worker_that_is_interrupted_twice_ends_soon_also_where_the_server_says_nothing(scene):
    scene.enqueue(40)
    with tcp_proxy(scene.server.port) as proxy:
        worker = scene.worker(url=scene.url(port=proxy.port))
        wait_for(lambda: scene.count("done") >= 8, "the first answers")
        proxy.silent_for_new = frozenset({"up", "down"})
        proxy.go_silent("up", "down")
        time.sleep(0.5)
        worker.send_signal(signal.SIGINT)
        time.sleep(0.2)
        worker.send_signal(signal.SIGINT)
        began = time.monotonic()
        assert worker.wait(40) == 130, scene.place.errors(worker)
        assert time.monotonic() - began < 15
    said = scene.place.errors(worker)
    assert not re.search(_COMPLAINTS, said), said


@pytest.mark.anyio
async def test_a_cancelled_wait_for_a_silent_server_ends_soon_and_leaves_no_task(scene):
    tasks = asyncio.all_tasks()
    with tcp_proxy(scene.server.port) as proxy:
        store = await open_store(scene.url(port=proxy.port), create=True)
        store.watch()
        await asyncio.sleep(0.3)
        proxy.silent_for_new = frozenset({"up", "down"})
        proxy.go_silent("up", "down")
        waiting = [asyncio.create_task(store.batches()) for _ in range(5)]
        await asyncio.sleep(0.2)
        began = time.monotonic()
        for task in waiting:
            task.cancel()
        assert {type(ended) for ended in await asyncio.gather(*waiting, return_exceptions=True)} == {
            asyncio.CancelledError
        }
        await store.close()
        assert time.monotonic() - began < 8
        assert asyncio.all_tasks() == tasks


# Starting.


def test_who_can_not_be_served_is_told_why_in_one_sentence_and_at_once(scene):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = unused.getsockname()[1]
        locked = scene.url().replace("plain@", "locked:wrong@")
        for url, code, reason in (
            (scene.url(port=nobody), 1, "Connection refused"),
            (scene.url(driver="asyncpg", port=nobody), 1, "can't be reached"),
            (scene.url().replace(scene.database, "nonesuch"), 2, "does not exist"),
            (scene.url(driver="asyncpg").replace(scene.database, "nonesuch"), 2, "does not exist"),
            (locked, 78, "password authentication failed"),
            (locked.replace("psycopg", "asyncpg"), 78, "password authentication failed"),
            (scene.url(query="?colour=red"), 78, "take it out of the URL"),
            (scene.url(query="?sslmode=often"), 78, "give it another value in the URL"),
            (scene.url(driver="asyncpg", query="?ssl=often"), 78, "must be one of"),
            (scene.url(query="?sslmode=require"), 78, "SSL was required: to do without it, ask for sslmode=prefer"),
            (
                scene.url(driver="asyncpg", query="?ssl=require"),
                78,
                "rejected SSL upgrade: to do without it, ask for sslmode=prefer",
            ),
        ):
            began = time.monotonic()
            ended = scene.place.run("worker", "--db", url)
            assert ended.returncode == code, ended.stderr
            said = ended.stderr.splitlines()
            assert len(said) == 1, said
            assert reason in said[0], said
            assert "wrong" not in said[0]
            assert time.monotonic() - began < 10


@pytest.mark.parametrize(("driver", "extra"), [("psycopg", "postgres"), ("asyncpg", "asyncpg")])
def test_a_driver_that_is_not_installed_is_a_matter_of_configuration(scene, driver, extra):
    code = f"import sys; sys.modules['{driver}'] = None; from batchq.cli import main; main()"
    command = [sys.executable, "-c", code, "worker", "--db", scene.url(driver=driver)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=scene.place.directory, check=False)
    assert ended.returncode == 78, ended.stderr
    assert f"pip install 'batchq[{extra}]'" in ended.stderr


class _Refused(Exception):
    def __init__(self, text: str, sqlstate: str | None = None) -> None:
        super().__init__(text)
        self.sqlstate = sqlstate


@pytest.mark.parametrize(
    ("text", "code", "meaning"),
    [
        ("connection failed: … FATAL:  sorry, too many clients already", None, refusal.ServerBusy),
        ("connection failed: … FATAL:  remaining connection slots are reserved for …", None, refusal.ServerBusy),
        ('connection failed: … FATAL:  too many connections for role "plain"', None, refusal.ServerBusy),
        ("connection failed: … FATAL:  no more connections allowed (max_client_conn)", None, refusal.ServerBusy),
        ("connection failed: … FATAL:  the database system is starting up", None, refusal.ServerBusy),
        ("sorry, too many clients already", "53300", refusal.ServerBusy),
        ('connection failed: … FATAL:  role "x" does not exist', None, refusal.NotLetIn),
        ("connection failed: … fe_sendauth: no password supplied", None, refusal.NotLetIn),
        ('connection failed: … FATAL:  no pg_hba.conf entry for host "1.2.3.4"', None, refusal.NotLetIn),
        ('connection failed: … FATAL:  database "x" does not exist', None, NoDatabase),
        ("cannot execute UPDATE in a read-only transaction", "25006", DatabaseUnavailable),
        ("canceling statement due to statement timeout", "57014", DatabaseUnavailable),
        ("could not extend file: No space left on device", "53100", DatabaseUnavailable),
        ("terminating connection due to idle-in-transaction timeout", "25P03", DatabaseUnavailable),
        ("invalid byte sequence", "22021", DataRefused),
    ],
)
def test_what_the_server_says_has_a_meaning(text, code, meaning):
    assert type(refusal.translate(DBAPIError("", None, _Refused(text, code)), "db")) is meaning


@pytest.mark.parametrize("code", ["40001", "40P01", "55P03"])
def test_what_may_be_repeated_is_told_by_its_code(code):
    error = DBAPIError("", None, _Refused("", code))
    assert (refusal.is_conflict(error), refusal.is_locked(error)) == (code != "55P03", code == "55P03")


@pytest.mark.anyio
@pytest.mark.parametrize("driver", DRIVERS)
async def test_a_value_that_can_not_be_sent_is_no_outage(scene, driver):
    async with await open_store(scene.url(driver=driver), create=True) as store:
        for value in (2**70, "\0"):
            with pytest.raises(DataRefused):
                await store._database.read(
                    lambda tx, value=value: tx.connection.exec_driver_sql(
                        f"SELECT {'$1' if driver == 'asyncpg' else '%s'}::{'text' if value == chr(0) else 'bigint'}",
                        (value,),
                    )
                )


# Rights.


def allowed_as_in_the_readme(scene: Scene, role: str) -> str:
    """Give a role what the README says that it needs; return the URL by which it comes in."""
    readme = (Path(__file__).resolve().parent.parent / "README.md").read_text()
    grants = re.findall(rf"^(?:GRANT|ALTER DEFAULT) .* TO {role};", readme, re.MULTILINE)
    assert len(grants) >= 2
    for grant in grants:
        scene.ask(grant)
    return scene.url().replace("plain@", f"{role}@")


@pytest.fixture
def roles(scene) -> Iterator[None]:
    scene.server.execute("CREATE ROLE worker LOGIN; CREATE ROLE reader LOGIN")
    yield
    for role in ("worker", "reader"):
        scene.ask(f"DROP OWNED BY {role} CASCADE")
        scene.server.execute(f"DROP ROLE {role}")


@pytest.mark.usefixtures("roles")
def test_a_role_that_may_not_is_told_what_it_lacks_at_once(scene):
    scene.enqueue(1)
    place = scene.place
    url = allowed_as_in_the_readme(scene, "reader")
    prompts = place.write_prompts(3)
    for arguments in (("enqueue", str(prompts), "--batch", "new", "--model", "m"), ("worker", *scene._flags(1, None))):
        began = time.monotonic()
        ended = place.run(*arguments, "--db", url)
        assert time.monotonic() - began < 10
        assert ended.returncode == 78, ended.stderr
        assert re.search(
            r"permission denied for \w+ \w+: its role needs rights on it \(README, One machine or many\)", ended.stderr
        )
    assert place.run("status", "--db", url).returncode == 0
    assert place.run("collect", "prompts", "--no-wait", "--db", url).returncode == 0
    scene.ask("REVOKE USAGE ON SCHEMA public FROM reader, public")
    assert place.run("enqueue", str(prompts), "--model", "m", "--db", url).returncode == 78


@pytest.mark.usefixtures("roles")
def test_a_role_that_may_enqueue_and_work_need_not_own_the_tables_and_ends_when_it_may_no_more(scene):
    scene.enqueue(1)
    url = allowed_as_in_the_readme(scene, "worker")
    scene.enqueue(20, "theirs", url)
    worker = scene.worker(url=url)
    scene.finish(21)
    assert len(scene.place.results("theirs", "--db", url)) == 20
    for arguments in (("status",), ("db", "check"), ("retry", "theirs"), ("purge", "theirs", "--yes")):
        ended = scene.place.run(*arguments, "--db", url)
        assert ended.returncode == 0, ended.stderr
    scene.ask("REVOKE ALL ON jobs, runners FROM worker")
    assert worker.wait(30) == 78, scene.place.errors(worker)
    assert "its role needs rights on it" in scene.place.errors(worker).splitlines()[-1]
    assert not re.search(_COMPLAINTS, scene.place.errors(worker))


def test_a_role_without_a_schema_is_told_how_to_get_one(scene):
    ended = scene.place.run("worker", "--db", scene.url(query="?options=-csearch_path%3Dnonesuch"))
    assert ended.returncode == 78, ended.stderr
    assert "no schema has been selected to create in: give its role a search_path" in ended.stderr


# Poolers.


def test_a_pooler_is_known_by_what_it_refuses_and_by_statements_that_are_gone():
    for text in ("unsupported startup parameter: options", "unsupported startup parameter in options: lock_timeout"):
        assert refusal.is_unsupported_option(DBAPIError("", None, _Refused(text)))
    for code in ("26000", "42P05"):
        assert refusal.is_prepared_elsewhere(DBAPIError("", None, _Refused("", code)))
    assert not refusal.is_unsupported_option(DBAPIError("", None, _Refused("sorry, too many clients already")))
    assert not refusal.is_prepared_elsewhere(DBAPIError("", None, _Refused("", "40001")))


@contextmanager
def pgbouncer(scene: Scene, *settings: str) -> Iterator[int]:
    """The port of a pgbouncer that hands out connections to the scene's server for a transaction each."""
    account = next((pwd.getpwnam(name) for name in ("postgres", "nobody") if os.geteuid() == 0 and _exists(name)), None)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    file = Path(f"/tmp/batchq-pgbouncer-{uuid.uuid4().hex}.ini")
    lines = (
        "[databases]", f"* = host=127.0.0.1 port={scene.server.port} user=plain",
        "[pgbouncer]", "listen_addr = 127.0.0.1", f"listen_port = {port}", "unix_socket_dir =", "auth_type = any",
        "pool_mode = transaction", "default_pool_size = 4", *settings,
    )  # fmt: skip
    file.write_text("\n".join(lines) + "\n")
    file.chmod(0o644)
    process = subprocess.Popen(
        [PGBOUNCER, "-q", str(file)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        user=account and account.pw_uid,
        group=account and account.pw_gid,
        extra_groups=[] if account else None,
        cwd="/",
    )
    try:
        wait_for(lambda: _answers(port), "pgbouncer", 20)
        yield port
    finally:
        process.terminate()
        process.wait(20)
        file.unlink()


def _exists(name: str) -> bool:
    with suppress(KeyError):
        return bool(pwd.getpwnam(name))
    return False


def _answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@pytest.mark.skipif(PGBOUNCER is None, reason="pgbouncer is not installed on this machine: it is a program of its own")
@pytest.mark.parametrize("settings", [(), ("ignore_startup_parameters = options,idle_in_transaction_session_timeout,lock_timeout,statement_timeout",)], ids=["refusing", "ignoring"])  # fmt: skip
@pytest.mark.parametrize("driver", DRIVERS)
def test_everything_goes_through_a_pooler_that_hands_out_transactions(scene, driver, settings):
    jobs = 64
    with pgbouncer(scene, *settings) as port:
        url = scene.url(driver=driver, port=port)
        scene.enqueue(jobs, url=url)
        workers = [scene.worker(url=url) for _ in range(2)]
        scene.finish(jobs)
        assert len(scene.place.results("prompts", "--db", url)) == jobs
        scene.enqueue(1, "more", url)
        scene.finish(jobs + 1)
        for worker in workers:
            assert not scene.events(worker)["database.unavailable"]
        waited = scene.ask("SELECT claimed_at - created_at FROM jobs ORDER BY id DESC LIMIT 1")[0][0]
        assert waited < 3_500, waited  # a poll, each second
        scene.stop(*workers)
