"""What a disk may hold after the power was cut, at any moment of a run, and whether that is enough.

A write is on the disk for certain when its file was synced after it; a file's name is in its directory when that was.
Whatever came since may be there in any part: nothing of it, or writes of it in no order, torn between sectors.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from sqlite_disk import Event

SECTOR = 512
Image = dict[str, bytes]


@dataclass
class _File:
    """What is safe of a file, what came since, and whether its name is safe."""

    safe: bytearray = field(default_factory=bytearray)
    since: list[Event] = field(default_factory=list)
    named: bool = False


@dataclass(frozen=True)
class Cut:
    """A moment at which the power may go: what was reported before it, and a disk that may be found after it."""

    number: int
    said: tuple[object, ...]
    image: Image


class _Disk:
    """The files as they may be found, kept up with a run."""

    def __init__(self, before: Image) -> None:
        self._files = {name: _File(bytearray(content), named=True) for name, content in before.items()}
        # Deleted, but not for certain.
        self._ghosts: dict[str, _File] = {}

    def take(self, event: Event) -> None:
        match event.kind:
            case "created":
                self._files[event.name] = _File()
            case "write" | "truncate":
                self._files[event.name].since.append(event)
            case "sync":
                self._sync(self._files[event.name], directory=event.directory)
            case "delete":
                gone = self._files.pop(event.name)
                if gone.named and not event.directory:
                    self._ghosts[event.name] = gone

    def _sync(self, file: _File, *, directory: bool) -> None:
        for event in file.since:
            _put(file.safe, event, event.data)
        file.since.clear()
        if directory:
            self._ghosts.clear()
            for other in self._files.values():
                other.named = True

    def forgetful(self) -> Image:
        """Only what is safe."""
        return {name: bytes(file.safe) for name, file in (self._ghosts | self._files).items() if file.named}

    def partial(self, chance: random.Random) -> Image:
        """Some of the rest as well."""
        image = {}
        for name, file in self._files.items():
            if not file.named and chance.random() < 0.3:
                continue
            content, share = bytearray(file.safe), chance.choice([0.1, 0.5, 0.9])
            for event in file.since:
                if chance.random() < share:
                    _put(content, event, _torn(event, chance))
            image[name] = bytes(content)
        ghosts = {name: bytes(file.safe) for name, file in self._ghosts.items() if chance.random() < 0.5}
        return ghosts | image


def _put(content: bytearray, event: Event, data: bytes) -> None:
    if event.kind == "truncate":
        del content[event.offset :]
        return
    if len(content) < event.offset:
        content.extend(bytes(event.offset - len(content)))
    content[event.offset : event.offset + len(data)] = data


def _torn(event: Event, chance: random.Random) -> bytes:
    """All of a write, or, now and then, its first sectors only."""
    if event.kind == "truncate" or chance.random() < 0.7:
        return event.data
    first = -event.offset % SECTOR
    whole = range(first, len(event.data) + 1, SECTOR)
    return event.data[: chance.choice([0, *whole])]


def cuts(before: Image, events: Sequence[Event], *, variants: int, seed: int) -> Iterator[Cut]:
    """All moments that can be told apart after a cut that keeps only what is safe; `variants` more of each interval.

    Between two syncs the disk holds the same for certain, whatever is written: but more may have been reported.
    """
    disk, chance, said = _Disk(before), random.Random(seed), []
    last: tuple[Image, int] | None = None
    extra = _spread(events, variants, chance)
    for number, event in enumerate(events):
        if event.kind == "acknowledged":
            said.append(event.said)
        else:
            disk.take(event)
        if event.kind in {"created", "sync", "delete", "acknowledged"}:
            image = disk.forgetful()
            if (image, len(said)) != last:
                last = image, len(said)
                yield Cut(number, tuple(said), image)
        for _ in range(extra.get(number, 0)):
            yield Cut(number, tuple(said), disk.partial(chance))


def _spread(events: Sequence[Event], variants: int, chance: random.Random) -> dict[int, int]:
    """How often to cut in another way behind which event: `variants` times between any two syncs."""
    found: dict[int, int] = {}
    begin = 0
    for number, event in enumerate(events):
        if event.kind == "sync" and number > begin:
            for _ in range(variants):
                place = chance.randrange(begin, number)
                found[place] = found.get(place, 0) + 1
            begin = number + 1
    return found


def lay_out(image: Image, directory: Path) -> None:
    """Put the files of a disk into a directory, and nothing else."""
    for file in directory.iterdir():
        file.unlink()
    for name, content in image.items():
        (directory / name).write_bytes(content)


def tables_of(path: Path) -> dict[str, list[sqlite3.Row]]:
    """What is in a database that was found after a cut; it must be whole. Nothing where there is none yet."""
    if not path.exists():
        return {}
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.row_factory = sqlite3.Row
        assert [tuple(row) for row in connection.execute("PRAGMA integrity_check")] == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        names = [row["name"] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: connection.execute(f"SELECT * FROM {name}").fetchall() for name in names}
