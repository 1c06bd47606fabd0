"""What is true of a queue at any time, whatever happened: each check is one of the invariants that queues are judged by.

I1 no job disappears; I2 a finished row never changes, and retry is the one way out of failed and cancelled; I3 the
accepted result belongs to the attempt that held the current token; I5 attempts stay within their limit, and only
who was throttled, halted, released or cancelled gets one back; I7 the log has a row for each attempt; I10 tallies
agree with a recount; who follows another is never written. `exchanges` has those that are about one exchange.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from machine.arena import Arena, Row
from machine.producer import Producer
from machine.stage import FINAL_STATES, MAX_ATTEMPTS, STATES

REFUNDED = {"throttled", "halted", "released", "cancelled"}
CHARGED = {"succeeded", "failed", "retry", "lost"}


class Judge:
    """Remembers what was final, and which tokens were spent before a retry."""

    def __init__(self, arena: Arena, producers: Mapping[str, Producer]) -> None:
        self._arena = arena
        self._producers = producers
        self._final: dict[int, Row] = {}
        self._followers: dict[int, Row] = {}
        self._tokens_at_retry: dict[int, int] = {}

    def allow_again(self, row: Row) -> None:
        """Take note that an operator sends a failed or cancelled job back."""
        self._tokens_at_retry[row["id"]] = row["token"]
        self._final.pop(row["id"], None)

    def check_all(self) -> None:
        self.no_job_disappears()
        self.finished_rows_never_change()
        self.who_follows_is_never_written()
        self.results_are_of_the_current_token()
        self.costs_add_up()
        self.attempts_stay_within_their_limit()
        self.tallies_agree_with_a_recount()

    def no_job_disappears(self) -> None:
        seen = self._arena.look()
        found: dict[int, list[int]] = {batch_id: [] for batch_id in seen.batches}
        for row in seen.jobs.values():
            found[row["batch_id"]].append(row["position"])
        for name, producer in self._producers.items():
            positions = sorted(found[producer.batch.id])
            self._arena.check(positions == list(producer.positions), f"{name} holds rows {positions}")
            batch = seen.batches[producer.batch.id]
            self._arena.check(batch["size"] == producer.stored, f"{name} says that it has {batch['size']} rows")
            self._arena.check((batch["sealed_at"] is not None) == producer.sealed, f"{name} is sealed, or not: {batch}")

    def finished_rows_never_change(self) -> None:
        for job_id, row in self._arena.look().jobs.items():
            if job_id in self._final:
                # More may follow it.
                same = row == {**self._final[job_id], "followers": row["followers"]}
                self._arena.check(same, f"a finished row has changed; it was {self._final[job_id]}", job_id)
            elif row["state"] in FINAL_STATES:
                self._final[job_id] = row

    def who_follows_is_never_written(self) -> None:
        jobs = self._arena.look().jobs
        following: Counter[int] = Counter()
        for job_id, row in jobs.items():
            leader = row["leader_id"]
            if leader is not None:
                self._arena.check(row == self._followers.setdefault(job_id, row), "a follower was written", job_id)
                same = leader in jobs and jobs[leader]["batch_id"] == row["batch_id"]
                self._arena.check(same, "it follows a job of another batch, or none", job_id)
                following[leader] += 1
        for job_id, row in jobs.items():
            # Nobody follows who follows: followers have none.
            self._arena.check(row["followers"] == following[job_id], f"{following[job_id]} jobs follow it", job_id)

    def results_are_of_the_current_token(self) -> None:
        seen = self._arena.look()
        for job_id, row in seen.jobs.items():
            if row["state"] != "done":
                continue
            if row["token"] == 0:
                reused = (producer.reused.get(job_id) for producer in self._producers.values())
                self._arena.check(row["result"] in reused, "it is done, and nobody gave it this answer", job_id)
                continue
            right = row["result"] == f'"{job_id}/{row["token"]}"'
            self._arena.check(right, "it has the result of another attempt", job_id)
            entry = seen.log.get((job_id, row["token"]))
            right = entry is not None and entry["outcome"] == "succeeded" and not entry["late"]
            self._arena.check(right, "the log does not know the attempt that it was done by", job_id)

    def costs_add_up(self) -> None:
        seen = self._arena.look()
        spent: Counter[int] = Counter()
        for (job_id, _token), entry in seen.log.items():
            # What came too late is in the log only.
            spent[job_id] += 0 if entry["late"] else entry["cost"] or 0
        for job_id, row in seen.jobs.items():
            self._arena.check((row["cost"] or 0) == spent[job_id], f"its attempts cost {spent[job_id]}", job_id)

    def attempts_stay_within_their_limit(self) -> None:
        seen = self._arena.look()
        for (job_id, token), entry in seen.log.items():
            right = entry["outcome"] in (CHARGED if entry["charged"] else REFUNDED)
            self._arena.check(right, f"attempt {token} is charged, or refunded, against the rule", job_id)
        for job_id, row in seen.jobs.items():
            self._arena.check(0 <= row["attempts"] <= MAX_ATTEMPTS, "it has had too many attempts", job_id)
            running = row["state"] == "inflight"
            since = self._tokens_at_retry.get(job_id, 0)
            entries = [seen.log.get((job_id, token)) for token in range(since + 1, row["token"] + (not running))]
            self._arena.check(None not in entries, "an attempt has left no trace", job_id)
            counted = sum(entry["charged"] for entry in entries if entry) + running
            self._arena.check(row["attempts"] == counted, f"{counted} of its attempts are charged", job_id)

    def tallies_agree_with_a_recount(self) -> None:
        seen = self._arena.look()
        told = {row["batch_id"]: row for row in self._arena.rows(_TOLD)}
        counted: dict[int, Counter[str]] = {batch_id: Counter() for batch_id in seen.batches}
        for row in seen.jobs.values():
            counted[row["batch_id"]][seen.jobs[row["leader_id"] or row["id"]]["state"]] += 1
        for (job_id, _token), entry in seen.log.items():
            counts = counted[seen.jobs[job_id]["batch_id"]]
            counts["late"] += bool(entry["late"])
            counts["losses"] += entry["outcome"] == "lost"
            counts["throttles"] += entry["outcome"] == "throttled"
            counts["cost"] += entry["cost"] or 0
            counts["priced"] += entry["cost"] is not None
        for batch_id, counts in counted.items():
            of_batch = {name: (told.get(batch_id) or {}).get(name) or 0 for name in _COUNTED}
            expected = {name: counts[name] for name in _COUNTED}
            self._arena.check(of_batch == expected, f"batch {batch_id} tells {of_batch}, and holds {expected}")


_COUNTED = (*STATES, "late", "losses", "throttles", "cost", "priced")
_SUMS = ", ".join(f"CAST(sum({name}) AS BIGINT) AS {name}" for name in _COUNTED)
_TOLD = f"SELECT batch_id, {_SUMS} FROM tallies GROUP BY batch_id"
