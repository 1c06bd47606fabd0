"""What a SQLite file is, before it is taken for a queue: there, a database, one of batchq's, in the right mode."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from batchq.database import FileFacts
from batchq.doctor.finding import Finding, error, ok, warning

_MB = 1024**2
# So much of a file may be unused before it is worth mentioning.
_UNUSED_PART, _UNUSED_BYTES = 0.5, 1024**3


def check_file(path: Path, *, chosen: bool) -> Iterator[Finding]:
    """Say what is wrong with a path before it is opened; nothing where a file is there. `chosen` is not by default."""
    advice = "`batchq enqueue` makes one; or name another with --db or BATCHQ_DB"
    if not path.exists():
        told = f"there is no queue at {path}"
        yield error("database", told, advice) if chosen else warning("database", f"{told} yet", advice)
    elif path.is_dir():
        yield error("database", f"{path} is a directory", "name a file in it with --db")
    elif not path.is_file():
        yield error("database", f"{path} is no regular file, and can't hold a queue", "name another with --db")


def judge_facts(path: Path, facts: FileFacts) -> Iterator[Finding]:
    """Say what a file is, by what it says of itself."""
    if facts.empty:
        yield error("database", f"{path} is empty: there is no queue in it", "`batchq enqueue` makes one")
        return
    if not facts.ours:
        yield error("database", f"{path} is a database, but not one of batchq's", "name another with --db")
        return
    size, unused = facts.pages * facts.page_bytes, facts.free_pages * facts.page_bytes
    told = f"{path}, {size / _MB:,.1f} MB"
    if unused > _UNUSED_BYTES and unused > size * _UNUSED_PART:
        yield warning(
            "database", f"{told}, of which {unused / _MB:,.0f} MB are unused: new batches will use them",
            f"to give them back, stop all processes, and `sqlite3 {path} VACUUM`",
        )  # fmt: skip
    else:
        yield ok("database", told)
    if facts.journal_mode == "wal":
        yield ok("journal", "write-ahead log (WAL), as it should be")
    else:
        yield warning(
            "journal",
            f"journal mode {facts.journal_mode}, where WAL lets readers and a writer work side by side:"
            " something else than batchq has switched it",
            "nothing, if a copy was made so: the next batchq command switches it back",
        )
