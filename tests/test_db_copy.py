"""A queue that moves to another database arrives whole, whatever kills the copy, and is never at work in both."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from functools import partial, partialmethod
from itertools import count, product
from pathlib import Path

import pytest
from postgres import fresh_database
from processes import bench, wait_for
from raw_connection import connect
from store_driver import (
    Clock,
    Hand,
    answered,
    check_tallies,
    done,
    ended,
    failed,
    fill,
    halt,
    new_jobs,
    open_queue,
    retry,
)

from batchq import transfer
from batchq.database import locate, shown
from batchq.database.bulk import copy_rows
from batchq.errors import (
    CopyDiffers,
    DatabaseBusy,
    DatabaseUnavailable,
    DataRefused,
    NoDatabase,
    QueueMoved,
    UsageError,
)
from batchq.jobs import NewBatch, NewJob, Succeeded, Usage
from batchq.pacing import Limits
from batchq.request import encode
from batchq.schema import SCHEMA_VERSION, meta
from batchq.store import open_store
from batchq.store.copying import Side, open_side
from batchq.store.pages import TABLES, key_columns
from batchq.transfer import move_queue, take_back

pytestmark = pytest.mark.anyio

WAYS = ["sqlite-postgresql", "postgresql-sqlite", "sqlite-sqlite", "postgresql-postgresql"]


@pytest.fixture
def place(tmp_path, request):
    """Return a place for a queue, by its kind and a name: nothing is there yet."""
    with ExitStack() as stack:

        def make(kind, name):
            if kind == "sqlite":
                return str(tmp_path / f"{name}.db")
            server, connection = (request.getfixturevalue(each) for each in ("postgres", "postgres_connection"))
            return stack.enter_context(fresh_database(server, connection))

        yield make


def places(place, way):
    source, target = way.split("-")
    return place(source, "source"), place(target, "target")


@pytest.fixture(params=WAYS)
def any_way(request, place):
    """Where a queue is, and where it goes."""
    return places(place, request.param)


@pytest.fixture(params=WAYS[:2])
def way(request, place):
    """The same, from one kind of database to the other."""
    return places(place, request.param)


@pytest.fixture
def files(place):
    return place("sqlite", "source"), place("sqlite", "target")


def past(hours=1.0):
    """A clock that stands so long ago that all leases of then have run out."""
    clock = Clock()
    clock.now = round((time.time() - hours * 3600) * 1000)
    return clock


def rows_of(location, table):
    """All rows of a table in the order of its key, as both databases show them to somebody else."""
    names = [column.name for column in table.columns]
    booleans = {column.name for column in table.columns if str(column.type) == "BOOLEAN"}
    with connect(location) as raw:
        found = [dict(row) for row in raw.execute(f"SELECT {', '.join(names)} FROM {table.name}")]
    for row in found:
        row.update({name: bool(row[name]) for name in booleans if row[name] is not None})
    return sorted(found, key=lambda row: [row[column.name] for column in key_columns(table)])


def whole(location):
    return {name: rows_of(location, table) for name, table in TABLES.items()}


def told(location, name):
    with connect(location) as raw:
        found = raw.execute("SELECT value FROM meta WHERE name = ?", [name])
    return found[0]["value"] if found else None


def change(location, sql, *parameters):
    with connect(location) as raw:
        raw.execute(sql, parameters)


async def make_all_there_is(location):
    """Batches and jobs in every state, with attempts of every kind, followers, limits, a halt, and tallies."""
    clock = past()
    async with await open_queue(location, clock) as store:
        one = Hand(store, "one")
        await store.register(one.runner)
        await fill(store, 7, "worked", model="a", budget=5_000_000_000, allow_unknown_cost=True)
        first, second, third, fourth, *held = await one.claim(6)
        paid = Usage(input_tokens=3, output_tokens=2)
        await one.settle(
            done(first, "nul \x00 and half a pair \ud800, é, 日本", cost=1_234, usage=paid),
            failed(second, "quotes ' \" and \\ and \t and \n"),
            retry(third, 7200, cost=5),
            ended(fourth, Succeeded(answered('"kept"'))),
        )
        one.forget()
        clock.advance(120_000)
        two = Hand(store, "two")
        await store.register(two.runner)
        again = await two.claim(8)
        await one.send(one.request([done(held[0], "late", cost=77)]))
        assert held[0].job_id in {claim.job_id for claim in again}
        batch = await store.open_batch(NewBatch("naïve ’name’", "echo", model="b", settings={"system": "é"}))
        await store.add_jobs(batch, [NewJob(0, "a", "k", '"x"'), NewJob(1, "b", "k", '"x"', leader="a")])
        await store.add_jobs(batch, [NewJob(2, "c", "k", '"x"', leader="a")])
        await store.pause(await fill(store, 3, "paused"))
        await store.cancel(await fill(store, 4, "cancelled"))
        await store.set_limits("echo", "http://localhost/v1", "m", Limits(rpm=0.1 + 0.2, tpm=1e15, max_inflight=7))
        await fill(store, 2, "halted", model="h", priority=9)
        await halt(store, two)
        await store.purge(await fill(store, 2, "purged"))


async def test_every_row_arrives_as_it_was(any_way):
    source, target = any_way
    await make_all_there_is(source)
    before = whole(source)
    assert all(before.values()), "a table without rows proves nothing"
    states = {row["state"] for row in before["jobs"]}
    assert states == {"pending", "inflight", "done", "failed", "cancelled"}
    moved = await move_queue(source, target)
    assert whole(source) == before
    assert whole(target) == before
    assert moved.rows == {name: len(found) for name, found in before.items()}
    assert moved.states == {state: sum(row["state"] == state for row in before["jobs"]) for state in states}
    assert len(moved.checksum) == 32
    assert told(target, "schema_version") == str(SCHEMA_VERSION)
    async with await open_store(target) as store:
        for batch in await store.batches():
            await check_tallies(store, batch)


async def test_the_checksum_is_the_same_all_the_way_round(place):
    there, here, back = place("sqlite", "a"), place("postgresql", "b"), place("sqlite", "c")
    await make_all_there_is(there)
    out = await move_queue(there, here)
    home = await move_queue(here, back)
    assert out.checksum == home.checksum


async def test_work_goes_on_where_it_was(way):
    source, target = way
    async with await open_queue(source, past()) as store:
        await fill(store, 4)
        old = Hand(store)
        claims = await old.claim(2)
        await old.settle(done(claims[0]))
    await move_queue(source, target)
    async with await open_store(target) as store:
        # What was in flight then is claimed anew, under a higher token; the old answer is late.
        new = Hand(store, "new")
        again = {claim.position: claim for claim in await new.claim(4)}
        assert sorted(again) == [1, 2, 3]
        assert again[1].token == 2
        await new.settle(*map(done, again.values()))
        late = Hand(store, "old")
        await late.settle(done(claims[1], "late", cost=5))
        batch = await store.batch("demo")
        assert [json.loads(result.result) async for result in store.results(batch)] == ["ok"] * 4
        await check_tallies(store, batch)


async def test_a_token_that_nobody_took_over_is_still_good(way):
    source, target = way
    async with await open_queue(source, past()) as store:
        await fill(store, 1)
        hand = Hand(store)
        (claim,) = await hand.claim(1)
    await move_queue(source, target)
    async with await open_store(target) as store:
        await Hand(store).settle(done(claim, "paid for"))
        assert (await store.progress("demo")).counts.done == 1


async def test_ids_are_never_given_twice(any_way):
    source, target = any_way
    async with await open_store(source, create=True) as store:
        await fill(store, 3, "kept")
        gone = await fill(store, 5, "gone")
        await store.purge(gone)
    await move_queue(source, target)
    async with await open_store(target) as store:
        batch = await fill(store, 1, "next")
    assert batch.id > gone.id
    assert [row["id"] for row in rows_of(target, TABLES["jobs"])][3] > 8


async def test_an_empty_queue_moves_too(way):
    source, target = way
    async with await open_store(source, create=True):
        pass
    moved = await move_queue(source, target)
    assert sum(moved.rows.values()) == 0
    async with await open_store(target) as store:
        assert (await fill(store, 1)).id == 1
    with pytest.raises(QueueMoved):
        async with await open_store(source) as store:
            await fill(store, 1)


async def test_only_ids_of_before_are_in_an_emptied_queue(way):
    source, target = way
    async with await open_store(source, create=True) as store:
        await store.purge(await fill(store, 3, "gone"))
    await move_queue(source, target)
    async with await open_store(target) as store:
        batch = await fill(store, 1)
    assert batch.id > 1
    assert rows_of(target, TABLES["jobs"])[0]["id"] > 3


# Nobody works on two queues.


async def test_the_source_is_only_read_from_then_on(way):
    source, target = way
    async with await open_store(source, create=True) as running:
        await fill(running, 2)
        await move_queue(source, target)
        for refused in (
            running.register(Hand(running).runner),
            Hand(running).claim(1),
            running.open_batch(NewBatch("more", "echo")),
            running.retry(await running.batch("demo")),
        ):
            with pytest.raises(QueueMoved, match=r"went to .*target|went to postgresql"):
                await refused
    async with await open_store(source) as store:
        assert (await store.progress("demo")).counts.pending == 2


async def test_nobody_finds_half_a_queue(way, monkeypatch):
    source, target = way
    monkeypatch.setattr("batchq.store.copying.PAGE_ROWS", 3)
    async with await open_store(source, create=True) as store:
        await fill(store, 10)
    async with await open_store(target, create=True) as early:
        await early.register(Hand(early, "early").runner)
        seen = []

        async def look(step):
            with pytest.raises(DatabaseUnavailable, match="only a part"):
                await open_store(target)
            with pytest.raises(DatabaseUnavailable, match="only a part"):
                await Hand(early).claim(1)
            with pytest.raises(DatabaseUnavailable, match="only a part"):
                await early.batches()
            with pytest.raises(QueueMoved):
                await fill_source()
            seen.append(step)

        async def fill_source():
            async with await open_store(source) as store:
                await fill(store, 1, "more")

        original = Side.append

        async def watched(self, table, page, old, new):
            await original(self, table, page, old, new)
            await look(new)

        monkeypatch.setattr(Side, "append", watched)
        await move_queue(source, target)
        assert len(seen) >= 5
        # Who was there before the queue was goes on as if nothing had been.
        assert len(await Hand(early).claim(20)) == 10


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_who_is_at_work_is_named_and_nothing_is_changed(place, kind):
    source, target = place(kind, "source"), place("sqlite", "target")
    async with await open_store(source, create=True) as store:
        hand = Hand(store)
        await fill(store, 3)
        await store.register(hand.runner)
        await hand.claim(2)
        await fill(store, 1, "filling", seal=False)
        with pytest.raises(UsageError) as refused:
            await move_queue(source, target)
        for part in ("worker 1 on host", "2 jobs are in flight, for up to 60 s", "'filling' is being", "--force"):
            assert part in str(refused.value)
        assert not Path(target).exists()
        await hand.settle(*map(done, hand.held.values()))


async def test_with_force_what_is_in_flight_is_claimed_anew(way):
    source, target = way
    async with await open_store(source, create=True) as store:
        hand = Hand(store)
        await fill(store, 3)
        await store.register(hand.runner)
        (claim,) = await hand.claim(1)
        await move_queue(source, target, force=True)
        with pytest.raises(QueueMoved):
            await hand.settle(done(claim))
    async with await open_store(target) as store:
        assert len(await Hand(store, "new").claim(5, expired_too=True)) == 2
        change(target, "UPDATE jobs SET claimable_at = claimable_at - 61000 WHERE id = ?", claim.job_id)
        (again,) = await Hand(store, "new").claim(5, expired_too=True)
    assert (again.job_id, again.token) == (claim.job_id, claim.token + 1)


async def test_a_worker_that_comes_between_is_found(files, monkeypatch):
    """The last look is taken in the transaction that closes the source."""
    source, target = files
    async with await open_store(source, create=True) as store:
        await fill(store, 1)

        async def nobody(_self):
            return []

        monkeypatch.setattr(Side, "in_use", nobody)
        await Hand(store).claim(1)
        with pytest.raises(UsageError, match="1 job is in flight"):
            await move_queue(source, target)
        await fill(store, 1, "goes on")
    async with await open_store(target) as store:
        await fill(store, 1, "free as well")


# What is no target.


async def test_a_target_with_a_queue_in_it_is_refused(way):
    source, target = way
    for location in way:
        async with await open_store(location, create=True) as store:
            await fill(store, 1)
    with pytest.raises(UsageError, match="holds a queue already"):
        await move_queue(source, target)
    async with await open_store(source) as store:
        await fill(store, 1, "still in use")


async def test_a_target_with_limits_in_it_is_refused(files):
    source, target = files
    async with await open_store(source, create=True) as store:
        await fill(store, 1)
    async with await open_store(target, create=True) as store:
        await store.set_limits("echo", "http://localhost/v1", "m", Limits(rpm=1))
    with pytest.raises(UsageError, match="holds a queue already"):
        await move_queue(source, target)


async def test_the_same_database_is_refused_by_any_name(place, tmp_path):
    source = place("sqlite", "source")
    async with await open_store(source, create=True) as store:
        await fill(store, 1)
    (tmp_path / "link.db").symlink_to(source)
    for other in (source, f"sqlite:///{source}", str(tmp_path / "link.db")):
        with pytest.raises(UsageError, match="same database"):
            await move_queue(source, other)
    url = place("postgresql", "one")
    for other in (url, url.replace("+psycopg", "+asyncpg"), url.replace("+psycopg", "")):
        with pytest.raises(UsageError, match="same database"):
            await move_queue(url, other)


async def test_one_database_under_two_names_is_left_as_it_was(place):
    """Found out late: with what names say there is nothing to tell them apart."""
    source = place("postgresql", "one")
    other = source.replace("127.0.0.1", "localhost")
    assert other != source
    async with await open_store(source, create=True) as store:
        with pytest.raises((UsageError, DatabaseBusy)):
            await move_queue(source, other)
        await fill(store, 1)
        with pytest.raises((UsageError, DatabaseBusy)):
            await move_queue(source, other)
        await fill(store, 1, "more")


async def test_a_source_that_is_not_there_leaves_no_target_behind(files):
    with pytest.raises(NoDatabase):
        await move_queue(*files)
    assert not Path(files[1]).exists()


async def test_a_part_of_another_queue_is_no_target_and_no_source(place, monkeypatch):
    first, second, target = (place("sqlite", name) for name in ("first", "second", "target"))
    for location in (first, second):
        async with await open_store(location, create=True) as store:
            await fill(store, 5)
    with crash_at(monkeypatch, 3), pytest.raises(Crash):
        await move_queue(first, target)
    with pytest.raises(UsageError, match=r"part of the queue of .*first"):
        await move_queue(second, target)
    with pytest.raises(UsageError, match="only a part"):
        await move_queue(target, second + "2")
    with pytest.raises(UsageError, match=r"on its way to .*target"):
        await move_queue(first, second + "3")
    await move_queue(first, target)
    with pytest.raises(UsageError, match=r"on its way to .*target.*there"):
        await move_queue(first, second + "3")
    with pytest.raises(UsageError, match=r"went to .*target"):
        await move_queue(second, first)


# Broken off.


class Crash(BaseException):
    """What nothing handles."""


@contextmanager
def crash_at(monkeypatch, number, *, committed=True):
    """Crash at the n-th transaction that writes, before or after its commit."""
    left = number
    original = Side._write

    async def write(self, body, **options):
        nonlocal left
        left -= 1
        if left == 0 and not committed:
            raise Crash
        await original(self, body, **options)
        if left == 0:
            raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(Side, "_write", write)
        # A process that is killed puts nothing right.
        patch.setattr(transfer, "_open_again", nothing)
        patch.setattr(Side, "release", nothing)
        yield


async def nothing(*_arguments):
    pass


@pytest.mark.parametrize("committed", [False, True])
async def test_a_copy_that_was_broken_off_anywhere_goes_on(place, monkeypatch, committed):
    source = place("sqlite", "source")
    await make_all_there_is(source)
    before = whole(source)
    monkeypatch.setattr("batchq.store.copying.PAGE_ROWS", 4)
    number = 0
    while True:
        number += 1
        target = place("sqlite", f"target{number}")
        try:
            with crash_at(monkeypatch, number, committed=committed):
                await move_queue(source, target)
        except Crash:
            await move_queue(source, target)
        else:
            break
        assert whole(target) == before
        assert await take_back(source, target, force=True)
    assert number > 12


async def test_a_copy_that_is_killed_again_and_again_arrives_whole(way, tmp_path):
    source, target = way
    jobs = 16_000
    async with await open_queue(source, past()) as store:
        batch = await store.open_batch(NewBatch("demo", "echo"))
        for start in range(0, jobs, 2_000):
            await store.add_jobs(batch, new_jobs(2_000, start))
        await store.seal(batch)
        hand = Hand(store)
        for _ in range(4):
            await hand.settle(*[done(claim, "x" * 100) for claim in await hand.claim(2_000)])
    before = whole(source)
    everything = sum(map(len, before.values()))

    def copied():
        """How many rows are there, and committed."""
        try:
            mark = told(target, "copy")
        except Exception:  # noqa: BLE001 - no tables yet
            return 0
        return sum(json.loads(mark)["rows"].values()) if mark else 0

    def has_ended_or_copied(process, rows):
        return process.poll() is not None or copied() >= rows

    with bench(tmp_path) as shell:
        killed = []
        for rows in (1, 5_000, 12_000, 18_000, everything):
            process = shell.start("db", "copy", source, target)
            wait_for(partial(has_ended_or_copied, process, rows), f"{rows} rows")
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL, shell.errors(process)
            killed.append(copied())
        assert killed == sorted(killed)
        assert 0 < killed[0] < killed[3]
        assert killed[4] == everything, "it was to be killed while it compares"
        done_at_last = shell.run("db", "copy", source, target)
        assert done_at_last.returncode == 0, done_at_last.stderr
        again = shell.run("db", "copy", source, target)
        assert (again.returncode, "already" in again.stderr) == (0, True)
    assert whole(target) == before


async def test_two_copies_at_once_make_one(any_way, monkeypatch):
    source, target = any_way
    monkeypatch.setattr("batchq.store.copying.PAGE_ROWS", 10)
    async with await open_store(source, create=True) as store:
        await fill(store, 300)
    async with await open_store(target, create=True):
        pass
    before = whole(source)
    results = await asyncio.gather(*(move_queue(source, target) for _ in range(2)), return_exceptions=True)
    while not all(isinstance(result, transfer.Moved) for result in results):
        assert all(isinstance(result, transfer.Moved | DatabaseBusy | UsageError) for result in results), results
        results = [await move_queue(source, target)]
    assert whole(target) == before


async def test_a_lost_target_can_be_filled_again(files, monkeypatch):
    source, target = files
    async with await open_store(source, create=True) as store:
        await fill(store, 5)
    with crash_at(monkeypatch, 3), pytest.raises(Crash):
        await move_queue(source, target)
    for ending in ("", "-wal", "-shm"):
        Path(target + ending).unlink(missing_ok=True)
    assert (await move_queue(source, target)).rows["jobs"] == 5


async def test_a_target_that_can_not_be_begun_leaves_the_source_in_use(files, monkeypatch):
    source, target = files
    async with await open_store(source, create=True) as store:
        await fill(store, 1)

        async def full(_self, _mark):
            raise DatabaseUnavailable("the disk is full")

        monkeypatch.setattr(Side, "begin", full)
        with pytest.raises(DatabaseUnavailable):
            await move_queue(source, target)
        await fill(store, 1, "more")


# Taken back.


async def test_a_copy_that_was_broken_off_can_be_taken_back(way, monkeypatch):
    source, target = way
    async with await open_store(source, create=True) as store:
        await fill(store, 5)
        with crash_at(monkeypatch, 3), pytest.raises(Crash):
            await move_queue(source, target)
        with pytest.raises(QueueMoved):
            await fill(store, 1, "more")
        assert await take_back(source, target)
        await fill(store, 1, "more")
    # What is in the target by now is old.
    with pytest.raises(UsageError, match="holds a part"):
        await move_queue(source, target)
    assert not await take_back(source, target)


async def test_a_copy_that_is_taken_back_meanwhile_never_opens(way, monkeypatch):
    source, target = way
    async with await open_store(source, create=True) as store:
        await fill(store, 5)
    original = transfer._compare

    async def taken_back(*arguments):
        checksum = await original(*arguments)
        assert await take_back(source, target)
        return checksum

    monkeypatch.setattr(transfer, "_compare", taken_back)
    with pytest.raises(UsageError, match="taken back meanwhile"):
        await move_queue(source, target)
    with pytest.raises(DatabaseUnavailable):
        await open_store(target)
    async with await open_store(source) as store:
        await fill(store, 1, "more")


async def test_what_has_arrived_is_only_taken_back_by_force(files):
    source, target = files
    async with await open_store(source, create=True) as store:
        await fill(store, 1)
    await move_queue(source, target)
    with pytest.raises(UsageError, match="paid for twice"):
        await take_back(source, target)
    with pytest.raises(QueueMoved):
        async with await open_store(source) as store:
            await fill(store, 1, "more")
    assert await take_back(source, target, force=True)
    async with await open_store(source) as store:
        await fill(store, 1, "more")


async def test_nothing_is_taken_back_that_may_have_arrived(place, postgres, monkeypatch):
    source, target, other = place("sqlite", "source"), place("sqlite", "target"), place("sqlite", "other")
    async with await open_store(source, create=True) as store:
        await fill(store, 1)
    await move_queue(source, target)
    with pytest.raises(UsageError, match=r"went to .*target.db: name that"):
        await take_back(source, other)
    change(source, "UPDATE meta SET value = ? WHERE name = 'schema_version'",
           f"moved {SCHEMA_VERSION} postgresql+psycopg://127.0.0.1:1/gone")  # fmt: skip
    with pytest.raises(UsageError, match="--force"):
        await take_back(source, "postgresql://127.0.0.1:1/gone")
    assert await take_back(source, "postgresql://127.0.0.1:1/gone", force=True)


# Taken back while it is copied: never at work in both.


def alive(location):
    """Whether the queue in it can be worked on."""
    try:
        return told(location, "schema_version") == str(SCHEMA_VERSION) and bool(rows_of(location, TABLES["batches"]))
    except Exception:  # noqa: BLE001 - no database, no tables
        return False


class Actor:
    """Does something up to its n-th transaction, and the rest when it is told to."""

    current = ContextVar("actor", default=None)

    def __init__(self, doing, transactions):
        self.left = transactions
        self.stopped = False
        self._running = 0
        self._waiting = 0
        self._go = asyncio.Event()
        token = Actor.current.set(self)
        self.task = asyncio.create_task(doing())
        Actor.current.reset(token)

    async def until_it_stops(self):
        while not self.task.done() and (self._running or not self._waiting):
            await asyncio.sleep(0)

    async def to_the_end(self):
        self.left = 1_000
        self._go.set()
        await asyncio.wait([self.task])
        error = self.task.exception()
        assert error is None or isinstance(error, UsageError | DatabaseBusy), repr(error)

    @classmethod
    def gate(cls, monkeypatch):
        for name in ("look", "_write"):
            monkeypatch.setattr(Side, name, partialmethod(cls._gated, getattr(Side, name)))

    async def _gated(self, original, *arguments, **options):
        actor = Actor.current.get()
        if actor is None:
            return await original(self, *arguments, **options)
        while actor.left <= 0:
            actor.stopped = True
            actor._waiting += 1
            await actor._go.wait()
            actor._waiting -= 1
        actor.left -= 1
        actor._running += 1
        try:
            return await original(self, *arguments, **options)
        finally:
            actor._running -= 1


# Each of a few in the suite, all of them on demand.
FIRST_STEP, STEP = (1, 1) if os.environ.get("BATCHQ_TEST_EXHAUSTIVE") else (2, 4)


async def interleaved(one, other, check):
    """Have `one` stop at each of its transactions, `other` at each of its own meanwhile, and both go on to their ends.

    `one` and `other` are given a fresh place each time; `check` is asked about it then.
    """
    number = 0
    for first in count(step=FIRST_STEP):
        for second in count(first // FIRST_STEP % STEP, STEP):
            number += 1
            context = check(number)
            source, target = next(context)
            a = Actor(partial(one, source, target), first)
            await a.until_it_stops()
            b = Actor(partial(other, source, target), second)
            await b.until_it_stops()
            await a.to_the_end()
            await b.to_the_end()
            with suppress(StopIteration):
                next(context)
            assert not (alive(source) and alive(target)), f"both are at work: {first}, {second}"
            if not (alive(source) or alive(target)):
                assert await take_back(source, target)
                assert alive(source)
                assert not alive(target)
            if not b.stopped:
                break
        if not a.stopped:
            break
    assert number > 8 // STEP // FIRST_STEP


async def copy_unseen(source, target):
    await move_queue(source, target, verify=False)


START = ["in use", "closed", "closed, no target", "begun"]


async def made_ready(tmp_path, monkeypatch, start):
    """Make a small queue, in use or on its way; return what gives fresh copies of it."""
    work = tmp_path / "work"
    work.mkdir()
    source, target = str(work / "source.db"), str(work / "target.db")
    async with await open_store(source, create=True) as store:
        await fill(store, 2)
    if start != "in use":
        with crash_at(monkeypatch, 3 if start == "begun" else 1), pytest.raises(Crash):
            await move_queue(source, target)
    if start == "closed, no target":
        Path(target).unlink()
    kept = tmp_path / "kept"
    shutil.copytree(work, kept)

    def fresh(_number):
        shutil.rmtree(work)
        shutil.copytree(kept, work)
        yield source, target

    return fresh


@pytest.mark.parametrize(
    ("pair", "start"),
    # Nothing is taken back before it was closed.
    [("copy, copy", "in use"), *product(["copy, undo"], START), *product(["undo, copy", "undo, undo"], START[1:])],
)
async def test_whoever_stops_wherever_a_queue_is_never_at_work_in_both(tmp_path, monkeypatch, pair, start):
    fresh = await made_ready(tmp_path, monkeypatch, start)
    Actor.gate(monkeypatch)
    one, other = ({"copy": copy_unseen, "undo": take_back}[name] for name in pair.split(", "))
    await interleaved(one, other, fresh)


async def test_what_is_taken_back_at_the_last_moment_never_opens(way, monkeypatch):
    source, target = way
    async with await open_store(source, create=True) as store:
        await fill(store, 5)
    original = Side.finish

    async def late(*arguments):
        assert await take_back(source, target)
        await original(*arguments)

    monkeypatch.setattr(Side, "finish", late)
    with pytest.raises(UsageError, match="taken back"):
        await move_queue(source, target)
    assert alive(source)
    assert not alive(target)
    with pytest.raises(UsageError, match=r"taken back.*delete"):
        await move_queue(source, target)
    assert alive(source)


async def test_what_arrives_at_the_last_moment_is_not_taken_back(way, monkeypatch):
    source, target = way
    async with await open_store(source, create=True) as store:
        await fill(store, 5)
    with crash_at(monkeypatch, 4), pytest.raises(Crash):
        await move_queue(source, target)
    original = Side.look
    looks = 0

    async def late(self):
        nonlocal looks
        looks += 1
        found = await original(self)
        if looks == 2:
            await move_queue(source, target)
        return found

    monkeypatch.setattr(Side, "look", late)
    with pytest.raises(UsageError, match="paid for twice"):
        await take_back(source, target)
    assert alive(target)
    assert not alive(source)
    assert (await move_queue(source, target)).already


@pytest.mark.parametrize("committed", [False, True])
@pytest.mark.parametrize("start", START[1:])
async def test_an_undo_that_was_broken_off_is_completed_by_the_next(tmp_path, monkeypatch, start, committed):
    fresh = await made_ready(tmp_path, monkeypatch, start)
    for number in count(1):
        source, target = next(fresh(number))
        try:
            with crash_at(monkeypatch, number, committed=committed):
                assert await take_back(source, target)
        except Crash:
            with suppress(UsageError):
                await copy_unseen(source, target)
            assert not (alive(source) and alive(target))
            if not alive(target):
                await take_back(source, target)
                assert alive(source)
        else:
            break
    assert number >= 3


async def test_an_undo_that_is_killed_between_its_steps_is_completed(way, tmp_path):
    source, target = way
    async with await open_store(source, create=True) as store:
        await fill(store, 5)
    stuck = (
        "import asyncio\n"
        "from batchq.store import copying\n"
        "async def stuck(*_):\n"
        "    print('stuck', flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "copying.Side.{} = stuck\n"
        "from batchq.cli import main\n"
        "main()\n"
    )

    def run_until_stuck(step, *arguments):
        (tmp_path / "stuck.py").write_text(stuck.format(step))
        command = [sys.executable, "stuck.py", "db", "copy", source, target, *arguments]
        with subprocess.Popen(command, cwd=tmp_path, env=shell.environment, stdout=subprocess.PIPE) as process:
            assert process.stdout.readline() == b"stuck\n"
            process.kill()

    with bench(tmp_path) as shell:
        run_until_stuck("finish")
        run_until_stuck("thaw", "--undo")
        for arguments, code, sentence in (
            ((), 2, "being taken back"),
            (("--undo",), 0, "can be used again"),
            (("--undo",), 0, "nothing changed"),
        ):
            ended = shell.run("db", "copy", source, target, *arguments)
            assert (ended.returncode, sentence in ended.stderr) == (code, True), ended.stderr
    assert alive(source)
    assert not alive(target)


async def test_what_has_moved_on_from_its_target_is_only_taken_back_by_force(place):
    first, second, third = (place("sqlite", name) for name in ("first", "second", "third"))
    async with await open_store(first, create=True) as store:
        await fill(store, 1)
    await move_queue(first, second)
    await move_queue(second, third)
    with pytest.raises(UsageError, match="paid for twice"):
        await take_back(first, second)
    assert not alive(first)


async def test_by_force_what_can_be_reached_is_closed_all_the_same(files, monkeypatch):
    source, target = files
    async with await open_store(source, create=True) as store:
        await fill(store, 1)
    original = Side.finish

    async def late(*arguments):
        assert await take_back(source, target, force=True)
        await original(*arguments)

    monkeypatch.setattr(Side, "finish", late)
    with pytest.raises(UsageError, match="taken back"):
        await move_queue(source, target)
    assert alive(source)
    assert not alive(target)


# What can't be copied, and how to go on.


REFUSED = {
    "a number": ("batches", "UPDATE batches SET priority = ? WHERE id = 2", 2**33, "id 2"),
    "a NUL": ("jobs", "UPDATE jobs SET custom_id = ? WHERE position = 30 AND batch_id = 1", "a\x00b", "id 31"),
    "a text": ("jobs", "UPDATE jobs SET custom_id = ? WHERE position = 0 AND batch_id = 2", "", "id 41"),
    "the last": ("jobs", "UPDATE jobs SET custom_id = ? WHERE position = 9 AND batch_id = 2", "a\x00b", "id 50"),
}


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
@pytest.mark.parametrize("what", REFUSED)
async def test_a_row_that_is_refused_is_named_and_so_is_the_way_back(place, tmp_path, what, driver):
    source, target = place("sqlite", "source"), place("postgresql", "target").replace("+psycopg", f"+{driver}")
    table, sql, value, key = REFUSED[what]
    async with await open_store(source, create=True) as store:
        await fill(store, 40)
        await fill(store, 10, "more")
    change(source, sql, value or "".join(uuid.uuid4().hex for _ in range(300)))
    with pytest.raises(DataRefused, match=rf"{table}, {key}\b") as refused:
        await move_queue(source, target)
    command = f"`batchq db copy {source} {shown(locate(target))} --undo` lets the source be used again"
    assert command in str(refused.value)
    assert "same command" not in str(refused.value)
    with bench(tmp_path) as shell:
        ended = shell.run("db", "copy", source, target)
        assert ended.returncode == 1
        assert ended.stderr.count("--undo") == 1
        assert shell.run("db", "copy", source, target, "--undo").returncode == 0
    assert alive(source)


async def test_what_differs_leads_back_too(files, monkeypatch):
    source, target = files
    async with await open_store(source, create=True) as store:
        await fill(store, 3)
    original = transfer._compare

    async def damaged(*arguments):
        change(target, "DELETE FROM jobs WHERE id = 2")
        return await original(*arguments)

    monkeypatch.setattr(transfer, "_compare", damaged)
    with pytest.raises(CopyDiffers, match=rf"jobs lacks id 2.*`batchq db copy {source} {target} --undo`"):
        await move_queue(source, target)


async def test_an_outage_leads_on_and_back(files, monkeypatch):
    source, target = files
    async with await open_store(source, create=True) as store:
        await fill(store, 3)

    async def full(*_arguments):
        raise DatabaseUnavailable("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Side, "append", full)
        with pytest.raises(DatabaseUnavailable, match=rf"run the same command again.* {source} {target} --undo`"):
            await move_queue(source, target)
    assert (await move_queue(source, target)).rows["jobs"] == 3


async def test_an_error_that_leaves_the_source_in_use_speaks_of_no_way_back(files):
    source, target = files
    for location in files:
        async with await open_store(location, create=True) as store:
            await fill(store, 1)
    with pytest.raises(UsageError) as refused:
        await move_queue(source, target)
    assert "--undo" not in str(refused.value)


# How many there are.


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_no_row_is_counted_behind_a_bound(place, kind, monkeypatch):
    source, target = place(kind, "source"), place("sqlite", "target")
    async with await open_queue(source, past()) as store:
        await fill(store, 60)
        hand = Hand(store)
        await hand.settle(*map(done, await hand.claim(30)))
    change(source, "DELETE FROM jobs WHERE id BETWEEN 41 AND 50")
    async with await open_side(source) as side:
        assert [await side.count(TABLES[name]) for name in ("batches", "jobs", "attempts", "lanes")] == [1, 50, 30, 0]
        monkeypatch.setattr("batchq.store.copying.COUNTED_ROWS", 49)
        assert await side.count(TABLES["jobs"]) == 60
        monkeypatch.setattr("batchq.store.copying.COUNTED_ROWS", 9)
        assert [await side.count(TABLES[name]) for name in ("jobs", "attempts")] == [60, 30]
    steps = []
    monkeypatch.setattr("batchq.store.copying.Side.count", two)
    await move_queue(source, target, on_step=steps.append)
    assert all(step.done <= step.total and step.all_done <= step.all_total for step in steps)
    assert steps[-1].all_done == steps[-1].all_total


async def two(_self, _table):
    return 2


# Compared.


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("UPDATE jobs SET payload = '\"other\"' WHERE position = 7", r"jobs differs at id 8 in payload"),
        ("DELETE FROM jobs WHERE position = 7", r"jobs lacks id 8"),
        ("DELETE FROM jobs WHERE position = 9", r"jobs lacks id 10"),
        ("UPDATE attempts SET charged = NOT charged", r"attempts differs at job_id 1, token 1 in charged"),
        ("UPDATE attempts SET cost = NULL", r"attempts differs at job_id 1, token 1 in cost"),
        ("UPDATE lanes SET rpm = rpm + 0.0001", r"lanes differs at name echo \S+ m in rpm"),
        ("UPDATE tallies SET done = done + 1", r"tallies differs at batch_id 1, runner .* in done"),
        ("DELETE FROM runners", r"runners lacks id runner"),
        ("INSERT INTO meta (name, value) VALUES ('other', 'x')", ""),
    ],
)
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_what_differs_is_found_and_named(place, monkeypatch, kind, sql, message):
    source, target = place("sqlite", "source"), place(kind, "target")
    async with await open_queue(source, past()) as store:
        await store.set_limits("echo", "http://localhost/v1", "m", Limits(rpm=0.3))
        await fill(store, 10)
        hand = Hand(store)
        await store.register(hand.runner)
        await hand.settle(done((await hand.claim(1))[0], cost=5))
    original = transfer._compare

    async def damaged(*arguments):
        change(target, sql)
        return await original(*arguments)

    monkeypatch.setattr(transfer, "_compare", damaged)
    if not message:
        await move_queue(source, target)
        return
    with pytest.raises(CopyDiffers, match=message):
        await move_queue(source, target)
    with pytest.raises(DatabaseUnavailable):
        await open_store(target)


async def test_a_row_too_many_is_found(way, monkeypatch):
    source, target = way
    async with await open_store(source, create=True) as store:
        await fill(store, 3)
        await store.purge(await fill(store, 1, "gone"))
    original = transfer._compare

    async def damaged(*arguments):
        change(
            target,
            "INSERT INTO jobs (id, batch_id, position, key, payload, state, claimable_at, created_at) "
            "SELECT 99, batch_id, position + 1000, key, payload, state, claimable_at, created_at FROM jobs WHERE id = 3",
        )
        return await original(*arguments)

    monkeypatch.setattr(transfer, "_compare", damaged)
    with pytest.raises(CopyDiffers, match=r"jobs has id \d+, which should not be there"):
        await move_queue(source, target)


async def test_without_comparing_nothing_is_read_twice(files):
    source, target = files
    async with await open_store(source, create=True) as store:
        await fill(store, 3)
    steps = []
    moved = await move_queue(source, target, verify=False, on_step=steps.append)
    assert moved.checksum is None
    assert {step.doing for step in steps} == {"copying"}
    assert steps[-1].all_done == steps[-1].all_total


async def test_steps_tell_how_far_it_is(way, monkeypatch):
    source, target = way
    monkeypatch.setattr("batchq.store.copying.PAGE_ROWS", 10)
    async with await open_store(source, create=True) as store:
        await fill(store, 35)
    steps = []
    await move_queue(source, target, on_step=steps.append)
    assert [step.done for step in steps if (step.doing, step.table) == ("copying", "jobs")] == [10, 20, 30, 35]
    assert {step.total for step in steps if step.table == "jobs"} == {35}
    assert [step.all_done for step in steps] == sorted(step.all_done for step in steps)
    assert steps[-1].all_done == steps[-1].all_total


# Clocks.


async def test_times_follow_the_clock_of_the_target(way, monkeypatch):
    source, target = way
    there, here = Clock(), Clock()
    here.now += 3_600_000
    async with await open_queue(source, there) as store:
        await fill(store, 3)
        hand = Hand(store)
        first, second = await hand.claim(2)
        await hand.settle(retry(first, 100))
        await store.register(hand.runner)
    due = {row["id"]: row["claimable_at"] for row in rows_of(source, TABLES["jobs"])}
    assert due[second.job_id] == there.now + 60_000

    async def open_with_clock(location, **options):
        return await open_side(location, clock=lambda: (there if location == source else here).now, **options)

    monkeypatch.setattr(transfer, "open_side", open_with_clock)
    moved = await move_queue(source, target, force=True)
    assert moved.shift_ms == 3_600_000
    assert {row["id"]: row["claimable_at"] - 3_600_000 for row in rows_of(target, TABLES["jobs"])} == due
    ends = [row["ended_at"] for row in rows_of(target, TABLES["attempts"])]
    assert ends == [here.now]
    assert rows_of(target, TABLES["jobs"])[0]["finished_at"] is None
    async with await open_queue(target, here) as store:
        assert {batch.created_at for batch in await store.batches()} == {here.now}
        new = Hand(store, "new")
        await new.settle(*map(done, await new.claim(5)))
        assert not await new.claim(5)
        here.advance(60_001)
        assert [claim.job_id for claim in await Hand(store, "new").claim(5)] == [second.job_id]


@pytest.mark.parametrize("ahead", [-900, 900])
async def test_clocks_that_nearly_agree_change_nothing(files, monkeypatch, ahead):
    source, target = files
    there, here = Clock(), Clock()
    here.now += ahead
    async with await open_queue(source, there) as store:
        await fill(store, 3)

    async def open_with_clock(location, **options):
        return await open_side(location, clock=lambda: (there if location == source else here).now, **options)

    monkeypatch.setattr(transfer, "open_side", open_with_clock)
    assert (await move_queue(source, target)).shift_ms == 0
    assert whole(target) == whole(source)


# Extremes.


async def test_large_rows_come_a_few_at_a_time(way):
    source, target = way
    async with await open_store(source, create=True) as store:
        batch = await store.open_batch(NewBatch("large", "echo"))
        large = [NewJob(n, None, f"{n:032x}", encode(f"{n}" + "x" * 1_000_000)) for n in range(30)]
        small = [NewJob(n, None, f"{n:032x}", encode(n)) for n in range(30, 5_030)]
        for start in range(0, 30, 4):
            await store.add_jobs(batch, large[start : start + 4])
        for start in range(0, len(small), 2_000):
            await store.add_jobs(batch, small[start : start + 2_000])
        await store.seal(batch)
    async with await open_side(source) as side:
        sizes, after = [], None
        side._first_rows = 4
        while page := await side.page(TABLES["jobs"], after):
            sizes.append((sum(len(str(row)) for row in page.rows), len(page.rows)))
            after = page.last
    assert max(size for size, _ in sizes) < 5_100_000
    assert max(rows for _, rows in sizes) == 2_000
    assert sum(rows for _, rows in sizes) == 5_030
    await move_queue(source, target)
    assert whole(target) == whole(source)


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_either_driver_takes_all_there_is(place, driver):
    source, target = place("sqlite", "source"), place("postgresql", "target").replace("+psycopg", f"+{driver}")
    await make_all_there_is(source)
    out = await move_queue(source, target)
    back = await move_queue(target, place("sqlite", "back"))
    assert out.checksum == back.checksum


async def test_a_text_that_the_target_can_not_hold_is_an_error_of_the_data(place):
    source, target = place("sqlite", "source"), place("postgresql", "target")
    async with await open_store(source, create=True) as store:
        await fill(store, 1)
    with connect(source) as raw:
        raw.execute("UPDATE jobs SET meta = ?", ["a\x00b"])
    with pytest.raises(DataRefused):
        await move_queue(source, target)
    with connect(source) as raw:
        raw.execute("UPDATE jobs SET meta = NULL")
    await move_queue(source, target)


# The command.


def test_the_command_says_what_it_did(tmp_path):
    with bench(tmp_path) as shell:
        shell.write_prompts(30)
        assert shell.run("enqueue", "prompts.jsonl", "--worker", "echo", "--batch", "demo").returncode == 0
        assert shell.run("worker", "--until-empty").returncode == 0
        moved = shell.run("db", "copy", "runs.db", "new.db", "--json")
        assert moved.returncode == 0, moved.stderr
        data = json.loads(moved.stdout)
        assert (data["rows"]["jobs"], data["rows"]["attempts"], data["states"]) == (30, 30, {"done": 30})
        assert data["checksum"] in moved.stderr
        assert "copied 1 batch, 30 jobs (30 done), 30 attempts, 0 lanes; compared" in moved.stderr
        assert f"runs.db is only read from now on; use {tmp_path / 'new.db'}" in moved.stderr
        refused = shell.run("worker", "--until-empty")
        assert refused.returncode == 1
        assert str(tmp_path / "new.db") in refused.stderr
        refused = shell.run("run", "prompts.jsonl", "-o", "out.jsonl", "--worker", "echo")
        assert (refused.returncode, "went to" in refused.stderr) == (1, True)
        assert len(shell.results("demo")) == 30
        assert len(shell.results("demo", "--db", "new.db")) == 30
        again = shell.run("db", "copy", "runs.db", "new.db")
        assert (again.returncode, again.stdout) == (0, "")
        assert "already" in again.stderr


def test_the_command_refuses_with_a_sentence(tmp_path):
    with bench(tmp_path) as shell:
        shell.write_prompts(3)
        assert shell.run("enqueue", "prompts.jsonl", "--worker", "echo").returncode == 0
        for arguments, code, sentence in (
            (("none.db", "new.db"), 2, "there is no queue at"),
            (("runs.db", "./runs.db"), 2, "same database"),
            (("runs.db", "mysql://host/x"), 78, "not supported"),
            (("runs.db", "new.db", "--undo"), 0, "was not copied away"),
        ):
            ended = shell.run("db", "copy", *arguments)
            assert (ended.returncode, sentence in ended.stderr) == (code, True), ended.stderr
        assert not (tmp_path / "new.db").exists()
        secret = shell.run("db", "copy", "runs.db", "postgresql://me:sesame@127.0.0.1:1/none")
        assert secret.returncode == 1
        assert "sesame" not in secret.stderr


def test_progress_is_told_and_so_is_how_to_go_on(tmp_path):
    slow = (
        "import asyncio, sys\n"
        "from batchq.display import steps\n"
        "from batchq.store import copying\n"
        "steps.LINE_SECONDS = 0.0\n"
        "copying.PAGE_ROWS = 5\n"
        "append = copying.Side.append\n"
        "async def slowly(*arguments):\n"
        "    await asyncio.sleep(0.2)\n"
        "    await append(*arguments)\n"
        "copying.Side.append = slowly\n"
        "from batchq.cli import main\n"
        "main()\n"
    )
    with bench(tmp_path) as shell:
        shell.write_prompts(40)
        assert shell.run("enqueue", "prompts.jsonl", "--worker", "echo").returncode == 0
        (tmp_path / "slow.py").write_text(slow)
        with (tmp_path / "errors").open("w") as errors:
            process = subprocess.Popen(
                [sys.executable, "slow.py", "db", "copy", "runs.db", "new.db"],
                cwd=tmp_path,
                env=shell.environment,
                stderr=errors,
            )
            shell.started.append(process)
            told_so_far = (tmp_path / "errors").read_text
            wait_for(lambda: "copying jobs: 15 of 40" in told_so_far(), "some progress")
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 130
        text = told_so_far()
        assert "rows/s" in text
        assert "left" in text
        assert "run the same command again to go on, or with --undo" in text
        assert shell.run("worker", "--until-empty").returncode == 1
        undone = shell.run("db", "copy", "runs.db", "new.db", "--undo")
        assert (undone.returncode, "can be used again" in undone.stderr) == (0, True)
        assert shell.run("worker", "--until-empty").returncode == 0


async def test_texts_come_in_one_order_whatever_language_a_database_was_made_for(postgres, place, monkeypatch):
    """Keys that are texts stand in another order there: "a" before "B", "_" before both."""
    name = f"batchq_test_{uuid.uuid4().hex}"
    postgres.execute(f"CREATE DATABASE {name} TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'en' LOCALE 'C'")
    try:
        target = f"{postgres.url().rpartition('/')[0]}/{name}"
        source = place("sqlite", "source")
        async with await open_queue(source, past()) as store:
            await fill(store, 20)
            for runner in ("a", "B", "_", "é", "ba", "A"):
                await store.set_limits(runner, "http://localhost/v1", "m", Limits(rpm=5))
                hand = Hand(store, runner)
                await store.register(hand.runner)
                await hand.settle(done((await hand.claim(1))[0]))
        monkeypatch.setattr("batchq.store.copying.PAGE_ROWS", 2)
        await move_queue(source, target)
        assert whole(target) == whole(source)
        with connect(target) as raw:
            told_by_database = [row["id"] for row in raw.execute("SELECT id FROM runners ORDER BY id")]
        assert told_by_database != sorted(told_by_database), "this database has no order of its own"
    finally:
        postgres.drop_database(name)


async def test_a_server_that_drops_its_connections_holds_nothing_up(way, monkeypatch):
    source, target = way
    monkeypatch.setattr("batchq.store.copying.PAGE_ROWS", 10)
    async with await open_store(source, create=True) as store:
        await fill(store, 50)
    on_server = source if "://" in source else target

    def drop(_step):
        change(
            on_server,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )

    await move_queue(source, target, on_step=drop)
    assert whole(target) == whole(source)


async def test_rows_that_a_dying_server_was_to_take_are_an_outage(place):
    """COPY goes past SQLAlchemy, and its errors must mean what those of statements do."""
    async with await open_side(place("postgresql", "one"), create=True) as side:

        def die(tx):
            (pid,) = tx.connection.exec_driver_sql("SELECT pg_backend_pid()").one()
            change(side._database._url.render_as_string(hide_password=False), f"SELECT pg_terminate_backend({pid})")
            copy_rows(tx, meta, ("name", "value"), [("a", "b")] * 10_000)

        with pytest.raises(DatabaseUnavailable):
            await side._database.write(die)
