"""Tallies: signed deltas per batch and writer, made in the transaction that changes the jobs."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from operator import itemgetter

from sqlalchemy import BigInteger, RowMapping, cast, delete, func, select

from batchq.database import Transaction
from batchq.database.dialect import json_list, upsert_adding
from batchq.jobs import ESTIMATE, Answered, Counts
from batchq.schema import tallies

PRODUCER = ""
KEY = ("batch_id", "runner")
COUNTERS = tuple(column.name for column in tallies.columns if column.name not in KEY)

_Deltas = dict[str, int]


class Tally:
    """Collects what a transaction changed and writes it as one row per batch."""

    def __init__(self) -> None:
        """Start with nothing changed."""
        self._batches: defaultdict[int, _Deltas] = defaultdict(lambda: dict.fromkeys(COUNTERS, 0))

    def move(self, batch_id: int, source: str | None, target: str | None, weight: int = 1) -> None:
        """Count `weight` jobs leaving one state for another."""
        deltas = self._batches[batch_id]
        if source is not None:
            deltas[source] -= weight
        if target is not None:
            deltas[target] += weight

    def count(self, batch_id: int, counter: str, amount: int = 1) -> None:
        """Add to one counter."""
        self._batches[batch_id][counter] += amount

    def spend(self, batch_id: int, answer: Answered) -> None:
        """Count the tokens and the cost of an answer, wanted or not: both were paid for."""
        deltas = self._batches[batch_id]
        usage = answer.usage
        deltas["input_tokens"] += usage.input_tokens or 0
        deltas["output_tokens"] += usage.output_tokens or 0
        deltas["cached_tokens"] += usage.cached_tokens or 0
        deltas["reasoning_tokens"] += usage.reasoning_tokens or 0
        deltas["cost"] += answer.cost or 0
        deltas["estimated"] += (answer.cost or 0) if answer.cost_source == ESTIMATE else 0
        deltas["unpriced" if answer.cost is None else "priced"] += 1

    def has_spent(self, batch_id: int) -> bool:
        """Whether an answer to a job of a batch is among what is not written yet."""
        deltas = self._batches.get(batch_id)
        return deltas is not None and bool(deltas["priced"] or deltas["unpriced"])

    def write(self, tx: Transaction, runner: str) -> None:
        """Add the deltas to this writer's rows, and start with nothing changed again."""
        rows = [
            {"batch_id": batch_id, "runner": runner, **deltas}
            for batch_id, deltas in sorted(self._batches.items())
            if any(deltas.values())
        ]
        if rows:
            tx.connection.execute(upsert_adding(tallies, KEY), rows)
        self._batches.clear()


_SUMS = select(
    tallies.c.batch_id, *(cast(func.sum(tallies.c[name]), BigInteger).label(name) for name in COUNTERS)
).group_by(tallies.c.batch_id)


_SUMS_OF = _SUMS.where(tallies.c.batch_id.in_(json_list("ids")))


def read_totals(tx: Transaction, batch_id: int | None = None) -> dict[int, _Deltas]:
    """Return the summed counters by batch."""
    statement = _SUMS if batch_id is None else _SUMS.where(tallies.c.batch_id == batch_id)
    return _by_batch(tx.connection.execute(statement).mappings().all())


def read_totals_of(tx: Transaction, batch_ids: Collection[int]) -> dict[int, _Deltas]:
    """Return the summed counters of these batches."""
    return _by_batch(tx.connection.execute(_SUMS_OF, {"ids": json.dumps(sorted(batch_ids))}).mappings().all())


def _by_batch(rows: Iterable[RowMapping]) -> dict[int, _Deltas]:
    return {row["batch_id"]: {name: row[name] for name in COUNTERS} for row in rows}


def counts_of(totals: Mapping[str, int]) -> Counts:
    """Return the counts of jobs by state."""
    return Counts(*(totals.get(name, 0) for name in ("pending", "inflight", "done", "failed", "cancelled")))


def fold(tx: Transaction, runner: str) -> None:
    """Add a departed runner's rows to the producers' and remove them, so that sums stay a few rows."""
    # Deleted first: of two that fold the same rows, one gets them.
    found = tx.connection.execute(delete(tallies).where(tallies.c.runner == runner).returning(*tallies.columns))
    rows = sorted(({**row, "runner": PRODUCER} for row in found.mappings().all()), key=itemgetter("batch_id"))
    if rows:
        tx.connection.execute(upsert_adding(tallies, KEY), rows)
