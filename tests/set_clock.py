"""`python -m set_clock ARGUMENTS` is `batchq ARGUMENTS` whose database shows another time than it is.

The file that CLOCK_FILE names holds by how many milliseconds, at any moment. OWN_CLOCK_OFF is by how many seconds the
process's own clock is off, and nobody else's.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from batchq import store
from batchq.cli import main

TRUE_TIME = time.time
open_database = store.open_database


class SetClock:
    """A clock that whoever holds its file sets; time passes on it."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __call__(self) -> int:
        """Return what it shows, in milliseconds since the epoch."""
        return round(TRUE_TIME() * 1000) + int(self._file.read_text())

    def set(self, seconds: float) -> None:
        """Set it, for all who read it, in one moment."""
        fresh = self._file.with_suffix(".new")
        fresh.write_text(str(round(seconds * 1000)))
        fresh.replace(self._file)


async def open_with_clock(location: str, **options: Any) -> Any:
    """Open a database that shows the time of the file."""
    return await open_database(location, **options | {"clock": SetClock(Path(os.environ["CLOCK_FILE"]))})


if __name__ == "__main__":
    if "CLOCK_FILE" in os.environ:
        store.open_database = open_with_clock
    off = float(os.environ.get("OWN_CLOCK_OFF", "0"))
    time.time = lambda: TRUE_TIME() + off
    main()
