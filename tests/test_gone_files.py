"""A queue's file is deleted or replaced while it is open: that is noticed before anything is written or called."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_provider import running_provider
from processes import bench, wait_for
from raw_connection import connect
from store_driver import Clock, Hand, done, fill, open_queue

from batchq.database.sqlite import SqliteWatcher, checkpoint
from batchq.errors import DatabaseGone

pytestmark = pytest.mark.anyio


def delete(name: str) -> Callable[[Path], None]:
    return lambda path: path.with_name(path.name + name).unlink()


def replace(path: Path) -> None:
    copy = path.with_name("copy")
    shutil.copy(path, copy)
    copy.rename(path)


def move_away(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))


HAPPENINGS = {
    "deleted": (delete(""), r"queue\.db was deleted or moved away"),
    "moved": (move_away, r"queue\.db was deleted or moved away"),
    "replaced": (replace, r"queue\.db was replaced by another file"),
    "log deleted": (delete("-wal"), r"queue\.db-wal was deleted or moved away"),
    "index deleted": (delete("-shm"), r"queue\.db-shm was deleted or moved away"),
}


@pytest.mark.parametrize("what", HAPPENINGS)
async def test_a_file_that_is_gone_is_neither_read_nor_written_any_more(path, clock, what):
    happen, message = HAPPENINGS[what]
    async with await open_queue(path, clock) as store:
        await fill(store, 2)
        hand = Hand(store)
        (claim,) = await hand.claim(1)
        happen(path)
        left = {file.name: file.read_bytes() for file in path.parent.iterdir() if not file.name.endswith("-shm")}

        for ask in (hand.settle(done(claim)), hand.claim(1), store.batches()):
            with pytest.raises(DatabaseGone, match=message):
                await ask

        assert left == {
            file.name: file.read_bytes() for file in path.parent.iterdir() if not file.name.endswith("-shm")
        }


async def test_what_was_committed_survives_the_deletion_of_the_log_where_one_process_had_it_open(path, clock):
    async with await open_queue(path, clock) as store:
        await fill(store, 2)
        hand = Hand(store)
        await hand.settle(*(done(claim) for claim in await hand.claim(2)))
        delete("-wal")(path)
        with pytest.raises(DatabaseGone):
            await store.batches()
    async with await open_queue(path, clock) as store:
        assert (await store.progress("demo")).counts.done == 2


async def test_no_file_is_made_in_the_place_of_one_that_is_gone(path):
    watcher = SqliteWatcher(path)
    assert not watcher.changed()
    watcher.close()
    assert not path.exists()


async def test_the_log_of_another_file_is_never_folded_in(path, clock, monkeypatch):
    """The write lock is one on the file that was opened, and keeps nobody out of the other one."""
    monkeypatch.setattr(checkpoint, "CHECKPOINT_BYTES", 0)
    folded = []
    monkeypatch.setattr(checkpoint.Checkpointer, "_fold_in", lambda _self: folded.append(1))
    async with await open_queue(path, clock) as store:
        database = store._database
        replace(path)
        await database._writer.call(database._checkpointer.run)
        assert not folded


async def test_the_log_of_a_queue_behind_a_link_is_folded_in(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "CHECKPOINT_BYTES", 128 * 1024)
    (tmp_path / "there").mkdir()
    link = tmp_path / "link.db"
    link.symlink_to("there/queue.db")
    async with await open_queue(link, Clock()) as store:
        await fill(store, 160)
        hand, sizes = Hand(store), []
        for _ in range(40):
            await hand.settle(*(done(claim, "x" * 4_000) for claim in await hand.claim(4)))
            sizes.append((tmp_path / "there" / "queue.db-wal").stat().st_size)
        assert 128 * 1024 < max(sizes) < 384 * 1024


def test_a_worker_whose_file_was_replaced_stops_and_says_what_is_lost(tmp_path):
    with running_provider(latency=0.3) as provider, bench(tmp_path) as place:
        place.write_prompts(60)
        assert place.run("enqueue", "prompts.jsonl", "--batch", "demo", "--model", "m").returncode == 0
        worker = place.start("worker", "--base-url", provider.base_url, "-c", "4")
        wait_for(lambda: place.count("done") >= 4, "the first answers")
        replace(tmp_path / "runs.db")
        assert worker.wait(30) == 1

        calls = provider.ledger()["calls"]
        (told,) = [json.loads(line) for line in place.errors(worker).splitlines() if "worker.failed" in line]
        assert "runs.db was replaced by another file while this process had it open" in told["reason"]
        lost, broken = (int(word) for word in told["reason"].split() if word.isdecimal())
        assert 1 <= lost + broken <= 4
        assert "Traceback" not in place.errors(worker)
        # What is in the place of the old file was left alone, and no call was made that could not be stored.
        with connect(tmp_path / "runs.db") as found:
            assert found.tuples("SELECT count(*) FROM jobs") == [(60,)]
        assert provider.ledger()["calls"] == calls
