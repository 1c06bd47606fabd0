"""One of the two databases of a copy: its tables page by page, and the marks that tell how far the copy is.

The source can only be read from the first page on, and the target not even that before the last (`database.moving`
has the words that say so to everybody else). How far the target is stands in its `meta`, and moves in the transaction
that brings the rows.

No transaction spans both, so a queue is taken back in three steps: the source says that it is, then the target's mark
is taken away, then the source opens. Whoever copies looks into the source once his mark is in the target. So either he
finds out, or his mark is taken away after that look, and without it he can't open the target.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import NoReturn, Self, TypeVar

from sqlalchemy import Integer, Table, delete, exists, func, insert, literal, select, update

from batchq.config import rules_of_settings
from batchq.database import Database, OnLocked, Transaction, open_database
from batchq.database.bulk import copy_rows
from batchq.database.dialect import upsert
from batchq.database.moving import Standing
from batchq.database.version import check_version
from batchq.database.wholesale import count_values, give_ids_behind, last_id, shut_out_others
from batchq.errors import DatabaseBusy, DatabaseUnavailable, DataRefused, UsageError
from batchq.schema import COPYING, MOVED, SCHEMA_VERSION, batches, jobs, lanes, meta, runners
from batchq.store.marks import TAKEN_BACK, Found, Mark
from batchq.store.pages import (
    PAGE_BYTES,
    PAGE_ROWS,
    STEP_ROWS,
    TABLES,
    Key,
    Page,
    Row,
    key_columns,
    read_page,
)
from batchq.store.unmoved import in_use

T = TypeVar("T")

PATIENCE = 60.0
# More are estimated: a server ends long statements.
COUNTED_ROWS = 100_000
WITH_IDS = (batches, jobs)

_COPY = "copy"
_COPIED = "copied"
_LEAVING = "leaving"
_VERSION = "schema_version"
_OTHERS = "another process has changed what the database is for at the same moment: run this again"


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

    async def recall(self, move: str | None, returner: str) -> None:
        """Say that the queue is being taken back, and by whom: no copy begins, or is gone on with, from now on."""
        await self._write(partial(_recall, move=move, returner=returner))

    async def release(self, returner: str) -> None:
        """Let the move go on that was to be taken back, unless somebody else takes it back by now."""
        await self._write(partial(_release, returner=returner))

    async def thaw(self, returner: str) -> None:
        """Let the queue be used again. Raises DatabaseBusy if somebody else takes it back by now."""
        await self._write(partial(_thaw, returner=returner))

    async def revoke(self, move: str) -> bool:
        """Let nobody complete a copy; return whether somebody has."""
        return await self._write(partial(_revoke, move=move))

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
        """Add rows and move the mark with them.

        Raises DatabaseBusy if another process has moved it, UsageError if the queue was taken back; DataRefused with
        the key of the first row that is to blame.
        """
        try:
            await self._write(partial(_append, location=self.location, table=table, rows=page.rows, old=old, new=new))
        except DataRefused as error:
            row = await self._first_refused(table, page.rows)
            raise DataRefused(f"{error}: it is in {table.name}, {_named(table, row)}") from error

    async def _first_refused(self, table: Table, rows: Sequence[Row]) -> Row:
        """Return the first row that can't be added, where all of them can't; nothing is kept of the trials."""
        taken, refused = 0, len(rows)
        while refused - taken > 1:
            middle = (taken + refused) // 2
            try:
                await self._write(partial(_try_rows, table=table, rows=rows[:middle]))
            except _TakenError:
                taken = middle
            except DataRefused:
                refused = middle
        return rows[refused - 1]

    async def count(self, table: Table) -> int:
        """Count the rows of a table; where they are many, estimate them."""
        return await self._database.read(partial(_count, table=table))

    async def last_ids(self) -> dict[str, int]:
        """Return the highest ids that were ever given, by table."""
        return await self._database.read(lambda tx: {table.name: last_id(tx, table) for table in WITH_IDS})

    async def finish(self, mark: Mark, last_ids: Mapping[str, int]) -> None:
        """Let everybody use the queue: it is whole. New ids follow on those that were given before.

        Raises DatabaseBusy if another process has moved the mark, UsageError if the queue was taken back.
        """
        for table in TABLES.values():
            # One at a time, and not with `meta` locked: it may take long. Sooner or later the server does it by itself.
            with suppress(DatabaseUnavailable):
                await self._database.write(partial(count_values, tables=[table]))
        await self._write(partial(_finish, location=self.location, mark=mark, last_ids=last_ids), announce=True)

    async def _write(self, body: Callable[[Transaction], T], *, announce: bool = False) -> T:
        return await self._database.write(body, patience=PATIENCE, announce=announce)


async def open_side(
    location: str,
    *,
    create: bool = False,
    clock: Callable[[], int] | None = None,
    on_locked: OnLocked | None = None,
) -> Side:
    """Open a database whatever its queue's state is; arguments and errors are those of `open_store`."""
    database = await open_database(
        location, create=create, clock=clock, on_locked=on_locked, moving=True, rules=rules_of_settings
    )
    return Side(database)


def _look(tx: Transaction) -> Found:
    told: dict[str, str] = {row.name: row.value for row in tx.connection.execute(select(meta)).all()}
    holds = tx.connection.execute(select(exists(select(batches.c.id)) | exists(select(lanes.c.name)))).scalar_one()
    mark = Mark.read(told[_COPY]) if _COPY in told else None
    move, _, returner = told.get(_LEAVING, "").partition(" ")
    standing = Standing.read(told.get(_VERSION))
    return Found(standing, move or None, returner or None, told.get(_COPIED), mark, bool(holds), tx.now)


