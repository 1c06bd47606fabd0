"""Moves a whole queue from one database to another: page by page, to be gone on with after any crash, and compared.

The order of things is what makes it safe. The source is closed to writers first, so that what was read stays true;
the target opens when all is there and compared. Killed at any point, the same call goes on: the mark in the target
moves with the rows. Nobody ever finds two databases that both let the same jobs be claimed.
"""

from __future__ import annotations

import asyncio
import hashlib
import shlex
import uuid
from collections.abc import Awaitable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from sqlalchemy.engine import URL

from batchq.database import OnLocked, locate, shown
from batchq.errors import (
    BatchqError,
    CopyDiffers,
    DatabaseBusy,
    DatabaseUnavailable,
    NoDatabase,
    StoreError,
    UsageError,
)
from batchq.formats.same_file import same_file
from batchq.schema import COPYING, MOVED
from batchq.store.copying import Side, open_side, refuse_in_use, taken_back
from batchq.store.marks import Found, Mark
from batchq.store.pages import TABLES, Key, as_text, first_difference, with_later_times
from batchq.transfer_progress import OnStep, Progress

T = TypeVar("T")
S = TypeVar("S")

# Below that, clocks count as the same, and times stay as they are.
CLOCKS_DIFFER_MS = 1_000
_MAY_PASS = (DatabaseBusy, DatabaseUnavailable)


@dataclass(frozen=True, slots=True)
class Moved:
    """A queue that is in its new database: rows by table, jobs by state, and the checksum of all rows if compared.

    `shift_ms` was added to all times, `already` tells that it was there before.
    """

    source: str
    target: str
    rows: Mapping[str, int]
    states: Mapping[str, int]
    checksum: str | None
    shift_ms: int = 0
    already: bool = False


async def move_queue(
    source: str,
    target: str,
    *,
    force: bool = False,
    verify: bool = True,
    on_step: OnStep | None = None,
    on_locked: OnLocked | None = None,
) -> Moved:
    """Move the queue of one database into another one, or go on where that was broken off.

    The source is only read from then on, also by everybody else. Raises UsageError where somebody is at work on it
    (unless `force`), or where the target holds another queue; CopyDiffers.
    """
    refuse_same(source, target)
    async with await open_side(source, on_locked=on_locked) as origin:
        found = await origin.require_schema()
        if found.standing.word is None and not force:
            refuse_in_use(origin.location, await origin.in_use())
        try:
            async with await open_side(target, create=True, on_locked=on_locked) as goal:
                return await _move(origin, goal, force=force, verify=verify, on_step=on_step or (lambda _step: None))
        except BatchqError as error:
            error.args = (f"{error}{await _way_back(origin, error)}", *error.args[1:])
            raise


async def _way_back(origin: Side, error: BatchqError) -> str:
    """Return what to say of a source that an error leaves closed; nothing if it is in use, or that can't be told."""
    with suppress(StoreError):
        standing = (await origin.look()).standing
        if standing.word == MOVED and "--undo" not in str(error):
            go_on = "run the same command again to go on; " if isinstance(error, _MAY_PASS) else ""
            return f". Nothing is lost: {go_on}{_undo(origin.location, standing.place)} lets the source be used again"
    return ""


def _undo(source: str, target: str) -> str:
    return f"`batchq db copy {shlex.quote(source)} {shlex.quote(target)} --undo`"


async def _move(origin: Side, goal: Side, *, force: bool, verify: bool, on_step: OnStep) -> Moved:
    left, there = await origin.require_schema(), await goal.require_schema()
    if left.leaving is not None and there.copied == left.leaving and there.standing.word is None:
        return Moved(origin.location, goal.location, {}, {}, None, already=True)
    mark = await _start(origin, goal, left, there, force=force)
    await _refuse_taken_back(origin, goal, mark)
    totals = {name: await origin.count(table) for name, table in TABLES.items()}
    progress = Progress(totals, passes=2 if verify else 1, on_step=on_step)
    progress.begun(mark)
    mark = await _copy(origin, goal, mark, progress)
    checksum = await _compare(origin, goal, mark.shift_ms, progress) if verify else None
    await _refuse_taken_back(origin, goal, mark)
    await goal.finish(mark, await origin.last_ids())
    return Moved(origin.location, goal.location, mark.rows, mark.states, checksum, mark.shift_ms)


