"""One of the two databases of a copy: its tables page by page, and the marks that tell how far the copy is.

The source can only be read from the first page on, and the target not even that before the last (`database.moving`
has the words that say so to everybody else). How far the target is stands in its `meta`, and moves in the transaction
that brings the rows.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Self

from sqlalchemy import Table, delete, func, insert, select, update

from batchq.database import Database, OnLocked, Transaction, open_database
from batchq.database.bulk import copy_rows
from batchq.database.dialect import upsert
from batchq.database.moving import Standing
from batchq.database.version import check_version
from batchq.database.wholesale import count_values, give_ids_behind, last_id, shut_out_others
from batchq.errors import DatabaseBusy, UsageError
from batchq.schema import COPYING, MOVED, SCHEMA_VERSION, batches, jobs, lanes, meta, runners
from batchq.store.find import AnySelect
from batchq.store.pages import PAGE_BYTES, PAGE_ROWS, STEP_ROWS, TABLES, Key, Page, Row, read_page, states_of
from batchq.store.unmoved import in_use

PATIENCE = 60.0
WITH_IDS = (batches, jobs)

_COPY = "copy"
_COPIED = "copied"
_LEAVING = "leaving"
_VERSION = "schema_version"


@dataclass(frozen=True, slots=True)
class Mark:
    """How far a copy is: the rows of `table` up to the key `after` are there, and all of the tables before it.

    `id` is that of the move, `origin` where it comes from, `shift_ms` what is added to all times; `rows` counts what
    is there by table, `states` the jobs.
    """

    id: str
    origin: str
    shift_ms: int = 0
    table: str = "batches"
    after: Key | None = None
    rows: Mapping[str, int] = field(default_factory=dict)
    states: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, text: str) -> Mark:
        """Return the mark that was written as `text`."""
        found = json.loads(text)
        after = found.pop("after")
        return cls(**found, after=None if after is None else tuple(after))

    def __str__(self) -> str:
        """Return it as text, always the same for the same."""
        return json.dumps(asdict(self), sort_keys=True)

    def behind(self, table: Table, page: Page) -> Mark:
        """Return the mark for when a page is there, too."""
        rows = Counter(self.rows) + Counter({table.name: len(page.rows)})
        states = Counter(self.states) + Counter(states_of(page) if table is jobs else ())
        return replace(self, table=table.name, after=page.last, rows=dict(rows), states=dict(states))


@dataclass(frozen=True, slots=True)
class Found:
    """What a database is to a move: whole, in part or left; the ids of moves that it has to do with; what it holds."""

    standing: Standing
    leaving: str | None
    copied: str | None
    mark: Mark | None
    batches: int
    lanes: int
    now: int


class Side:
    """One of the two databases of a copy; `open_side` is the way in."""

    def __init__(self, database: Database) -> None:
        """Wrap an open database."""
        self._database = database
        self._first_rows = STEP_ROWS

    async def __aenter__(self) -> Self:
        """Return the side."""
        return self

    async def __aexit__(self, *_error: object) -> None:
        """Close the database."""
        await self._database.close()

    @property
    def location(self) -> str:
        """What people call the database: an absolute path, or a URL without its password."""
        return self._database.location

    async def look(self) -> Found:
        """Return what there is."""
        return await self._database.read(_look)

    async def require_schema(self) -> Found:
        """Return what there is. Raises SchemaMismatch unless the schema is the one that this batchq knows."""
        found = await self.look()
        check_version(self.location, found.standing.schema)
        return found

    async def in_use(self) -> list[str]:
        """Return who is at work on the queue, a phrase each."""
        return await self._database.read(in_use)

    async def freeze(self, move: str, place: str, *, force: bool) -> None:
        """Let the queue only be read from now on: it moves to `place`. Raises UsageError if somebody is at work."""
        await self._write(partial(_freeze, location=self.location, move=move, place=place, force=force))

    async def thaw(self) -> None:
        """Let the queue be used again."""
        await self._write(_thaw)

    async def begin(self, mark: Mark) -> None:
        """Let nobody use the queue before it is whole. Raises UsageError if it holds anything."""
        await self._write(partial(_begin, location=self.location, mark=mark))

    async def page(self, table: Table, after: Key | None, *, like: Page | None = None) -> Page:
        """Return the next rows of a table behind a key: up to 2,000, or little more than 4 MB; or as many as `like`."""
        limit = PAGE_ROWS if like is None else max(len(like.rows), 1)
        bound = PAGE_BYTES if like is None else None
        page, self._first_rows = await self._database.read(
            partial(read_page, table=table, after=after, limit=limit, most_bytes=bound, step=self._first_rows)
        )
        return page

    async def append(self, table: Table, page: Page, old: Mark, new: Mark) -> None:
        """Add rows and move the mark with them. Raises DatabaseBusy if another process has moved it."""
        await self._write(partial(_append, location=self.location, table=table, rows=page.rows, old=old, new=new))

    async def count(self, table: Table) -> int:
        """Count the rows of a table."""
        statement = select(func.count()).select_from(table)
        return await self._database.read(lambda tx: tx.connection.execute(statement).scalar_one())

    async def last_ids(self) -> dict[str, int]:
        """Return the highest ids that were ever given, by table."""
        return await self._database.read(lambda tx: {table.name: last_id(tx, table) for table in WITH_IDS})

    async def finish(self, mark: Mark, last_ids: Mapping[str, int]) -> None:
        """Let everybody use the queue: it is whole. New ids follow on those that were given before."""
        await self._write(partial(_finish, location=self.location, mark=mark, last_ids=last_ids), announce=True)

    async def _write(self, body: Callable[[Transaction], None], *, announce: bool = False) -> None:
        await self._database.write(body, patience=PATIENCE, announce=announce)


async def open_side(
    location: str,
    *,
    create: bool = False,
    clock: Callable[[], int] | None = None,
    on_locked: OnLocked | None = None,
) -> Side:
    """Open a database whatever its queue's state is; arguments and errors are those of `open_store`."""
    return Side(await open_database(location, create=create, clock=clock, on_locked=on_locked, moving=True))


