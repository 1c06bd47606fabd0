"""Python, batchq and its extras, and the SQLite library."""

from __future__ import annotations

import platform
import re
import sqlite3
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from batchq.doctor.finding import Finding, error, ok, warning
from batchq.installed import installed_version

LEAST_PYTHON = (3, 11)
LEAST_SQLITE = (3, 35, 0)

# The extras that add an ability, and the package that each brings.
_EXTRAS = {
    "postgres": "psycopg", "asyncpg": "asyncpg", "parquet": "pyarrow", "pydantic-ai": "pydantic-ai-slim",
    "prices": "genai-prices", "otel": "opentelemetry-sdk", "speed": "uvloop",
}  # fmt: skip

Version = tuple[int, int, int]


def check_python() -> Iterator[Finding]:
    """Look at the interpreter, and at what it runs on."""
    what = f"{platform.python_implementation()} {platform.python_version()} on {platform.system()}"
    what += f" {platform.release()} ({platform.machine()}), {sys.executable or 'embedded'}"
    if sys.version_info < LEAST_PYTHON:
        yield error("python", what, f"batchq needs Python {LEAST_PYTHON[0]}.{LEAST_PYTHON[1]} or newer")
    elif sys.platform == "win32":
        yield warning("python", what, "workers end at once when stopped on Windows: use Linux or macOS for long runs")
    else:
        yield ok("python", what)


def check_batchq() -> Iterator[Finding]:
    """Look at the installed package, and at the extras that are there."""
    found = installed_version()
    if found is None:
        yield warning(
            "batchq",
            f"it runs from {Path(__file__).parents[1]} without being installed: workers that packages offer, also"
            " openrouter, are not found",
            "pip install batchq, or `pip install -e .` in its directory",
        )
        return
    extras = [f"{name} ({there})" for name, package in _EXTRAS.items() if (there := _version_of(package))]
    yield ok("batchq", f"{found}, with {', '.join(extras) if extras else 'no extras'}")
    if missing := [name for name in _needed() if _version_of(name) is None]:
        yield error("batchq", f"it needs {', '.join(missing)}, not installed", "pip install --force-reinstall batchq")


def check_sqlite() -> Iterator[Finding]:
    """Look at the SQLite library that Python uses."""
    found: Version = sqlite3.sqlite_version_info[:3]
    told = f"library {sqlite3.sqlite_version}"
    if found < LEAST_SQLITE:
        least = ".".join(map(str, LEAST_SQLITE))
        yield error("sqlite", told, f"batchq needs SQLite {least} or newer: use a newer Python, or PostgreSQL")
    elif has_wal_reset_bug(found):
        # No warning: batchq is safe with it, and most systems have no other.
        yield ok(
            "sqlite",
            f"{told}; it has the WAL-reset bug (sqlite.org/wal.html#walresetbug), which batchq is safe from: it moves"
            " the log with all writers shut out. Let no other program write to the file",
        )
    else:
        yield ok("sqlite", told)


def has_wal_reset_bug(found: Version) -> bool:
    """Whether a checkpoint of this SQLite may lose pages when it races with a writer that restarts the log."""
    mended = found >= (3, 51, 3) or (3, 50, 7) <= found < (3, 51, 0) or (3, 44, 6) <= found < (3, 45, 0)
    return found >= (3, 7, 0) and not mended


def _needed() -> list[str]:
    """Return the names of the packages that batchq can't do without."""
    needed = (line for line in requires("batchq") or () if "extra ==" not in line)
    return [name[0] for line in needed if (name := re.match(r"[\w.-]+", line))]


def _version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
