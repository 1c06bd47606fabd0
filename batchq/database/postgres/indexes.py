"""Makes an index that is not in the schema, which several processes may want at the same moment: one of them makes it.

Nobody waits inside of the server for the one who does: the snapshot of such a wait would hold up CONCURRENTLY, which
waits for all older ones.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from sqlalchemy import Connection, text

from batchq.database.contract import OnLocked
from batchq.database.postgres.driver import transaction
from batchq.database.postgres.engine import SESSION

LOCK = 1650681970  # "bchr"
LONG_SECONDS = 5.0
_POLL_SECONDS = 0.25

_FOUND = text(
    "SELECT indexrelid::regclass::text AS name, indisvalid FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid"
    " WHERE indrelid = to_regclass(:table) AND relname = :name"
)
_UNLIMITED = ("statement_timeout", "lock_timeout")


@dataclass(frozen=True, slots=True)
class Index:
    """An index by its DDL, a `CREATE INDEX IF NOT EXISTS name ON table …`."""

    ddl: str

    def is_there(self, connection: Connection) -> bool:
        """Whether it is there, and whole."""
        found = self._found(connection)
        return found is not None and found[1]

    def make(self, connection: Connection, *, pooled: bool) -> bool:
        """Make it, anew if it was left half-made; return False, and do nothing, while somebody else is at it."""
        return self._make_in_transaction(connection) if pooled else self._make_beside_others(connection)

    def _make_beside_others(self, connection: Connection) -> bool:
        """Make it outside of any transaction, so that others go on writing, under a lock of the session."""
        if not _ask(connection, f"SELECT pg_try_advisory_lock({LOCK})"):
            return False
        try:
            if not self.is_there(connection):
                for name in _UNLIMITED:
                    connection.exec_driver_sql(f"SET {name} = 0")
                self._drop(connection, "CONCURRENTLY")
                connection.exec_driver_sql(self.ddl.replace("CREATE INDEX", "CREATE INDEX CONCURRENTLY", 1))
                for name in _UNLIMITED:
                    connection.exec_driver_sql(f"RESET {name}")
            connection.exec_driver_sql(f"SELECT pg_advisory_unlock({LOCK})")
        except BaseException:
            connection.invalidate()  # with its lock, and with what was set
            raise
        return True

    def _make_in_transaction(self, connection: Connection) -> bool:
        """Make it while nobody writes: behind a pooler, nothing of a session lasts, neither lock nor setting."""
        with transaction(connection):
            connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
            # Whoever writes waits behind us as long as we wait for the table.
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{SESSION['lock_timeout']}'")
            if not _ask(connection, f"SELECT pg_try_advisory_xact_lock({LOCK})"):
                return False
            if not self.is_there(connection):
                self._drop(connection)
                connection.exec_driver_sql(self.ddl)
        return True

    def _drop(self, connection: Connection, how: str = "") -> None:
        """Drop what somebody left half-made."""
        found = self._found(connection)
        if found is not None:
            connection.exec_driver_sql(f"DROP INDEX {how} IF EXISTS {found[0]}")

    def _found(self, connection: Connection) -> tuple[str, bool] | None:
        """Return its name with its schema, and whether it is whole; None if there is none."""
        parts = re.search(r"(\w+) ON (\w+)", self.ddl)
        assert parts is not None  # noqa: S101
        row = connection.execute(_FOUND, {"name": parts[1], "table": parts[2]}).one_or_none()
        return None if row is None else (row[0], row[1])


async def make_or_await(make: Callable[[], Awaitable[bool]], on_locked: OnLocked | None, location: str) -> None:
    """Call `make` until it says that the index is there, while somebody else may be making it; tell of a long wait."""
    began = time.monotonic()
    while not await make():
        if on_locked is not None and time.monotonic() - began >= LONG_SECONDS:
            on_locked(f"another process makes an index in {location}; waiting for it")
            on_locked = None
        await asyncio.sleep(_POLL_SECONDS)


def _ask(connection: Connection, question: str) -> bool:
    return bool(connection.exec_driver_sql(question).scalar_one())
