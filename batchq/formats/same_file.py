"""Which paths are one file, and which of them belong to the queue itself."""

from __future__ import annotations

import os
from pathlib import Path

from batchq.errors import UsageError


def same_file(one: Path, other: Path) -> bool:
    """Whether two paths are one file, by whatever links; also where it is not there yet."""
    try:
        return one.samefile(other)
    except (OSError, ValueError):
        return os.path.realpath(one) == os.path.realpath(other)


def refuse_queue(path: Path, database: Path) -> None:
    """Raise UsageError if writing to `path` would write to the queue: its database, or what SQLite keeps beside it."""
    for base in {database, Path(os.path.realpath(database))}:
        for ending in ("", "-wal", "-shm", "-journal"):
            if same_file(path, base.with_name(base.name + ending)):
                raise UsageError(f"{path} belongs to the queue {database}: name another file")
