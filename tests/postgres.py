"""One PostgreSQL server for a test session, shared by all xdist workers and started when a test first asks for it."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent / "scripts"))

from postgres_server import HOST, Postgres, PostgresServer, PostgresUnavailable

ASK_SECONDS = 120
# Taken now: tests that want a clean environment take every BATCHQ_ variable out of it.
NAMED_URL = os.environ.get("BATCHQ_TEST_PG_URL")


class SharedServer:
    """Lives in the process that controls the session; workers learn the server's URL at its door, a local port."""

    def __init__(self) -> None:
        self._server = PostgresServer()
        self._starting = threading.Lock()
        self._door: socket.socket | None = None
        self._doorkeeper: threading.Thread | None = None
        self._closing = False

    def had(self) -> Postgres:
        """The server, started if it was not."""
        with self._starting:
            if not self._server.is_running():
                self._server.start()
            return self._server

    def door(self) -> int:
        """The port at which `ask_at` gets the server."""
        if self._door is None:
            self._door = socket.create_server((HOST, 0))
            self._doorkeeper = threading.Thread(target=self._keep, args=(self._door,), daemon=True)
            self._doorkeeper.start()
        return self._door.getsockname()[1]

    def close(self) -> None:
        if self._door is not None and self._doorkeeper is not None:
            self._closing = True
            # Closing a socket does not wake the thread that waits at it; a caller does.
            socket.create_connection(self._door.getsockname()).close()
            self._doorkeeper.join()
            self._door.close()
        self._server.close()

    def _keep(self, door: socket.socket) -> None:
        while True:
            caller, _ = door.accept()
            # A worker may have died while it waited.
            with caller, suppress(OSError):
                if self._closing:
                    return
                caller.sendall(json.dumps(self._answer()).encode())

    def _answer(self) -> dict[str, str]:
        try:
            return {"url": self.had().url()}
        except Exception as error:  # noqa: BLE001 - whatever it is, the test that asked shall say it
            return {"error": str(error)}


def ask_at(door: int) -> Postgres:
    """The server of the process that keeps this door."""
    with socket.create_connection((HOST, door), timeout=ASK_SECONDS) as caller, caller.makefile() as answers:
        answer = json.load(answers)
    if "error" in answer:
        raise PostgresUnavailable(answer["error"])
    return Postgres(answer["url"])


def named_by_environment() -> Postgres | None:
    """The server of BATCHQ_TEST_PG_URL, if it is set and answers."""
    if not NAMED_URL:
        return None
    server = Postgres(NAMED_URL)
    try:
        server.execute("SELECT 1")
    except Exception as error:
        raise PostgresUnavailable(f"the server of BATCHQ_TEST_PG_URL does not answer: {error}") from error
    return server


@contextmanager
def fresh_database(server: Postgres, over, template: str | None = None) -> Iterator[str]:
    """The URL of an empty database, or of a copy, which is dropped afterwards, whoever is still connected."""
    name = f"batchq_test_{uuid.uuid4().hex}"
    url = server.create_database(name, template, over=over)
    try:
        yield url
    finally:
        server.drop_database(name, over=over)


def plain(url: str) -> str:
    """The URL as psycopg itself takes it."""
    return url.replace("+psycopg", "")
