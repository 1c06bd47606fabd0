"""How far the move of a queue is: rows copied, then rows compared, of those that there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sqlalchemy import Table

from batchq.store.marks import Mark
from batchq.store.pages import TABLES, Page


@dataclass(frozen=True, slots=True)
class Step:
    """How far a move is: rows of one table that were copied, or compared, of how many; and of all tables."""

    doing: str
    table: str
    done: int
    total: int
    all_done: int
    all_total: int


OnStep = Callable[[Step], None]


class Progress:
    """Counts rows, of those that there are."""

    def __init__(self, totals: Mapping[str, int], *, passes: int, on_step: OnStep) -> None:
        self._totals = totals
        self._passes = passes
        self._on_step = on_step
        self._compared: Counter[str] = Counter()
        self._before = 0

    def begun(self, mark: Mark) -> None:
        self.copied(TABLES[mark.table], mark)

    def copied(self, table: Table, mark: Mark) -> None:
        self._before = sum(mark.rows.values())
        self._say("copying", table, mark.rows.get(table.name, 0), self._before)

    def compared(self, table: Table, page: Page) -> None:
        self._compared[table.name] += len(page.rows)
        done = max(self._before, sum(self._totals.values())) + self._compared.total()
        self._say("comparing", table, self._compared[table.name], done)

    def _say(self, doing: str, table: Table, done: int, all_done: int) -> None:
        # What was estimated may be less than there is.
        total = max(self._totals[table.name], done)
        all_total = max(self._passes * sum(self._totals.values()), all_done)
        self._on_step(Step(doing, table.name, done, total, all_done, all_total))
