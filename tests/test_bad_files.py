"""Files that can't be a queue, or may not be one: each is refused with a sentence and left as it was."""

from __future__ import annotations

import os
import re
import socket
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import anyio
import pytest
from processes import bench
from store_driver import Clock, Hand, fill, make_tables, open_queue

from batchq.conversation import Conversation
from batchq.errors import (
    BatchqError,
    ConfigurationError,
    DatabaseUnavailable,
    NoDatabase,
    NotABatchqDatabase,
    NotWritable,
)
from batchq.jobs import RunnerIdentity
from batchq.store import open_store

pytestmark = pytest.mark.anyio
POSIX = pytest.mark.skipif(os.name == "nt", reason="permission bits of POSIX")


def text(path: Path) -> None:
    path.write_text("a letter, and no database\n" * 100)


def zeros(path: Path) -> None:
    path.write_bytes(bytes(8192))


def foreign(path: Path) -> None:
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE jobs (id INTEGER PRIMARY KEY)")


async def queue(path: Path) -> None:
    async with await open_queue(path, Clock()) as store:
        await fill(store, 300)


async def without_beginning(path: Path) -> None:
    await queue(path)
    content = bytearray(path.read_bytes())
    content[:100] = os.urandom(100)
    path.write_bytes(content)


async def cut_off(path: Path) -> None:
    await queue(path)
    os.truncate(path, path.stat().st_size // 2)


async def overwritten(path: Path) -> None:
    await queue(path)
    content = bytearray(path.read_bytes())
    content[4096 : len(content) // 2] = b"\xff" * (len(content) // 2 - 4096)
    path.write_bytes(content)


RESCUE = r"go back to a backup.*\.recover"
BAD = {
    "text": (text, NotABatchqDatabase, r"no SQLite database.*name another with --db"),
    "zeros": (zeros, NotABatchqDatabase, r"no SQLite database"),
    "foreign": (foreign, NotABatchqDatabase, r"not one of batchq's; name another with --db"),
    "without beginning": (without_beginning, NotABatchqDatabase, RESCUE),
    "cut off": (cut_off, NotABatchqDatabase, RESCUE),
    "overwritten": (overwritten, NotABatchqDatabase, RESCUE),
}


async def use(path: Path, *, create: bool) -> None:
    """Do what commands do: they meet damage when they get to it, if not before."""
    async with await open_store(str(path), create=create) as store:
        await Hand(store).claim(300)
        async for _ in store.results(await store.batch("demo")):
            pass


@pytest.mark.parametrize("create", [False, True], ids=["found", "or created"])
@pytest.mark.parametrize("kind", BAD)
async def test_a_file_that_holds_no_whole_queue_is_refused_and_left_as_it_was(path, kind, create):
    make, error, message = BAD[kind]
    if (made := make(path)) is not None:
        await made
    before = path.read_bytes()
    with pytest.raises(error, match=message):
        await use(path, create=create)
    assert path.read_bytes() == before


def fifo(path: Path) -> None:
    os.mkfifo(path)


def bound_socket(path: Path) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as listening:
        directory = Path.cwd()
        os.chdir(path.parent)  # the names of sockets are short
        try:
            listening.bind(path.name)
        finally:
            os.chdir(directory)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@POSIX
@pytest.mark.parametrize("make", [Path.mkdir, fifo, bound_socket, device], ids=lambda make: make.__name__)
async def test_what_is_no_regular_file_is_refused_and_not_waited_for(path, make):
    make(path)
    with pytest.raises(DatabaseUnavailable, match="is no regular file"):
        await open_store(str(path), create=True)


@POSIX
async def test_a_link_that_leads_nowhere_is_no_queue_until_one_is_made(tmp_path):
    link = tmp_path / "link.db"
    link.symlink_to("queue.db")
    with pytest.raises(NoDatabase):
        await open_store(str(link))
    await queue(link)
    assert (tmp_path / "queue.db").is_file()


async def test_damage_that_a_worker_meets_ends_it_with_a_sentence(tmp_path):
    await overwritten(tmp_path / "runs.db")
    with bench(tmp_path) as place:
        for command in (["worker", "--worker", "echo"], ["status"], ["collect", "demo", "-o", "out.jsonl"]):
            ended = place.run(*command)
            assert ended.returncode == 1, command
            assert re.search(RESCUE, ended.stderr)
            assert "Traceback" not in ended.stderr
    assert not (tmp_path / "out.jsonl").exists()


# Permissions


class without_privileges:
    """Let the system ask for permission, also where it is root that runs the tests; to enter the directory is allowed."""

    def __init__(self, directory: Path) -> None:
        self._parents = [parent for parent in directory.parents if parent.stat().st_uid == os.geteuid() != 0] or [
            parent for parent in directory.parents if not parent.stat().st_mode & stat.S_IXOTH
        ]
        self._user = os.geteuid()

    def __enter__(self) -> None:
        self._modes = {parent: parent.stat().st_mode for parent in self._parents}
        if self._user == 0:
            for parent in self._parents:
                parent.chmod(self._modes[parent] | 0o111)
            os.seteuid(65534)

    def __exit__(self, *_: object) -> None:
        os.seteuid(self._user)
        if self._user == 0:
            for parent, mode in self._modes.items():
                parent.chmod(mode)


PERMISSIONS = (
    r"can't be (written|opened).*this user must be allowed to write it, its -wal and -shm, and their directory"
)


@POSIX
@pytest.mark.parametrize("create", [False, True], ids=["read", "written"])
@pytest.mark.parametrize("at_work", [False, True], ids=["left alone", "while another is at work"])
@pytest.mark.parametrize(
    ("modes", "message"),
    [
        ({"queue.db": 0o000}, r"can't open .*queue\.db|can't be opened"),
        ({"queue.db": 0o444, ".": 0o555}, PERMISSIONS),
        ({"queue.db": 0o666, ".": 0o555, "queue.db-wal": 0o000, "queue.db-shm": 0o000}, PERMISSIONS),
    ],
    ids=["no right to read", "read only", "no right to the log"],
)
async def test_missing_permissions_are_one_clear_error(tmp_path, modes, message, at_work, create):
    directory = tmp_path / "place"
    directory.mkdir()
    path = directory / "queue.db"
    await queue(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        if at_work:
            other.execute("UPDATE batches SET priority = 1")
        for name, mode in modes.items():
            if (directory / name).exists():
                (directory / name).chmod(mode)
        try:
            with without_privileges(directory), pytest.raises(BatchqError, match=message):
                await use_as_it_comes(path, create=create)
        finally:
            directory.chmod(0o755)


@POSIX
async def test_a_worker_that_may_read_and_not_write_ends_at_its_start(tmp_path):
    """Of two users of one queue, the first to open it may have made a log that the other may only read."""
    directory = tmp_path / "place"
    directory.mkdir()
    path = directory / "queue.db"
    await queue(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("UPDATE batches SET priority = 1")
        directory.chmod(0o777)
        for name, mode in {"queue.db": 0o666, "queue.db-shm": 0o666, "queue.db-wal": 0o444}.items():
            (directory / name).chmod(mode)
        with without_privileges(directory):
            async with await open_store(str(path)) as store:
                with anyio.fail_after(30), pytest.raises(NotWritable, match=PERMISSIONS):
                    await Conversation(
                        store, RunnerIdentity("second", "host", 1, 1, "echo", 60_000), lambda: 0, lambda: None
                    ).register()


async def use_as_it_comes(path: Path, *, create: bool) -> None:
    async with await open_store(str(path), create=create) as store:
        await store.progress("demo")
        await Hand(store).claim(1)


@POSIX
async def test_a_queue_is_not_made_where_the_user_may_not_write(tmp_path):
    tmp_path.chmod(0o555)
    try:
        with (
            without_privileges(tmp_path),
            pytest.raises(DatabaseUnavailable, match=r"can't create .*Permission denied"),
        ):
            await open_store(str(tmp_path / "queue.db"), create=True)
        assert list(tmp_path.iterdir()) == []
    finally:
        tmp_path.chmod(0o755)


@POSIX
@pytest.mark.parametrize(("setting", "mode"), [(None, 0o600), ("0600", 0o600), ("0660", 0o660)])
@pytest.mark.parametrize("mask", [0o000, 0o077])
async def test_a_queue_belongs_to_its_user_or_by_setting_to_a_group(path, monkeypatch, setting, mode, mask):
    monkeypatch.delenv("BATCHQ_DB_MODE", raising=False)
    if setting is not None:
        monkeypatch.setenv("BATCHQ_DB_MODE", setting)
    before = os.umask(mask)
    try:
        async with await open_queue(path, Clock()) as store:
            await fill(store, 1)
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    finally:
        os.umask(before)
    assert modes == dict.fromkeys(["queue.db", "queue.db-wal", "queue.db-shm"], mode)


@POSIX
async def test_the_mode_of_a_queue_that_is_there_is_left_alone(path, monkeypatch):
    await make_tables(str(path))
    monkeypatch.setenv("BATCHQ_DB_MODE", "0660")
    await make_tables(str(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_another_mode_is_a_mistake_in_the_settings(tmp_path):
    (tmp_path / "in.jsonl").write_text('"a prompt"\n')
    with bench(tmp_path, BATCHQ_DB_MODE="0666") as place:
        ended = place.run("enqueue", "in.jsonl", "--model", "m")
    assert ended.returncode == 78
    assert "BATCHQ_DB_MODE in the environment: Input should be '0600' or '0660'" in ended.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize("location", [":memory:", " :memory: ", "sqlite://", "sqlite:///:memory:"])
async def test_a_database_in_memory_is_refused_and_no_file_is_called_so(tmp_path, monkeypatch, location):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match="a queue needs a file"):
        await open_store(location, create=True)
    assert list(tmp_path.iterdir()) == []