async def _refuse_taken_back(origin: Side, goal: Side, mark: Mark) -> None:
    """Raise UsageError if the queue is to stay: to be asked once the mark is in the target (`store.copying`)."""
    if (await origin.look()).leaving != mark.id:
        raise UsageError(taken_back(origin.location, goal.location))


async def take_back(source: str, target: str, *, force: bool = False) -> bool:
    """Let a queue that was to move be used where it was; return whether it was to move at all.

    A copy that is running can't be completed from then on. Raises UsageError where the queue is whole in the target,
    or that can't be told, unless `force`; DatabaseBusy where another process takes it back, too. Killed at any point,
    the same call completes it.
    """
    async with await open_side(source) as origin:
        left = await origin.look()
        if left.standing.word != MOVED:
            return False
        if not force:
            if _named(target) != left.standing.place:
                raise UsageError(
                    f"the queue of {origin.location} went to {left.standing.place}: name that instead of"
                    f" {_named(target)}"
                )
            await _refuse_arrived(target, left.move, revoke=False)
        try:
            await _take_back(origin, target, left.move, force=force)
        except DatabaseBusy:
            # Somebody else who takes it back was the last to say so; he may be done.
            if (await origin.look()).standing.word == MOVED:
                raise
    return True


async def _take_back(origin: Side, target: str, move: str | None, *, force: bool) -> None:
    returner = uuid.uuid4().hex
    await origin.recall(move, returner)
    try:
        await _revoke(target, move, force=force)
    except BaseException:
        with suppress(StoreError):
            await origin.release(returner)
        raise
    await origin.thaw(returner)


async def _revoke(target: str, move: str | None, *, force: bool) -> None:
    """Take the mark of a copy out of its target; with `force` only if that can be done."""
    try:
        await _refuse_arrived(target, move, revoke=True)
    except BatchqError:
        if not force:
            raise


async def _refuse_arrived(target: str, move: str | None, *, revoke: bool) -> None:
    """Raise UsageError if the queue has arrived in the target, or if that can't be told."""
    try:
        async with await open_side(target) as goal:
            arrived = move is not None and (await goal.revoke(move) if revoke else (await goal.look()).copied == move)
    except NoDatabase:
        return
    except StoreError as error:
        raise UsageError(f"{error}. If it does not hold the whole queue, --force takes it back all the same") from error
    if arrived:
        raise UsageError(
            f"{goal.location} holds the whole queue, or did, and workers may be at work on it: used in both, all its"
            " jobs would be paid for twice. --force does it all the same"
        )


def refuse_same(source: str, target: str) -> None:
    """Raise UsageError if both are the same database, as far as that can be told without looking."""
    match locate(source), locate(target):
        case (Path() as one, Path() as other):
            same = same_file(one, other)
        case (URL() as one, URL() as other):
            same = _place(one) == _place(other)
        case _:
            same = False
    if same:
        raise UsageError(f"{_named(source)} and {_named(target)} are the same database: name another one to copy to")


def _named(location: str) -> str:
    found = locate(location)
    return shown(found) if isinstance(found, URL) else str(found)


def _place(url: URL) -> tuple[object, ...]:
    query = {name: value for name, value in url.query.items() if name in {"host", "port", "options"}}
    return url.host or "localhost", url.port or 5432, url.database, tuple(sorted(query.items()))


