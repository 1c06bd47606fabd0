"""Finds the rows of an input that make the same request: the first one leads, the others follow it.

The keys stand in a temporary SQLite file, so that memory does not grow with the input.
"""

from __future__ import annotations

from collections.abc import Iterator

from batchq.database.scratch import Scratch

_FLUSH_ROWS = 5_000
_FOLLOWERS = """
    INSERT INTO followers
    SELECT row, leader FROM (SELECT row, key, min(row) OVER (PARTITION BY key) AS leader FROM seen) WHERE row > leader
    ORDER BY row
"""
_LEADERS = "SELECT f.row, s.name FROM followers f JOIN seen s ON s.row = f.leader WHERE f.row >= 0 ORDER BY f.row"

Name = int | str


class Leaders:
    """The keys of rows in order; those with a negative number are in the batch already."""

    def __init__(self) -> None:
        """Make the file, which is gone when it is closed."""
        self._scratch = Scratch(
            "CREATE TABLE seen (row INTEGER PRIMARY KEY, key BLOB NOT NULL, name NOT NULL)",
            "CREATE TABLE followers (row INTEGER PRIMARY KEY, leader INTEGER NOT NULL)",
        )
        self._seen: list[tuple[int, bytes, Name]] = []

    def close(self) -> None:
        """Remove the file."""
        self._scratch.close()

    def saw(self, row: int, key: str, name: Name) -> None:
        """Remember a row, with the name by which others would call it their leader."""
        self._seen.append((row, bytes.fromhex(key), name))
        if len(self._seen) == _FLUSH_ROWS:
            self._flush()

    def decide(self) -> None:
        """Find the leaders of all rows that were seen. It takes seconds for millions: call it in a thread."""
        self._flush()
        self._scratch.run(_FOLLOWERS)

    def followers(self) -> Iterator[tuple[int, Name]]:
        """Yield each row of the input that follows another, in order, with its leader's name."""
        return self._scratch.rows(_LEADERS)

    def _flush(self) -> None:
        self._scratch.add("INSERT INTO seen VALUES (?, ?, ?)", self._seen)
        self._seen.clear()
