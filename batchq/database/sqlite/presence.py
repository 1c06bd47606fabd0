"""Whether the files of an open queue are still in their places: what is written into a deleted one is lost."""

from __future__ import annotations

import os
from pathlib import Path

from batchq.errors import DatabaseGone

Identity = tuple[int, int] | None

_ADVICE = (
    "stop whatever else works on it; then put the right file back, with the -wal that belongs to it or with none, or"
    " begin a new queue"
)


class Presence:
    """A queue's file, its log and the index of that: as they were when it was opened, and as they are.

    SQLite does not look at them again: it would go on with what nobody else can find any more.
    """

    def __init__(self, path: Path) -> None:
        """Take down which file it is, before it is opened."""
        real = os.path.realpath(path)  # where SQLite puts the others, too
        self._paths = (str(path), f"{real}-wal", f"{real}-shm")
        self._file = _identity(self._paths[0])
        self._opened: tuple[Identity, ...] = ()

    def settle(self) -> None:
        """Take down the files beside it, which are there once it was read. Raises DatabaseGone."""
        self._opened = tuple(map(_identity, self._paths))
        if self._opened[0] != self._file:
            raise _gone(self._paths[0], self._opened[0])

    def check(self) -> None:
        """Raise DatabaseGone if a file is not in its place any more; costs microseconds."""
        if (gone := self.gone()) is not None:
            raise gone

    def gone(self) -> DatabaseGone | None:
        """Return what to raise if a file is not in its place any more."""
        for path, opened in zip(self._paths, self._opened, strict=False):
            if (found := _identity(path)) != opened:
                return _gone(path, found)
        return None


def _gone(path: str, found: Identity) -> DatabaseGone:
    happened = "deleted or moved away" if found is None else "replaced by another file"
    return DatabaseGone(f"{path} was {happened} while this process had it open: {_ADVICE}")


def _identity(path: str) -> Identity:
    """Return what tells one file from another, whatever it is called."""
    try:
        found = os.stat(path)  # noqa: PTH116 - pathlib takes longer, and this is asked in every transaction
    except OSError:
        return None
    return found.st_dev, found.st_ino
