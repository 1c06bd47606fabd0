"""What is told of jobs against a recount of them: for small queues, or of all where that is asked for."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Collection

from batchq.checkup import Finding as Checked
from batchq.checkup import find_strays, judge_counts, judge_inspection
from batchq.database import RESCUE
from batchq.doctor.finding import Finding, Level, ok
from batchq.jobs import Batch
from batchq.store.examining import Examined

# A recount reads about 300,000 rows a second from the disk's cache, and less from the disk.
MOST_ROWS = 200_000
MOST_SECONDS = 3.0
SHOWN = 10


async def check_tallies(queue: Examined, *, full: bool) -> AsyncIterator[Finding]:
    """Count the jobs of the newest batches, as many as take no time, or of all; each against its tallies."""
    batches, told = await queue.batches(), await queue.told_jobs()
    chosen = batches if full else _newest(batches)
    end = time.monotonic() + MOST_SECONDS
    counted, jobs, wrong = 0, 0, 0
    for batch in chosen:
        if not full and time.monotonic() > end:
            break
        for finding in judge_counts(batch, await queue.audit(batch)):
            if finding.level != "ok":
                wrong += 1
                if wrong <= SHOWN:
                    yield adopted(finding, "tallies")
        counted, jobs = counted + 1, jobs + batch.size
    if wrong <= SHOWN:
        yield _summed_up(batches, sum(told.values()), counted, jobs, wrong)
    else:
        yield Finding("tallies", Level.ERROR, f"and {wrong - SHOWN:,} more", "`batchq db check` tells them all")


async def check_whole(queue: Examined) -> AsyncIterator[Finding]:
    """Read all of the database: whether it is damaged, and whether all of its tables and indexes are there."""
    for finding in judge_inspection(await queue.inspect(), queue.file):
        yield adopted(finding, finding.check)
    if queue.file is None:
        async for finding in find_strays(queue):
            yield adopted(finding, "tables")


def adopted(finding: Checked, name: str) -> Finding:
    """Return a finding of `db check` as one of ours: what its message says first is what, the rest what to do."""
    message = finding.message if finding.check == name else f"{finding.check}: {finding.message}"
    level = Level(finding.level)
    if level is Level.OK:
        return ok(name, message)
    if message.endswith(RESCUE):
        return Finding(name, level, message.removesuffix(RESCUE).rstrip(": "), RESCUE)
    head = len(finding.check) + 2 if finding.check != name else 0
    what, _, what_to_do = message[head:].partition(": ")
    return Finding(name, level, message[:head] + what, what_to_do)


def _newest(batches: Collection[Batch]) -> list[Batch]:
    """Return the newest batches that are counted in a moment."""
    chosen, rows = [], 0
    for batch in batches:
        if rows + batch.size <= MOST_ROWS:
            chosen.append(batch)
            rows += batch.size
    return chosen


def _summed_up(batches: Collection[Batch], told: int, counted: int, jobs: int, wrong: int) -> Finding:
    if counted == len(batches):
        rest = "as their tallies say" if not wrong else "the others as their tallies say"
        return ok(
            "tallies", f"{_number(jobs, 'job', 'jobs')} in {_number(len(batches), 'batch', 'batches')} counted, {rest}"
        )
    return ok(
        "tallies",
        f"{jobs:,} of {told:,} jobs were counted, in {counted:,} of {len(batches):,} batches; --full counts all",
    )


def _number(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"
