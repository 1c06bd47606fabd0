"""`batchq doctor` on a PostgreSQL server: who holds it back, what is switched off, and what is used up."""

import socket
import time
from dataclasses import replace

import pytest
from doctors import look
from processes import wait_for
from raw_connection import connect

from batchq.database.postgres.facts import read_server
from batchq.doctor import server
from batchq.store.examining import open_to_look

pytestmark = pytest.mark.anyio


async def test_who_has_a_transaction_open_for_long(postgres_queue, monkeypatch):
    monkeypatch.setattr(server, "LONG_SECONDS", 0)
    with connect(postgres_queue) as held:
        held.execute("SET application_name = 'a report'")
        held.execute("BEGIN")
        (row,) = held.execute("SELECT pg_backend_pid() AS pid FROM batches RIGHT JOIN (SELECT 1) AS one ON TRUE")
        time.sleep(0.01)
        told = (await look(postgres_queue)).of("transactions", "warning")
        assert "a report of " in told
        assert f"(pid {row['pid']}, idle in transaction) has had a transaction open for 0 min" in told
        assert f"SELECT pg_terminate_backend({row['pid']})" in told
        monkeypatch.setattr(server, "LONG_SECONDS", 300)
        assert (await look(postgres_queue)).of("transactions", "ok") == "none has been open for 5 min -> "


async def test_a_table_that_autovacuum_leaves_alone_and_its_dead_rows(postgres_queue, monkeypatch):
    monkeypatch.setattr(server, "_DEAD_ROWS", 10)
    with connect(postgres_queue) as connection:
        connection.execute("ALTER TABLE meta SET (autovacuum_enabled = false)")
        connection.execute("INSERT INTO meta (name, value) SELECT 'x' || i, 'x' FROM generate_series(1, 100) AS i")
        connection.execute("DELETE FROM meta WHERE value = 'x'")

    def counted():
        with connect(postgres_queue) as connection:
            (row,) = connection.execute("SELECT n_dead_tup AS dead FROM pg_stat_user_tables WHERE relname = 'meta'")
        return row["dead"] >= 100

    wait_for(counted, "the server's count of dead rows")
    found = (await look(postgres_queue)).of("vacuum", "warning")
    assert "autovacuum is off for the table meta -> ALTER TABLE meta RESET (autovacuum_enabled)" in found
    assert "100 rows of meta are dead" in found
    assert "VACUUM ANALYZE meta" in found


@pytest.mark.parametrize(
    ("setting", "level", "told"),
    [
        ("synchronous_commit = off", "warning", "a crash may lose the last answers"),
        ("default_transaction_read_only = on", "error", "transactions only read by default"),
    ],
)
async def test_settings_of_a_database_that_harm_a_queue(postgres_queue, setting, level, told):
    name = postgres_queue.rpartition("/")[2]
    with connect(postgres_queue) as connection:
        connection.execute(f'ALTER DATABASE "{name}" SET {setting}')
    assert told in (await look(postgres_queue)).of("server", level)


async def test_connections_that_are_nearly_used_up(postgres_queue, monkeypatch):
    async with await open_to_look(postgres_queue) as queue:
        facts = await queue.read(read_server)
    assert "connections are in use -> " in (await look(postgres_queue)).of("connections", "ok")
    # Others are connected to the same server, now more and now fewer of them; we are in any case.
    monkeypatch.setattr(server, "_FEW_SLOTS", facts.slots)
    assert "raise max_connections" in (await look(postgres_queue)).of("connections", "warning")


async def test_what_a_server_says_of_itself(postgres_queue):
    async with await open_to_look(postgres_queue) as queue:
        facts = await queue.read(read_server)
        wrong = replace(
            facts, version_number=120_001, standby=True, fsync=False, synchronous_commit="off", autovacuum=False
        )
        found = [*server._judge_version(queue.location, wrong), *server._judge_settings(wrong)]
        told = " ".join(f"{each.what} {each.what_to_do}" for each in found if each.level != "ok")
        well = [*server._judge_version(queue.location, facts)]
    assert {each.level for each in well} == {"ok"}
    for words in ("older than any", "a standby", "fsync is off", "synchronous_commit is off", "autovacuum is off"):
        assert words in told


async def test_a_server_that_is_down():
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    found = await look(f"postgresql://user:secret@127.0.0.1:{port}/queue")
    assert "can't be used right now: Connection refused -> see that it is up" in found.of("database", "error")
    assert "secret" not in repr(found.all)
    assert {"python", "sqlite", "settings"} <= found.names("ok")
