"""Processes that write and fold in the log of one queue, all the time, and the judge of what they leave behind.

SQLite before 3.51.3 may lose what was committed when a checkpoint runs beside a writer that begins the log anew
(sqlite.org/wal.html#walresetbug). So each checkpoint is held up at the very place where a writer must not come in
between; without the discipline of `batchq.database.sqlite.checkpoint`, that loses results within seconds.

    scripts/wal-soak --seconds 60 --processes 4      ends with 1 if anything is lost
    scripts/wal-soak --undisciplined                 shows that it would be noticed
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import forked
from sqlite_disk import watched_disk
from store_driver import Hand, done, fill

from batchq.database.sqlite import checkpoint
from batchq.store import open_store

SHORT_LOG = 64 * 1024
SLOTS = 3
_PAUSE_SECONDS = 0.01


@dataclass(frozen=True)
class Found:
    """What a soak came to: results that were reported, and what is wrong with the queue."""

    reported: int
    checkpoints: int
    wrong: tuple[str, ...]


def soak(path: Path, *, jobs: int, processes: int, seconds: float, disciplined: bool = True) -> Found:
    """Let processes answer jobs for some time, and compare what they reported with what is there."""
    asyncio.run(_prepare(path, jobs))
    command = [sys.executable, __file__, "--child", str(path), "--seconds", str(seconds)]
    command += [] if disciplined else ["--undisciplined"]
    children = [
        forked.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(processes)
    ]
    ends = [child.communicate(timeout=60 + 10 * seconds) for child in children]
    wrong = [f"a process ended: {err.strip().splitlines()[-1]}" for _, err in ends if err.strip()]
    lines = [line.split() for out, _ in ends for line in out.splitlines()]
    reported = [(int(job), int(token)) for word, job, token in lines if word == "done"]
    checkpoints = sum(int(number) for word, number, _ in lines if word == "folded")
    return Found(len(reported), checkpoints, (*wrong, *_judge(path, reported)))


def _judge(path: Path, reported: list[tuple[int, int]]) -> list[str]:
    wrong = [f"job {job} was reported {count} times" for (job, _), count in Counter(reported).items() if count > 1]
    try:
        with closing(sqlite3.connect(path)) as connection:
            damage = [row[0] for row in connection.execute("PRAGMA integrity_check(3)") if row[0] != "ok"]
            there = set(connection.execute("SELECT id, token FROM jobs WHERE state = 'done'"))
            logged = set(connection.execute("SELECT job_id, token FROM attempts WHERE outcome = 'succeeded'"))
    except sqlite3.DatabaseError as error:
        return [*wrong, str(error)]
    missing = set(reported) - (there & logged)
    return [*wrong, *damage, *([f"{len(missing)} results that were reported are not there"] if missing else [])]


async def _prepare(path: Path, jobs: int) -> None:
    async with await open_store(str(path), create=True) as store:
        await fill(store, jobs)


async def _answer(path: Path, seconds: float) -> None:
    """Claim and settle until the time is over, and report what was settled."""
    until = time.monotonic() + seconds
    async with await open_store(str(path)) as store:
        hand = Hand(store, f"process {random.random()}")
        while time.monotonic() < until and (claims := await hand.claim(SLOTS)):
            await hand.settle(*(done(claim, "x" * random.randrange(1_000, 9_000)) for claim in claims))
            print("".join(f"done {claim.job_id} {claim.token}\n" for claim in claims), end="", flush=True)


def _child(path: Path, seconds: float, *, disciplined: bool) -> None:
    checkpoint.CHECKPOINT_BYTES = SHORT_LOG
    folded = 0

    def hold_up(kind: str, _name: str) -> int:
        nonlocal folded
        folded += kind == "checkpoint"
        # Before a checkpoint looks at the log, and between that look and what it does.
        if kind in {"checkpoint", "unfetch"}:
            time.sleep(random.uniform(0, _PAUSE_SECONDS))
        return 0

    if not disciplined:
        checkpoint.Checkpointer.run = lambda self, _connection: self._fold_in()
    with watched_disk(path.parent) as disk:
        disk.fault = hold_up
        asyncio.run(_answer(path, seconds))
    print(f"folded {folded} times")


def main() -> int:
    """Soak, and say what was found."""
    parser = argparse.ArgumentParser(description="Write and checkpoint from many processes; judge what is left.")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--undisciplined", action="store_true", help="checkpoint without keeping writers out")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        _child(options.child, options.seconds, disciplined=not options.undisciplined)
        return 0
    with tempfile.TemporaryDirectory() as directory:
        found = soak(
            Path(directory) / "queue.db",
            jobs=round(options.seconds * 3_000),
            processes=options.processes,
            seconds=options.seconds,
            disciplined=not options.undisciplined,
        )
    print(f"SQLite {sqlite3.sqlite_version}: {found.reported:,} results, {found.checkpoints:,} checkpoints")
    for line in found.wrong:
        print(line)
    return 1 if found.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
