"""What holds for all runners together: calls per minute, tokens, calls at once, and a batch's budget."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from batchq.jobs import UNKNOWN_COST_ANSWERS
from batchq.pacing import Limits
from machine.arena import Arena, Snapshot

if TYPE_CHECKING:
    from machine.exchanges import Exchange

MINUTE_MS = 60_000


@dataclass(slots=True)
class Starts:
    """When calls started in a lane, by time that has passed, since its limits were set."""

    limits: Limits
    at: list[tuple[int, int]] = field(default_factory=list)


class LimitJudge:
    """Counts by itself what starts, where an operator has set a limit."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._lanes: dict[str, Starts] = {}

    def set(self, lane: str, limits: Limits) -> None:
        self._lanes[lane] = Starts(limits)

    def check(self, done: Exchange) -> None:
        for lane, starts in self._lanes.items():
            taken = [claim.job_id for claim in done.fresh if claim.lane == lane]
            if taken:
                self._check_rate(lane, starts, taken)
                self._check_in_flight(done, lane, starts.limits, taken)
                self._check_tokens(done, lane, taken)
        for batch_id in {claim.batch.id for claim in done.fresh}:
            self._check_budget(done, batch_id)
        for lane, room in done.request.wants.rooms:
            taken = [claim.job_id for claim in done.fresh if claim.lane == lane]
            self._arena.check(len(taken) <= room, f"{done.runner} had room for {room} calls in {lane}", *taken)

    def _check_rate(self, lane: str, starts: Starts, taken: list[int]) -> None:
        """Check that in no stretch of time more calls started than the rate allows, and one burst."""
        rpm, burst = starts.limits.rpm, starts.limits.burst or 2
        starts.at.append((self._arena.elapsed, len(taken)))
        if rpm is None:
            return
        started = 0
        for since, calls in reversed(starts.at):
            started += calls
            allowed = burst + (self._arena.elapsed - since) * rpm / MINUTE_MS
            told = f"{started} calls started in {lane} within {self._arena.elapsed - since} ms, at {rpm} a minute"
            self._arena.check(started <= allowed + 0.001, told, *taken)

    def _check_in_flight(self, done: Exchange, lane: str, limits: Limits, taken: list[int]) -> None:
        if limits.max_inflight is None:
            return
        running = [
            row["id"]
            for row in done.after.jobs.values()
            if (row["state"], row["lane"]) == ("inflight", lane) and row["claimable_at"] > self._arena.clock.now
        ]
        told = f"{len(running)} calls are in flight in {lane}, and {limits.max_inflight} may be"
        self._arena.check(len(running) <= limits.max_inflight, told, *taken)

    def _check_tokens(self, done: Exchange, lane: str, taken: list[int]) -> None:
        was = done.before.lanes[lane]
        # What ends in the same exchange may give tokens back.
        if was["tpm"] is None or any(item.ended.claim.lane == lane for item in done.accepted):
            return
        passed = max(0, self._arena.clock.now - was["refilled_at"])
        left = was["tokens_left"] + passed * was["tpm"] / MINUTE_MS
        self._arena.check(left > -0.001, f"calls started in {lane}, which has {left:.0f} tokens left", *taken)

    def _check_budget(self, done: Exchange, batch_id: int) -> None:
        budget = done.before.batches[batch_id]["budget"]
        if budget is None:
            return
        taken = [claim.job_id for claim in done.fresh if claim.batch.id == batch_id]
        cost, priced, unpriced = spent(done.after, batch_id)
        if priced:
            # What told no cost is taken to have cost the average.
            told = f"batch {batch_id} has spent {cost} of {budget}, by {priced} answers; {unpriced} more told nothing"
            self._arena.check(cost * (priced + unpriced) < budget * priced, told, *taken)
            return
        running = sum(
            row["batch_id"] == batch_id and row["state"] == "inflight" and row["claimable_at"] > self._arena.clock.now
            for row in done.after.jobs.values()
        )
        told = f"batch {batch_id} has a budget, {unpriced} answers told no cost, and {running} more run"
        self._arena.check(running + unpriced <= UNKNOWN_COST_ANSWERS, told, *taken)


def spent(seen: Snapshot, batch_id: int) -> tuple[int, int, int]:
    """Return what a batch has cost by its log, how many answers told that, and how many told none."""
    log = [entry for (job_id, _), entry in seen.log.items() if seen.jobs[job_id]["batch_id"] == batch_id]
    costs = [entry["cost"] for entry in log if entry["cost"] is not None]
    # Late answers too; who failed here brought none.
    untold = [entry for entry in log if entry["cost"] is None and (entry["outcome"], entry["late"]) != ("lost", False)]
    answered = [entry for entry in untold if entry["outcome"] == "succeeded" or entry["late_result"] is not None]
    return sum(costs), len(costs), len(answered)
