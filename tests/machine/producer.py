"""A producer: the rows of one batch, enqueued in chunks, by processes that may be killed between two of them."""

from __future__ import annotations

from collections import Counter

from batchq.jobs import Added, Batch, NewBatch, NewJob, Reuse
from batchq.settlement import REFUSED_CLASSES
from machine.arena import Arena, Row, Snapshot
from machine.stage import FIRST_ROWS, MAX_ATTEMPTS, MODELS, REQUESTS, new_row

ADDED_AT_ONCE = 4


class Producer:
    """Knows what its batch must hold: `rows[:stored]`, and for each row whose answer it gets."""

    def __init__(self, arena: Arena, name: str) -> None:
        self.name = name
        self._arena = arena
        self.open()

    def open(self) -> None:
        """Make the batch, with its first rows."""
        new = NewBatch(self.name, "echo", model=MODELS[self.name], max_attempts=MAX_ATTEMPTS)
        self.batch: Batch = self._arena.run(self._arena.store.open_batch(new))
        self.rows: list[NewJob] = []
        # For each row the position of the one that runs for it, which may be its own.
        self.roots: list[int] = []
        self.stored = 0
        self.sealed = False
        # Results that were there from the start, by the job's id.
        self.reused: dict[int, object] = {}
        self.enqueue(FIRST_ROWS, Reuse(refusals=True))

    @property
    def positions(self) -> range:
        return range(self.stored)

    def enqueue(self, leads, reuse: Reuse | None = None, *, killed_after: int | None = None) -> None:
        """Enqueue the input again, and one more row for each of `leads`, in chunks; `killed_after` so many of them."""
        for lead in leads:
            self._append(lead)
        chunks = [self.rows[start : start + ADDED_AT_ONCE] for start in range(0, len(self.rows), ADDED_AT_ONCE)]
        for chunk in chunks[:killed_after]:
            self._add(chunk, reuse)

    def run_again(self, killed_after: int | None = None) -> None:
        """Enqueue what is there, to the end, and seal it."""
        self.enqueue((), killed_after=killed_after)
        if killed_after is None:
            self.seal()

    def complete(self) -> None:
        """Enqueue what is missing, and seal it."""
        if self.stored < len(self.rows):
            self.enqueue(())
        self.seal()

    def seal(self) -> None:
        self._arena.run(self._arena.store.seal(self.batch))
        self.sealed = True

    def _append(self, lead: int | None) -> None:
        """Append a row; who follows names a row that runs, or any that was there before."""
        position = len(self.rows)
        if lead is None or position == 0:
            self.roots.append(position)
            self.rows.append(new_row(self.name, position, position % REQUESTS))
            return
        named = lead % position
        root = self.roots[named]
        named = named if named < self.stored else root
        self.roots.append(root)
        leader = self.rows[named].custom_id or self.rows[named].position
        self.rows.append(new_row(self.name, position, int(self.rows[root].key, 16), leader))

    def _add(self, chunk: list[NewJob], reuse: Reuse | None) -> None:
        """Add a chunk, and check that what was there stays, and what is new is as it must be."""
        before = self._arena.look()
        added = self._arena.run(self._arena.store.add_jobs(self.batch, chunk, reuse))
        after = self._arena.look()
        fresh = {row["position"]: row for job_id, row in after.jobs.items() if job_id not in before.jobs}
        end = max(self.stored, chunk[-1].position + 1)
        self._arena.check(sorted(fresh) == list(range(self.stored, end)), f"{self.name} got rows {sorted(fresh)}")
        self.stored = end
        self.sealed = self.sealed and not fresh
        answers = {} if reuse is None else answers_in(before.jobs)
        counted = Counter(self._check_new(row, after, answers) for row in fresh.values())
        expected = Added(len(fresh), counted["reused"], counted["follows"])
        self._arena.check(added == expected, f"{self.name}: told {added}, found {expected}")
        for job_id, row in before.jobs.items():
            # Only how many follow it may change.
            same = {**after.jobs[job_id], "followers": row["followers"]} == row
            self._arena.check(same, "enqueueing changed a row that was there", job_id)

    def _check_new(self, row: Row, after: Snapshot, answers: dict[object, Row]) -> str:
        """Return what a new row is: `follows`, `runs` or `reused`."""
        job_id, position = row["id"], row["position"]
        root = self.roots[position]
        spent = (row["token"], row["attempts"], row["cost"] or 0)
        self._arena.check(spent == (0, 0, 0), "a new row has spent something", job_id)
        if root != position:
            leader = after.jobs.get(row["leader_id"], {"position": None})
            right = row["state"] == "pending" and leader["position"] == root
            self._arena.check(right, f"a new row must follow row {root}", job_id)
            return "follows"
        self._arena.check(row["leader_id"] is None, "a new row follows who does not run for it", job_id)
        source = answers.get(row["key"])
        if source is None:
            self._arena.check(row["state"] == "pending", "a new row has an answer that nobody gave", job_id)
            return "runs"
        taken = all(row[column] == source[column] for column in ("state", "result", "error", "error_class"))
        self._arena.check(taken, f"a new row has not the answer of job {source['id']}", job_id, source["id"])
        self.reused[job_id] = row["result"]
        return "reused"


def answers_in(jobs: dict[int, Row]) -> dict[object, Row]:
    """Return by key the job whose answer or refusal is taken over: the newest, answers before refusals."""
    ended = [row for row in jobs.values() if row["leader_id"] is None]
    refused = [row for row in ended if row["state"] == "failed" and row["error_class"] in REFUSED_CLASSES]
    answered = [row for row in ended if row["state"] == "done"]
    return {row["key"]: row for found in (refused, answered) for row in sorted(found, key=lambda row: row["id"])}