async def _start(origin: Side, goal: Side, left: Found, there: Found, *, force: bool) -> Mark:
    """Close both databases to all others, or find them closed by the run before; return the mark."""
    if left.standing.word == COPYING:
        raise UsageError(f"{origin.location} holds only a part of a queue: complete that copy first")
    if there.standing.word == MOVED:
        raise UsageError(f"the queue of {goal.location} went to {there.standing.place}: name another target")
    if left.returner is not None:
        raise UsageError(
            f"{origin.location} is being taken back: {_undo(origin.location, left.standing.place)} completes that"
        )
    if there.mark is not None:
        if there.mark.id == left.leaving:
            return there.mark
        raise UsageError(_part_of_another(goal.location, there.mark))
    if there.holds:
        raise UsageError(f"{goal.location} holds a queue already: name a database that is empty or not there yet")
    if left.standing.word == MOVED and left.standing.place != goal.location:
        raise UsageError(
            f"the queue of {origin.location} is on its way to {left.standing.place}, or there: go on with that, or take"
            " it back with --undo"
        )
    move = left.leaving or uuid.uuid4().hex
    if left.standing.word is None:
        await origin.freeze(move, goal.location, force=force)
    try:
        mark = Mark(move, origin.location, await _shift(origin, goal))
        await goal.begin(mark)
    except BaseException:
        with suppress(StoreError):
            await _open_again(origin, goal, move)
        raise
    return mark


def _part_of_another(target: str, mark: Mark) -> str:
    if mark.taken_back:
        return f"{target} holds a part of the queue of {mark.origin}, which was taken back: delete it, or name another"
    return (
        f"{target} holds a part of the queue of {mark.origin}: complete that copy, or name another target, or delete"
        " this one"
    )


async def _open_again(origin: Side, goal: Side, move: str) -> None:
    """Let the source be used again, unless another process has begun the same move, or that can't be told."""
    if await _has_begun(goal, move):
        return
    returner = uuid.uuid4().hex
    await origin.recall(move, returner)
    try:
        begun = await _has_begun(goal, move)
    except BaseException:
        await origin.release(returner)
        raise
    await (origin.release(returner) if begun else origin.thaw(returner))


async def _has_begun(goal: Side, move: str) -> bool:
    found = await goal.look()
    return found.copied == move or (found.mark is not None and found.mark.id == move)


async def _shift(origin: Side, goal: Side) -> int:
    """Return what the target's clock is ahead of the source's, if it is worth mentioning."""
    before, there, after = await origin.look(), await goal.look(), await origin.look()
    ahead = there.now - (before.now + after.now) // 2
    return ahead if abs(ahead) > CLOCKS_DIFFER_MS else 0


async def _copy(origin: Side, goal: Side, mark: Mark, progress: Progress) -> Mark:
    """Bring what is missing; return the mark as it is then."""
    names = list(TABLES)
    for name in names[names.index(mark.table) :]:
        table = TABLES[name]
        page = await origin.page(table, mark.after if mark.table == name else None)
        while page:
            arrived = mark.behind(table, page)
            later = with_later_times(table, page, mark.shift_ms)
            page, _ = await _both(origin.page(table, page.last), goal.append(table, later, mark, arrived))
            mark = arrived
            progress.copied(table, mark)
    return mark


async def _compare(origin: Side, goal: Side, shift_ms: int, progress: Progress) -> str:
    """Read all rows again, on both sides; return their checksum. Raises CopyDiffers."""
    checksum = hashlib.sha256()
    for table in TABLES.values():
        after: Key | None = None
        page = await origin.page(table, after)
        while True:
            # Behind the last page there must be nothing, either.
            following, there = await _both(origin.page(table, page.last), goal.page(table, after, like=page))
            expected = with_later_times(table, page, shift_ms)
            lines = as_text(expected)
            if lines != as_text(there):
                what = first_difference(table, expected, there)
                raise CopyDiffers(
                    f"{goal.location} does not hold what {origin.location} does: {what}. Nobody can use it: delete it,"
                    " and copy again"
                )
            checksum.update(lines)
            progress.compared(table, page)
            if not page:
                break
            after, page = page.last, following
    return checksum.hexdigest()[:32]


async def _both(one: Awaitable[T], other: Awaitable[S]) -> tuple[T, S]:
    """Wait for two things at once, and for both whatever happens."""
    first, second = await asyncio.gather(one, other, return_exceptions=True)
    for result in (first, second):
        if isinstance(result, BaseException):
            raise result
    return first, second  # type: ignore[return-value]