def _look(tx: Transaction) -> Found:
    told: dict[str, str] = {row.name: row.value for row in tx.connection.execute(select(meta)).all()}
    held, limited = (
        tx.connection.execute(select(func.count()).select_from(table)).scalar_one() for table in (batches, lanes)
    )
    mark = Mark.read(told[_COPY]) if _COPY in told else None
    return Found(Standing.read(told.get(_VERSION)), told.get(_LEAVING), told.get(_COPIED), mark, held, limited, tx.now)


def _freeze(tx: Transaction, location: str, move: str, place: str, *, force: bool) -> None:
    _stand(tx, Standing(str(SCHEMA_VERSION), MOVED, place), where=Standing(str(SCHEMA_VERSION)))
    tx.connection.execute(upsert(meta, ("name",)), {"name": _LEAVING, "value": move})
    if not force:
        refuse_in_use(location, in_use(tx))


def refuse_in_use(location: str, found: list[str]) -> None:
    """Raise UsageError if somebody is at work on the queue."""
    if found:
        raise UsageError(
            f"{location} is in use: {', '.join(found)}. Stop them first; with --force what is in flight is copied"
            " as it is, claimed anew when its lease has run out, and may be paid for twice"
        )


def _thaw(tx: Transaction) -> None:
    version = Standing.read(tx.connection.execute(_meta_value(_VERSION)).scalar_one_or_none())
    _stand(tx, Standing(version.schema), where=version)
    tx.connection.execute(delete(meta).where(meta.c.name == _LEAVING))


def _begin(tx: Transaction, location: str, mark: Mark) -> None:
    _stand(tx, Standing(str(SCHEMA_VERSION), COPYING), where=Standing(str(SCHEMA_VERSION)))
    found = _look(tx)
    if found.batches or found.lanes:
        raise UsageError(f"{location} holds a queue already: name an empty database, or one that is not there yet")
    # Workers that were started too early: they say again who they are when they hear that the queue is whole.
    tx.connection.execute(delete(runners))
    tx.connection.execute(delete(meta).where(meta.c.name == _COPIED))
    tx.connection.execute(insert(meta), {"name": _COPY, "value": str(mark)})


def _append(tx: Transaction, location: str, table: Table, rows: Sequence[Row], old: Mark, new: Mark) -> None:
    moved = update(meta).where(meta.c.name == _COPY, meta.c.value == str(old)).values(value=str(new))
    if tx.connection.execute(moved).rowcount != 1:
        raise DatabaseBusy(f"{location} is being filled by another process, too: let one of them end")
    copy_rows(tx, table, [column.name for column in table.columns], rows)


def _finish(tx: Transaction, location: str, mark: Mark, last_ids: Mapping[str, int]) -> None:
    done = delete(meta).where(meta.c.name == _COPY, meta.c.value == str(mark))
    if tx.connection.execute(done).rowcount != 1:
        raise DatabaseBusy(f"{location} is being filled by another process, too: let one of them end")
    for table in WITH_IDS:
        give_ids_behind(tx, table, last_ids[table.name])
    tx.connection.execute(insert(meta), {"name": _COPIED, "value": mark.id})
    _stand(tx, Standing(str(SCHEMA_VERSION)), where=Standing(str(SCHEMA_VERSION), COPYING))
    count_values(tx, list(TABLES.values()))


def _stand(tx: Transaction, standing: Standing, *, where: Standing) -> None:
    """Say what the database is from now on, unless it has become something else meanwhile."""
    shut_out_others(tx)
    changed = update(meta).where(meta.c.name == _VERSION, meta.c.value == str(where)).values(value=str(standing))
    if tx.connection.execute(changed).rowcount != 1:
        raise DatabaseBusy("another process has changed what the database is for at the same moment: run this again")


def _meta_value(name: str) -> AnySelect:
    return select(meta.c.value).where(meta.c.name == name)
