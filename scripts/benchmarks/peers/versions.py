"""What is installed from the package index, and in which versions: the one place that says so."""

from __future__ import annotations

REQUIREMENTS: dict[str, tuple[str, ...]] = {
    "dbos": ("dbos>=3.4,<4", "psycopg[binary]>=3.3,<4"),
    "procrastinate": ("procrastinate>=3.10,<4", "psycopg[binary,pool]>=3.3,<4", "uvloop>=0.22,<1"),
    "pgqueuer": ("pgqueuer[asyncpg]>=1.6,<2", "psycopg[binary]>=3.3,<4"),
    "huey": ("huey>=3.5,<4",),
    "litequeue": ("litequeue>=0.9,<1",),
}
