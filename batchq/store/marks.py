"""How far a copy is, as it stands in the target, and what a look at either database of a copy finds."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

from sqlalchemy import Table

from batchq.database.moving import Standing
from batchq.schema import jobs
from batchq.store.pages import Key, Page, states_of

# Stands for the id in the mark of a copy that nobody can go on with.
TAKEN_BACK = "taken back"


@dataclass(frozen=True, slots=True)
class Mark:
    """How far a copy is: the rows of `table` up to the key `after` are there, and all of the tables before it.

    `id` is that of the move, `origin` where it comes from, `shift_ms` what is added to all times; `rows` counts what
    is there by table, `states` the jobs.
    """

    id: str
    origin: str
    shift_ms: int = 0
    table: str = "batches"
    after: Key | None = None
    rows: Mapping[str, int] = field(default_factory=dict)
    states: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, text: str) -> Mark:
        """Return the mark that was written as `text`."""
        found = json.loads(text)
        after = found.pop("after")
        return cls(**found, after=None if after is None else tuple(after))

    @property
    def taken_back(self) -> bool:
        """Whether the queue was taken back where it came from: nobody can go on."""
        return self.id == TAKEN_BACK

    def __str__(self) -> str:
        """Return it as text, always the same for the same."""
        return json.dumps(asdict(self), sort_keys=True)

    def behind(self, table: Table, page: Page) -> Mark:
        """Return the mark for when a page is there, too."""
        rows = Counter(self.rows) + Counter({table.name: len(page.rows)})
        states = Counter(self.states) + Counter(states_of(page) if table is jobs else ())
        return replace(self, table=table.name, after=page.last, rows=dict(rows), states=dict(states))


@dataclass(frozen=True, slots=True)
class Found:
    """What a database is to a move: whole, in part or left; the ids of moves that it has to do with.

    `move` takes its queue away, `returner` is taking that back; `copied` brought a queue, `mark` tells of one that is
    on its way. `holds` tells whether there is a batch or a lane.
    """

    standing: Standing
    move: str | None
    returner: str | None
    copied: str | None
    mark: Mark | None
    holds: bool
    now: int

    @property
    def leaving(self) -> str | None:
        """The id of the move that takes the queue away, unless it is being taken back."""
        return None if self.returner else self.move
