"""What the two databases have in common: transactions, and the wait for others' commits."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

from sqlalchemy import Connection

T = TypeVar("T")
OnLocked = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Transaction:
    """A running transaction: its connection, and the reading of the clock that it uses.

    A body may run more than once: a transaction that lost to another one is rolled back and repeated.
    """

    connection: Connection
    now: int
    # What stands for the database's clock, in tests.
    clock: Callable[[], int] | None = None
    began: float = field(default_factory=time.monotonic)


class Watcher(Protocol):
    """Tells one waiter of commits; each waiter needs its own."""

    # How often to ask: less often is felt as a delay, more often is felt as load.
    poll_seconds: float

    def changed(self) -> bool:
        """Whether somebody may have committed since the last call; costs microseconds."""

    def close(self) -> None:
        """Stop watching."""


class Database(Protocol):
    """A queue's database. Use from one event loop; close it before the loop ends."""

    @property
    def location(self) -> str:
        """What people call it: an absolute path, or a URL without its password."""

    @property
    def file(self) -> Path | None:
        """The file that it is in; None for one on a server."""

    @property
    def rows_per_write(self) -> int:
        """How many rows a transaction should write at most, so that it is soon others' turn."""

    @property
    def upgraded_from(self) -> int | None:
        """The schema version that it had, if it was upgraded when it was opened here."""

    async def read(self, body: Callable[[Transaction], T], *, patience: float | None = None) -> T:
        """Run `body` in a transaction that sees one moment and writes nothing; it must be short.

        A server that is away is waited for, up to `patience` seconds, else for a minute. A file is not away.
        """

    async def write(
        self, body: Callable[[Transaction], T], *, patience: float | None = None, announce: bool = False
    ) -> T:
        """Run `body` in a transaction and commit it, waiting for a lock or server up to `patience` seconds.

        Without `patience` SQLite waits for its lock without end: nobody holds it for long. PostgreSQL then tells of a
        lock that is not free within seconds, and of a server that is away, at once: DatabaseUnavailable, for the
        caller to wait and ask again. `announce` tells waiting runners that there may be work. Raises StoreError.
        """

    async def make_index(self, ddl: str) -> None:
        """Make an index that is not in the schema, unless it is there; others may go on writing if the database can."""

    def watch(self, notice: Callable[[], None] | None = None) -> Watcher:
        """Return what tells one waiter of commits; the caller closes it.

        `notice` is called when others tell of theirs, if this database lets them.
        """

    async def close(self) -> None:
        """Close all connections."""
