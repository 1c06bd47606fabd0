"""Tables, indexes and CHECKs; the schema's version.

Ids are AUTOINCREMENT: a re-used id would be a hole in the fence that tokens make. Times are integer
milliseconds, money integer nano-dollars; payloads, results and errors are TEXT that holds
ASCII-escaped JSON, so that NUL and lone surrogates survive any database.
"""

from __future__ import annotations

from batchq.schema.base import metadata
from batchq.schema.batches import batches, meta, tallies
from batchq.schema.jobs import CLAIMABLE, ENDED, ENDED_KEY, FAILED, FINISHED, FOLLOWING, LIVE_STATES, attempts, jobs
from batchq.schema.workers import lanes, runners

__all__ = [
    "APPLICATION_ID",
    "CLAIMABLE",
    "COPYING",
    "ENDED",
    "ENDED_KEY",
    "FAILED",
    "FINISHED",
    "FOLLOWING",
    "LIVE_STATES",
    "MOVED",
    "REMOVED",
    "SCHEMA_VERSION",
    "attempts",
    "batches",
    "jobs",
    "lanes",
    "meta",
    "metadata",
    "runners",
    "tallies",
]

# A step from one version to the next is a revision in `migrations`, which makes of an old database what a new one is.
SCHEMA_VERSION = 2
# In the place of the version: the file was empty, and is being removed.
REMOVED = "removed"
# Before the version: only a part of a queue is in it yet; its queue went to another database (see database.moving).
COPYING = "copying"
MOVED = "moved"

# Written into the header of a SQLite file, so that a foreign file is told from an empty queue ("bchq").
APPLICATION_ID = 0x62636871
