"""A queue that was moved away says so to whoever reads it, and whoever would work on it hears it first."""

import asyncio
import json

import pytest
import structlog
from postgres import fresh_database
from store_driver import Hand, done, fill

from batchq.checkup import check_database
from batchq.cli.commands import batchq
from batchq.cli.exits import run_command
from batchq.errors import QueueMoved
from batchq.store import open_store
from batchq.transfer import move_queue, take_back

pytestmark = pytest.mark.anyio


@pytest.fixture
def moved(tmp_path, monkeypatch):
    """A queue with a batch that ended and one that waits, moved from runs.db to new.db."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BATCHQ_DB", raising=False)
    asyncio.run(make_and_move())
    return str(tmp_path / "new.db")


async def make_and_move():
    async with await open_store("runs.db", create=True) as store:
        await fill(store, 1, "ended")
        hand = Hand(store)
        await hand.settle(done(*await hand.claim(1)))
        await fill(store, 2, "waiting")
    await move_queue("runs.db", "new.db", force=True)


@pytest.fixture
def run(moved, capfd):
    def call(*arguments, db="runs.db"):
        capfd.readouterr()
        code = run_command(batchq, [*arguments, "--db", db])
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    yield call
    structlog.reset_defaults()


@pytest.fixture
def sentence(moved):
    return f"this queue was moved to {moved} (or is being copied there by `batchq db copy`): it is only read here"


async def test_the_store_knows_where_its_queue_is(moved):
    async with await open_store("runs.db") as old, await open_store("new.db") as new:
        assert (await old.moved_to(), await new.moved_to()) == (moved, None)
        await new.refuse_moved()
        with pytest.raises(QueueMoved, match=r"runs\.db is only read from now on: its queue went to .*new\.db"):
            await old.refuse_moved()
        await take_back("runs.db", "new.db", force=True)
        assert await old.moved_to() is None


async def test_no_password_is_told(tmp_path, postgres, postgres_connection):
    source = str(tmp_path / "runs.db")
    async with await open_store(source, create=True):
        pass
    with fresh_database(postgres, postgres_connection) as target:
        await move_queue(source, f"{target}{'&' if '?' in target else '?'}password=s3cret")
    async with await open_store(source) as store:
        place = await store.moved_to()
    assert place.startswith("postgresql+psycopg://")
    assert "s3cret" not in place


def test_status_begins_with_it_and_gives_no_advice(run, sentence, moved):
    code, out, err = run("status")
    assert (code, err, out.splitlines()[0]) == (0, "", sentence)
    assert " waits: " not in out
    found = json.loads(run("status", "--json")[1])
    assert found["moved_to"] == moved
    assert [batch["waiting"] for batch in found["batches"]] == [None, None]


def test_a_queue_that_is_in_use_says_nothing(run):
    code, out, _ = run("status", db="new.db")
    assert (code, out.splitlines()[0].startswith("database ")) == (0, True)
    assert " waits: no live worker" in out
    assert json.loads(run("status", "--json", db="new.db")[1])["moved_to"] is None
    assert run("collect", "ended", db="new.db")[2].startswith("batchq: ended: 1 done")


def test_show_says_so_on_stderr(run, sentence):
    code, out, err = run("show", "ended", "0")
    assert (code, err, out.startswith("ended 0")) == (0, f"batchq: {sentence}\n", True)


def test_collect_says_so_and_waits_for_nothing(run, sentence):
    code, out, err = run("collect", "ended")
    assert (code, err.splitlines()[0], len(out.splitlines())) == (0, f"batchq: {sentence}", 1)
    code, out, err = run("collect", "waiting", "--no-wait")
    assert (code, err.splitlines()[0], len(out.splitlines())) == (0, f"batchq: {sentence}", 2)
    for options in ([], ["--follow"]):
        code, out, err = run("collect", "waiting", *options)
        assert (code, out, len(err.splitlines())) == (1, "", 1)
        assert err.startswith(f"batchq: {sentence}: waiting has 2 unfinished jobs")
        assert "--no-wait" in err


def test_a_worker_refuses_before_it_says_that_it_serves(run, moved):
    code, _, err = run("worker", "--until-empty", "--worker", "echo")
    events = [json.loads(line) for line in err.splitlines()]
    assert (code, [event["event"] for event in events]) == (1, ["worker.failed"])
    assert moved in events[0]["reason"]


async def test_db_check_warns(moved, sentence):
    found = [finding async for finding in check_database("runs.db", recount=True)]
    assert [(each.level, each.message) for each in found if each.level != "ok"] == [("warning", sentence)]