def _count(tx: Transaction, table: Table) -> int:
    some = select(literal(1)).select_from(table).limit(COUNTED_ROWS + 1).subquery()
    counted: int = tx.connection.execute(select(func.count()).select_from(some)).scalar_one()
    key = key_columns(table)[0]
    if counted <= COUNTED_ROWS or not isinstance(key.type, Integer):
        return counted
    # Two reads at the ends of an index.
    first, last = (int(tx.connection.execute(select(end(key))).scalar_one()) for end in (func.min, func.max))
    return max(counted, last - first + 1)


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


def _recall(tx: Transaction, move: str | None, returner: str) -> None:
    shut_out_others(tx)
    found = _look(tx)
    if found.standing.word != MOVED or found.move != move:
        raise DatabaseBusy(_OTHERS)
    tx.connection.execute(upsert(meta, ("name",)), {"name": _LEAVING, "value": f"{move or ''} {returner}"})


def _release(tx: Transaction, returner: str) -> None:
    found = _look(tx)
    was = update(meta).where(meta.c.name == _LEAVING, meta.c.value == f"{found.move or ''} {returner}")
    tx.connection.execute(was.values(value=found.move or ""))


def _thaw(tx: Transaction, returner: str) -> None:
    shut_out_others(tx)
    found = _look(tx)
    if found.standing.word != MOVED or found.returner != returner:
        raise DatabaseBusy(_OTHERS)
    tx.connection.execute(delete(meta).where(meta.c.name == _LEAVING))
    _stand(tx, Standing(found.standing.schema), where=found.standing)


def _revoke(tx: Transaction, move: str) -> bool:
    shut_out_others(tx)
    found = _look(tx)
    if found.mark is not None and found.mark.id == move:
        # Whoever fills it moves the mark that he knows, and it is not there any more.
        revoked = replace(found.mark, id=TAKEN_BACK)
        tx.connection.execute(update(meta).where(meta.c.name == _COPY).values(value=str(revoked)))
    return found.copied == move


def _begin(tx: Transaction, location: str, mark: Mark) -> None:
    _stand(tx, Standing(str(SCHEMA_VERSION), COPYING), where=Standing(str(SCHEMA_VERSION)))
    if _look(tx).holds:
        raise UsageError(f"{location} holds a queue already: name an empty database, or one that is not there yet")
    # Workers that were started too early: they say again who they are when they hear that the queue is whole.
    tx.connection.execute(delete(runners))
    tx.connection.execute(delete(meta).where(meta.c.name == _COPIED))
    tx.connection.execute(insert(meta), {"name": _COPY, "value": str(mark)})


def _append(tx: Transaction, location: str, table: Table, rows: Sequence[Row], old: Mark, new: Mark) -> None:
    moved = update(meta).where(meta.c.name == _COPY, meta.c.value == str(old)).values(value=str(new))
    if tx.connection.execute(moved).rowcount != 1:
        _raise_lost(tx, location)
    _add_rows(tx, table, rows)


def _try_rows(tx: Transaction, table: Table, rows: Sequence[Row]) -> None:
    """Add rows to undo that at once, by an error. Raises DataRefused where they can't be added."""
    _add_rows(tx, table, rows)
    raise _TakenError


class _TakenError(Exception):
    """Rows can be added; they were not."""


def _named(table: Table, row: Row) -> str:
    values = dict(zip(table.columns.keys(), row, strict=True))
    return ", ".join(f"{column.name} {values[column.name]}" for column in key_columns(table))


def _add_rows(tx: Transaction, table: Table, rows: Sequence[Row]) -> None:
    copy_rows(tx, table, [column.name for column in table.columns], rows)


def _finish(tx: Transaction, location: str, mark: Mark, last_ids: Mapping[str, int]) -> None:
    done = delete(meta).where(meta.c.name == _COPY, meta.c.value == str(mark))
    if tx.connection.execute(done).rowcount != 1:
        _raise_lost(tx, location)
    for table in WITH_IDS:
        give_ids_behind(tx, table, last_ids[table.name])
    tx.connection.execute(insert(meta), {"name": _COPIED, "value": mark.id})
    _stand(tx, Standing(str(SCHEMA_VERSION)), where=Standing(str(SCHEMA_VERSION), COPYING))


def _raise_lost(tx: Transaction, location: str) -> NoReturn:
    """Raise for a mark that is not what it was."""
    mark = _look(tx).mark
    if mark is not None and mark.taken_back:
        raise UsageError(taken_back(mark.origin, location))
    raise DatabaseBusy(f"{location} is being filled by another process, too: let one of them end")


def taken_back(source: str, target: str) -> str:
    """Return what to say of a copy that is no use any more."""
    return f"the queue of {source} was taken back meanwhile: delete what is in {target}"


def _stand(tx: Transaction, standing: Standing, *, where: Standing) -> None:
    """Say what the database is from now on, unless it has become something else meanwhile."""
    shut_out_others(tx)
    changed = update(meta).where(meta.c.name == _VERSION, meta.c.value == str(where)).values(value=str(standing))
    if tx.connection.execute(changed).rowcount != 1:
        raise DatabaseBusy(_OTHERS)
