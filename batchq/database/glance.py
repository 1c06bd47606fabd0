"""Names of batches at a glance, for a shell that completes a word: from whatever is there, without a wait.

Opens nothing that has to be made, upgraded or locked, and knows of no schema but one column.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from batchq.database.location import locate

_SECONDS = 1
# Sorts behind whatever a name goes on with.
_LAST = "\U0010ffff"


def names_at_a_glance(location: str, prefix: str, most: int) -> list[str]:
    """Return names of batches that begin with `prefix`. Raises whatever keeps them from being read."""
    place = locate(location)
    if isinstance(place, Path):
        return _names_in_file(place, prefix, most)
    import psycopg

    url = place.set(drivername="postgresql").render_as_string(hide_password=False)
    statement = "SELECT name FROM batches WHERE starts_with(name, %s) LIMIT %s"
    with psycopg.connect(url, connect_timeout=_SECONDS, options=f"-c statement_timeout={_SECONDS}s") as connection:
        return [str(name) for (name,) in connection.execute(statement, (prefix, most))]


def _names_in_file(path: Path, prefix: str, most: int) -> list[str]:
    """Read a file that nobody may change by this; one without a log beside it can't even grow one."""
    unchanging = not path.with_name(f"{path.name}-wal").exists()
    url = f"{path.as_uri()}?{'mode=ro&immutable=1' if unchanging else 'mode=ro'}"
    statement = "SELECT name FROM batches WHERE name >= ? AND name < ? LIMIT ?"
    with closing(sqlite3.connect(url, uri=True, timeout=_SECONDS)) as connection:
        return [str(name) for (name,) in connection.execute(statement, (prefix, prefix + _LAST, most))]
