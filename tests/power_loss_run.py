"""A run of a real store whose power is cut at every moment, and the judge of what is found then.

`scripts/power-cuts --jobs 200 --variants 20 --seed 7` is a long campaign.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sqlite3
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from power_cut import Cut, Image, cuts, lay_out, tables_of
from sqlite_disk import Disk, Event, watched_disk
from store_driver import Clock, Hand, check_tallies, done, fill, open_queue

from batchq.database.sqlite import checkpoint

LATER_MS = 3_600_000
# So that the log is folded in, and begun anew, many times in a short run.
SHORT_LOG = 48 * 1024
SLOTS = 3


@dataclass(frozen=True)
class Enqueued:
    jobs: int


@dataclass(frozen=True)
class Claimed:
    job_id: int
    token: int


@dataclass(frozen=True)
class Done:
    job_id: int
    token: int


def answer(position: int) -> str:
    """What a job is answered: of many lengths, and like that of no other."""
    return f"answer {position} " * (1 + position * 37 % 400)


async def run(path: Path, disk: Disk, jobs: int) -> None:
    """Enqueue and answer jobs, in a queue that is closed and opened again half-way; say what was reported."""
    async with await open_queue(path, Clock()) as store:
        await fill(store, jobs)
        disk.acknowledge(Enqueued(jobs))
        await answer_jobs(Hand(store, "first"), disk, jobs // 2)
    async with await open_queue(path, Clock()) as store:
        await answer_jobs(Hand(store, "second"), disk, jobs)


async def answer_jobs(hand: Hand, disk: Disk, most: int) -> None:
    """Settle and claim in one exchange, as a runner does."""
    claims, answered = await hand.claim(SLOTS), 0
    while claims:
        for claim in claims:
            disk.acknowledge(Claimed(claim.job_id, claim.token))
        settlements = [done(claim, answer(claim.position)) for claim in claims]
        answered += len(claims)
        reply = await hand.send(hand.request(settlements, SLOTS if answered < most else 0))
        for claim in claims:
            disk.acknowledge(Done(claim.job_id, claim.token))
        claims = reply.claims


def judge(cut: Cut, tables: dict[str, list[sqlite3.Row]]) -> None:
    """Compare what is there after a cut with what was reported before it."""
    jobs = {row["id"]: row for row in tables.get("jobs", [])}
    log = {(row["job_id"], row["token"]): row for row in tables.get("attempts", [])}
    for said in cut.said:
        match said:
            case Enqueued(count):
                assert len(jobs) == count, f"cut {cut.number}: {len(jobs)} of {count} jobs that were reported"
            case Claimed(job_id, token):
                assert jobs[job_id]["token"] >= token, f"cut {cut.number}: the token {token} of a call is forgotten"
            case Done(job_id, token):
                assert jobs[job_id]["state"] == "done", f"cut {cut.number}: job {job_id} was reported done"
                assert log[job_id, token]["outcome"] == "succeeded"
    for row in jobs.values():
        if row["state"] == "done":
            assert row["result"] == f'"{answer(row["position"])}"'
            assert log[row["id"], row["token"]]["outcome"] == "succeeded"


async def go_on(path: Path) -> None:
    """Open what was found as any process would, answer the rest, and see that nothing is missing."""
    clock = Clock()
    clock.advance(LATER_MS)
    async with await open_queue(path, clock) as store:
        if not await store.batches():
            return
        batch = await store.batch("demo")
        before = (await store.progress("demo")).counts
        hand = Hand(store, "after the cut")
        for _ in range(batch.size + 1):
            if not (claims := await hand.claim(SLOTS)):
                break
            await hand.settle(*(done(claim, answer(claim.position)) for claim in claims))
        after = (await store.progress("demo")).counts
        assert (after.done, after.live) == (before.done + before.live, 0)
        await check_tallies(store, batch)


def record(directory: Path, before: Image, jobs: int, *, pragmas: Sequence[str] | None = None) -> list[Event]:
    """Run in a directory, beginning with the files of `before`, and return what happened to them."""
    lay_out(before, directory)
    with watched_disk(directory) as disk:
        asyncio.run(run(directory / "queue.db", disk, jobs))
    return disk.events


def survive(found: Iterable[Cut], directory: Path, *, go_on_each: int) -> int:
    """Judge all cuts, and go on after every so manieth; return how many there were."""
    count = 0
    for count, cut in enumerate(found, 1):
        lay_out(cut.image, directory)
        judge(cut, tables_of(directory / "queue.db"))
        if count % go_on_each == 0:
            lay_out(cut.image, directory)
            asyncio.run(go_on(directory / "queue.db"))
    return count


def main() -> int:
    """Cut the power again and again until told to end, or once for each seed."""
    parser = argparse.ArgumentParser(description="Cut the power at every write of a run, and judge what is left.")
    parser.add_argument("--jobs", type=int, default=60)
    parser.add_argument("--variants", type=int, default=10, help="partial disks between any two syncs")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    checkpoint.CHECKPOINT_BYTES = SHORT_LOG
    for seed in range(options.seed, options.seed + options.runs):
        with tempfile.TemporaryDirectory() as run_in, tempfile.TemporaryDirectory() as judge_in:
            events = record(Path(run_in), {}, options.jobs)
            found = cuts({}, events, variants=options.variants, seed=seed)
            count = survive(found, Path(judge_in), go_on_each=5)
        writes = sum(event.kind == "write" for event in events)
        print(f"seed {seed}: {options.jobs} jobs, {writes:,} writes, {count:,} cuts: all that was reported is there")
    return 0


if __name__ == "__main__":
    sys.exit(main())
