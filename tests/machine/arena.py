"""The place where histories happen: one store, its clock, and what its tables hold at the moment."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from raw_connection import RawConnection
from store_driver import Clock, open_queue

T = TypeVar("T")
Row = dict[str, Any]

# Stands before PostgreSQL's own random(), since what a history does must not hang on chance.
REPEATABLE_RANDOM = """
    CREATE SCHEMA repeatable;
    CREATE FUNCTION repeatable.random() RETURNS float8 VOLATILE LANGUAGE sql AS 'SELECT 0.37::float8';
    DO $$ BEGIN
        EXECUTE format('ALTER DATABASE %I SET search_path = repeatable, pg_catalog, public', current_database());
    END $$;
"""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the tables hold: jobs and batches by id, the log by job and token, lanes by name."""

    jobs: dict[int, Row]
    log: dict[tuple[int, int], Row]
    batches: dict[int, Row]
    lanes: dict[str, Row]


class Arena:
    """One store for all histories: each begins by emptying it, which is quicker than opening another."""

    def __init__(self, location: str, raw: RawConnection) -> None:
        self.clock = Clock()
        self.is_sqlite = raw.is_sqlite
        self.steps = 0
        self._loop = asyncio.new_event_loop()
        self._raw = raw
        self._calls = 0
        if not self.is_sqlite:
            raw.execute(REPEATABLE_RANDOM)
        self.store = self.run(open_queue(location, self.clock))
        if self.is_sqlite:
            self.run(self.store._database._writer.call(self._make_quick_and_repeatable))

    def _make_quick_and_repeatable(self, connection) -> None:
        connection.exec_driver_sql("PRAGMA synchronous=OFF")
        connection.connection.driver_connection.create_function("random", 0, lambda: self._random.getrandbits(62))

    def reset(self) -> None:
        self._random = random.Random(0)
        random.seed(0)
        self.clock.now = Clock().now
        # Time that has passed, however the clock was set.
        self.elapsed = 0
        # The latest that the clock has shown.
        self.latest = self.clock.now
        self.owners: dict[tuple[int, int], str] = {}
        self._notes: defaultdict[int, list[str]] = defaultdict(list)
        self._seen_after = -1
        tables = ("attempts", "tallies", "jobs", "batches", "lanes", "runners")
        if self.is_sqlite:
            for table in (*tables, "sqlite_sequence"):
                self._raw.execute(f"DELETE FROM {table}")
            return
        emptied = "; ".join(f"DELETE FROM {table}" for table in tables)
        self._raw.execute(f"{emptied}; ALTER SEQUENCE jobs_id_seq RESTART; ALTER SEQUENCE batches_id_seq RESTART")

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        self._calls += 1
        return self._loop.run_until_complete(call)

    def pass_time(self, milliseconds: int) -> None:
        self.clock.advance(milliseconds)
        self.elapsed += max(0, milliseconds)
        self.latest = max(self.latest, self.clock.now)

    def look(self) -> Snapshot:
        """Read all tables again if the store was asked for anything since."""
        if self._calls != self._seen_after:
            self._seen_after = self._calls
            jobs, log, batches, lanes = self._tables("jobs", "attempts", "batches", "lanes")
            self._snapshot = Snapshot(
                {row["id"]: row for row in jobs},
                {(row["job_id"], row["token"]): row for row in log},
                {row["id"]: row for row in batches},
                {row["name"]: row for row in lanes},
            )
        return self._snapshot

    def _tables(self, *names: str) -> list[list[Row]]:
        """Read tables; on a server in one round, which takes longer than what it asks for."""
        selects = [f"SELECT * FROM {name}" for name in names]
        if self.is_sqlite:
            return [self.rows(select) for select in selects]
        cursor = self._raw._connection.execute("; ".join(selects))
        found = [cursor.fetchall()]
        while cursor.nextset():
            found.append(cursor.fetchall())
        return found

    def rows(self, sql: str) -> list[Row]:
        return [dict(row) for row in self._raw.execute(sql)]

    def note(self, job_id: int, what: str) -> None:
        """Remember what happened to a job, for whoever reads why a history failed."""
        since = self.clock.now - Clock().now
        self._notes[job_id].append(f"at {since:+} ms {what}")

    def check(self, holds: object, what: str, *job_ids: int) -> None:
        """Fail with a sentence, and the histories of the jobs that it is about."""
        if holds:
            return
        told = [what]
        for job_id in job_ids:
            told += [f"job {job_id}: {self._snapshot.jobs.get(job_id)}", *self._notes[job_id]]
            told += [f"logged: {row}" for (of_job, _), row in self._snapshot.log.items() if of_job == job_id]
        raise AssertionError("\n  ".join(told))

    def close(self) -> None:
        self.run(self.store.close())
        self._loop.close()
