"""The server that tests and benchmarks start for themselves (scripts/postgres_server.py), and the fixtures over it."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from postgres import SharedServer, ask_at
from postgres_server import Postgres, PostgresServer, PostgresUnavailable, _free_port, bundled_binaries, postgres_server

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "postgres_server.py"


def until(true, seconds=10):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def answers(server):
    try:
        return server.execute("SELECT 1") == [(1,)]
    except psycopg.OperationalError:
        return False


def test_a_server_comes_back_with_its_data_after_an_immediate_stop_and_leaves_nothing_when_closed():
    with postgres_server(settings={"work_mem": "5MB", "synchronous_commit": "on"}) as server:
        server.create_database("a b")
        server.execute("CREATE TABLE kept (id int); INSERT INTO kept VALUES (7)", "a b")
        url, pid, data = server.url("a b"), server.pid, server.data
        server.stop("immediate")
        assert not server.is_running()
        assert not answers(server)

        server.start()
        assert server.is_running()
        assert (server.url("a b"), server.pid == pid) == (url, False)
        assert server.execute("SELECT id FROM kept", "a b") == [(7,)]
        assert server.execute("SELECT current_setting('work_mem')") == [("5MB",)]
        assert server.execute("SELECT current_setting('fsync')") == [("off",)]
        server.drop_database("a b")
        server.drop_database("a b")
    assert not server.is_running()
    assert not answers(server)
    assert not data.exists()


def test_a_durable_server_has_the_settings_and_the_place_of_a_real_one():
    server = PostgresServer(durable=True)
    assert not {"fsync", "full_page_writes", "synchronous_commit"} & set(server._settings)
    assert server._place_of_data() == server._temporary()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def test_a_server_is_gone_soon_after_the_process_that_started_it(number):
    with subprocess.Popen([sys.executable, SCRIPT], stdout=subprocess.PIPE, text=True) as starter:
        server = Postgres(starter.stdout.readline().strip())
        data = Path(server.execute("SHOW data_directory")[0][0])
        starter.send_signal(number)
    until(lambda: not data.exists())
    assert not answers(server)


def test_servers_side_by_side_have_ports_of_their_own_and_run_the_programs_that_a_package_brings(monkeypatch, postgres):
    bundled, free = bundled_binaries(), _free_port()
    assert bundled
    ports = iter([postgres.port, free])
    monkeypatch.setattr("postgres_server._free_port", lambda: next(ports))
    with postgres_server(binaries=bundled) as server:
        assert server.port == free
        server.create_database("only_here")
        assert postgres.execute("SELECT 1 FROM pg_database WHERE datname = 'only_here'") == []
        assert server.execute("SELECT current_setting('server_encoding'), 'ä' < 'b'") == [("UTF8", False)]


def test_programs_out_of_reach_of_the_servers_account_are_copied(monkeypatch):
    monkeypatch.setattr(PostgresServer, "_can_run", lambda *_: False)
    with postgres_server(binaries=bundled_binaries()) as server:
        assert answers(server)


def test_a_server_that_cannot_start_says_why_and_leaves_nothing(monkeypatch):
    made = []
    initialise = PostgresServer._initialise
    monkeypatch.setattr(PostgresServer, "_initialise", lambda self: (initialise(self), made.append(self.data)))
    with pytest.raises(PostgresUnavailable, match="no_such_setting"), postgres_server(settings={"no_such_setting": ""}):
        pass
    assert made
    assert not made[0].exists()


def test_without_postgres_the_tests_that_need_it_fail_with_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("BATCHQ_TEST_PG_BIN", str(tmp_path))
    shared = SharedServer()
    try:
        with pytest.raises(PostgresUnavailable, match="has not all of initdb, pg_ctl, postgres"):
            ask_at(shared.door())
    finally:
        shared.close()


@pytest.mark.parametrize("_time", range(2))
def test_every_test_has_an_empty_database(postgres_url, _time):
    with psycopg.connect(postgres_url.replace("+psycopg", "")) as connection:
        assert connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone() == (0,)
        connection.execute("CREATE TABLE jobs (id int)")


def test_an_empty_location_is_a_new_file_or_an_empty_database(empty_location):
    if empty_location.startswith("postgresql+psycopg://"):
        connection = psycopg.connect(empty_location.replace("+psycopg", ""))
    else:
        connection = sqlite3.connect(empty_location)
    with closing(connection):
        connection.execute("CREATE TABLE jobs (id int)")
