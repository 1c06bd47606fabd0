"""What stands in the place of the schema version while a queue moves from one database to another, and after that.

`copying 2`: only a part of a queue is in it yet. `moved 2 PLACE`: the queue went, or is on its way, to PLACE; what is
left may be read. Whoever else comes is told so by his next transaction: two queues with the same jobs, both at work,
would pay for all of them twice.
"""

from __future__ import annotations

from dataclasses import dataclass

from batchq.errors import DatabaseUnavailable, QueueMoved
from batchq.schema import COPYING, MOVED


@dataclass(frozen=True, slots=True)
class Standing:
    """Which schema a database has, and whether the queue in it is whole (no word), in part, or gone to a place."""

    schema: str
    word: str | None = None
    place: str = ""

    @classmethod
    def read(cls, version: str | None) -> Standing:
        """Take apart what stands in the place of the version."""
        word, _, rest = (version or "").partition(" ")
        if word not in {COPYING, MOVED} or not rest:
            return cls(version or "")
        schema, _, place = rest.partition(" ")
        return cls(schema, word, place)

    def __str__(self) -> str:
        """Return what to put into the place of the version."""
        return " ".join(part for part in (self.word, self.schema, self.place) if part)


def schema_in_use(location: object, version: str | None, *, writing: bool) -> str | None:
    """Return the version of the schema. Raises DatabaseUnavailable where there is only a part, QueueMoved."""
    found = Standing.read(version)
    if found.word == COPYING:
        raise DatabaseUnavailable(
            f"{location} holds only a part of a queue yet: `batchq db copy` is filling it, or has to be run again"
        )
    if found.word == MOVED and writing:
        raise queue_moved(location, found.place)
    return version if found.word is None else found.schema


def queue_moved(location: object, place: str) -> QueueMoved:
    """Return the error for who would work on a queue that went to another place."""
    return QueueMoved(
        f"{location} is only read from now on: its queue went to {place}, use that;"
        " `batchq db copy … --undo` takes it back"
    )
