"""Looks a queue over, and says of each thing whether it is as it should be, and what to do where it is not."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from batchq.errors import StoreError
from batchq.jobs import JobState
from batchq.schema import SCHEMA_VERSION
from batchq.waiting import told_moved

if TYPE_CHECKING:
    from pathlib import Path

    from batchq.database import Inspection
    from batchq.jobs import Batch
    from batchq.store import Store
    from batchq.store.audit import Audit
    from batchq.store.reading import Reading

_UNHARMED = (
    "only `status` and progress show them, what is run and collected is asked of the jobs themselves;"
    " `batchq db check --repair-tallies` counts them anew"
)
_ON_SERVER = "no index is invalid, and nothing else was looked at: `pg_amcheck` reads tables and indexes"
_NOT_OURS = "something else than batchq has changed the database"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check came to."""

    level: Literal["ok", "warning", "error"]
    check: str
    message: str


async def check_database(location: str, *, recount: bool, repair_tallies: bool = False) -> AsyncIterator[Finding]:
    """Yield what is found in the queue at a path or URL; with `recount`, each job is counted.

    `repair_tallies` corrects the tallies of jobs by state, and nothing else. Raises NoDatabase or ConfigurationError.
    """
    from batchq.store import open_store

    try:
        async with await open_store(location) as store:
            async for finding in _look(store, recount=recount, repair_tallies=repair_tallies):
                yield finding
    except StoreError as error:
        yield Finding("error", "database", str(error))


async def _look(store: Store, *, recount: bool, repair_tallies: bool) -> AsyncIterator[Finding]:
    yield _schema(store)
    if (place := await store.moved_to()) is not None:
        yield Finding("warning", "queue", told_moved(place))
    seen = await store.inspect()
    yield Finding("ok", "database", seen.product)
    for finding in judge_inspection(seen, store.file):
        yield finding
    if seen.damage or not recount:
        return
    async for finding in _count(store, repair_tallies=repair_tallies):
        yield finding


def judge_inspection(seen: Inspection, file: Path | None) -> Iterator[Finding]:
    """Say what a look at the whole database comes to; `file` is None for one on a server."""
    for check, wrong, right in (
        ("integrity", seen.damage, "nothing is damaged" if file else _ON_SERVER),
        ("tables", seen.missing, "all tables and indexes are there"),
    ):
        for message in wrong:
            yield Finding("error", check, message)
        if not wrong:
            yield Finding("ok", check, right)


async def _count(store: Store, *, repair_tallies: bool) -> AsyncIterator[Finding]:
    for batch in await store.batches():
        if repair_tallies and (mended := await store.mend_tallies(batch)):
            changes = ", ".join(f"{state} {change:+,}" for state, change in sorted(mended.items()))
            yield Finding("warning", f"batch {batch.name}", f"its tallies were counted anew: {changes}")
        for finding in judge_counts(batch, await store.audit(batch)):
            yield finding
    if store.file is None:  # SQLite looks after this itself
        async for finding in find_strays(store):
            yield finding


def _schema(store: Store) -> Finding:
    # It would not have been opened with another schema.
    if store.upgraded_from is None:
        return Finding("ok", "schema", f"{store.location} has schema {SCHEMA_VERSION}, as this batchq needs")
    return Finding(
        "warning",
        "schema",
        f"{store.location} had schema {store.upgraded_from}, and was upgraded to {SCHEMA_VERSION} just now: an older"
        " batchq can't open it any more",
    )


def judge_counts(batch: Batch, audit: Audit | None) -> Iterator[Finding]:
    """Say what counting the rows of a batch comes to."""
    name = f"batch {batch.name}"
    if audit is None:
        yield Finding("ok", name, "it is being purged")
        return
    if audit.moved:
        yield Finding(
            "warning", name, "it changed while it was counted: check it again when nobody works on it, to be sure"
        )
        return
    wrong = list(_wrongs(audit))
    if batch.fault is not None:
        wrong.append(f"{batch.fault}, so that its jobs fail with bad_row: {_NOT_OURS}")
    for message in wrong:
        yield Finding("error", name, message)
    if not wrong:
        yield Finding("ok", name, f"{audit.rows:,} jobs, as its tallies say")


def _wrongs(audit: Audit) -> Iterator[str]:
    told = {state.value: count for state in JobState if (count := audit.told.get(state.value))}
    counted = {state: count for state, count in audit.counted.items() if count}
    if told != counted:
        yield f"its tallies say {_listed(told)}, and there are {_listed(counted)}: {_UNHARMED}"
    if audit.size != audit.rows:
        yield f"it should have {audit.size:,} jobs, and has {audit.rows:,}: {_NOT_OURS}"
    if audit.astray or audit.followers != audit.following:
        yield (
            f"{audit.following:,} jobs follow others, {audit.astray:,} of them nobody of this batch, and their leaders"
            f" know of {audit.followers:,}: {_NOT_OURS}"
        )
    if audit.unclaimed:
        yield f"{audit.unclaimed:,} jobs are in flight and were never claimed: {_NOT_OURS}"


async def find_strays(store: Reading) -> AsyncIterator[Finding]:
    """Tell of rows that belong to none that exists: on a server, no foreign key forbids them."""
    unknown, jobs = await store.strays()
    if unknown:
        yield Finding("error", "batches", f"there are jobs of {len(unknown):,} batches that do not exist: {_NOT_OURS}")
    if jobs:
        yield Finding("error", "attempts", f"the log has {jobs:,} jobs that do not exist: {_NOT_OURS}")


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {state}" for state, count in sorted(counts.items())) or "none"
