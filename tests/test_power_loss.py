"""The power is cut at every write of a run: what was reported is there afterwards, and the queue goes on."""

from __future__ import annotations

import asyncio
import sqlite3

import pytest
from older_databases import VERSION_1, make_version_1
from power_cut import cuts, lay_out, tables_of
from power_loss_run import SHORT_LOG, judge, record, survive
from sqlite_disk import watched_disk

from batchq.database.sqlite import checkpoint, opening
from batchq.schema import SCHEMA_VERSION
from batchq.store import open_store


@pytest.fixture(autouse=True)
def short_log(monkeypatch):
    monkeypatch.setattr(checkpoint, "CHECKPOINT_BYTES", SHORT_LOG)


@pytest.fixture
def found(tmp_path):
    """A directory for what is found after a cut."""
    directory = tmp_path / "found"
    directory.mkdir()
    return directory


@pytest.fixture
def run_in(tmp_path):
    directory = tmp_path / "run"
    directory.mkdir()
    return directory


def test_whatever_was_reported_is_there_after_a_power_cut_at_any_write(run_in, found):
    events = record(run_in, {}, jobs=18)
    # Not only commits: the file was made, folded its log in while it ran, and closed it.
    assert {"created", "delete"} <= {event.kind for event in events}
    assert sum(event.kind == "sync" and event.name == "queue.db" for event in events) >= 4

    assert survive(cuts({}, events, variants=2, seed=1), found, go_on_each=12) > 100


def test_a_power_cut_during_an_upgrade_leaves_the_old_queue_or_the_new_one(run_in, found):
    make_version_1(str(run_in / "queue.db"))
    before = {file.name: file.read_bytes() for file in run_in.iterdir()}

    async def upgrade() -> None:
        async with await open_store(str(run_in / "queue.db")):
            disk.acknowledge("upgraded")

    with watched_disk(run_in) as disk:
        asyncio.run(upgrade())
    versions = set()
    for cut in cuts(before, disk.events, variants=20, seed=1):
        lay_out(cut.image, found)
        tables = tables_of(found / "queue.db")
        (version,) = (row["value"] for row in tables["meta"] if row["name"] == "schema_version")
        assert [row["id"] for row in tables["jobs"]] == [row["id"] for row in VERSION_1["rows"]["jobs"]]
        assert version == str(SCHEMA_VERSION) or not cut.said
        versions.add(version)
    assert versions == {"1", str(SCHEMA_VERSION)}


def test_without_a_sync_for_each_commit_the_cuts_would_find_results_missing(run_in, found, monkeypatch):
    careless = tuple(pragma.replace("synchronous=FULL", "synchronous=NORMAL") for pragma in opening._PRAGMAS)
    monkeypatch.setattr(opening, "_PRAGMAS", careless)
    events = record(run_in, {}, jobs=6)
    with pytest.raises((AssertionError, KeyError)):
        survive(cuts({}, events, variants=0, seed=1), found, go_on_each=1_000)


class _Careless(sqlite3.Connection):
    def execute(self, sql, *parameters):
        return super().execute(sql.replace("synchronous=FULL", "synchronous=OFF"), *parameters)


def test_without_a_sync_before_the_log_begins_anew_the_cuts_would_find_a_broken_file(run_in, found, monkeypatch):
    connect = sqlite3.connect
    monkeypatch.setattr(checkpoint.sqlite3, "connect", lambda *args, **how: connect(*args, **how, factory=_Careless))
    events = record(run_in, {}, jobs=18)
    monkeypatch.undo()
    with pytest.raises((AssertionError, sqlite3.DatabaseError)):
        for cut in cuts({}, events, variants=0, seed=1):
            lay_out(cut.image, found)
            judge(cut, tables_of(found / "queue.db"))
