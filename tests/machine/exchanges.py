"""What one exchange may do: I4, I6 and the token guard, and that nobody is told to sleep too long."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from store_driver import LEASE_MS

from batchq.errors import DataRefused
from batchq.jobs import SUSPECT_LOSSES, Claim, Exchanged
from batchq.settlement import MOST_HALTS, Settlement
from batchq.store import ExchangeRequest
from machine.arena import Arena, Row, Snapshot
from machine.lanes import LaneJudge
from machine.limits import LimitJudge

# Who finds nothing to claim is not told to look again at once.
LOOK_AGAIN_MS = 100


@dataclass(slots=True)
class Exchange:
    """An exchange, and what the tables held before and after it."""

    request: ExchangeRequest
    reply: Exchanged
    before: Snapshot
    after: Snapshot
    fresh: list[Claim]
    accepted: list[Settlement]

    @property
    def runner(self) -> str:
        return self.request.runner.id


class ExchangeJudge:
    """Asks the store, and holds its answer against what it may say; keeps a ledger of leases of its own."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._newest: dict[int, int] = {}
        # For each job that somebody holds: until when, as the exchanges told it.
        self._leases: dict[int, int] = {}
        self.limits = LimitJudge(arena)
        self.lanes = LaneJudge(arena)

    def exchange(self, request: ExchangeRequest) -> Exchanged:
        before = self._arena.look()
        try:
            reply = self._arena.run(self._arena.store.exchange(request))
        except DataRefused as error:
            raise AssertionError(f"the store contradicts itself: {error}") from error
        after = self._arena.look()
        fresh = [claim for claim in reply.claims if self._newest.get(claim.job_id, 0) < claim.token]
        done = Exchange(request, reply, before, after, fresh, [])
        self._check_settlements(done)
        renewed = self._check_renewals(done)
        for claim in fresh:
            self._check_claim(done, claim)
        self._check_claims(done)
        self._check_order(done)
        self._check_untouched(done, renewed)
        self.limits.check(done)
        self.lanes.check(done)
        self._check_wake(done)
        return reply

    def end_lease(self, job_ids: Iterable[int]) -> None:
        """Take note that jobs were taken away from who had them: cancelled."""
        for job_id in job_ids:
            self._leases.pop(job_id, None)

    def check_arrival(self, before: Snapshot, after: Snapshot) -> None:
        """Check that who arrives changes no job, but what waits where the clock was set back: not for longer."""
        now = self._arena.clock.now
        for job_id, row in before.jobs.items():
            claimable_at = after.jobs[job_id]["claimable_at"]
            same = after.jobs[job_id] == {**row, "claimable_at": claimable_at}
            self._arena.check(same, "an arrival changed it", job_id)
            sooner = claimable_at < row["claimable_at"] and now < self._arena.latest
            self._arena.check(sooner or claimable_at == row["claimable_at"], "an arrival made it wait", job_id)
        # No lease lasts longer than one that begins now.
        self._leases = {job_id: min(until, now + LEASE_MS) for job_id, until in self._leases.items()}

    def _check_claim(self, done: Exchange, claim: Claim) -> None:
        check, job_id = self._arena.check, claim.job_id
        self._arena.note(job_id, f"{done.runner} claims it, token {claim.token}{', a probe' if claim.probe else ''}")
        row = done.before.jobs[job_id]
        check(row["state"] in {"pending", "inflight"}, "an ended job was claimed", job_id)
        check(row["leader_id"] is None, "a follower was claimed", job_id)
        check(self._leases.get(job_id, 0) <= self._arena.clock.now, "it was claimed under another's lease", job_id)
        settled = any(item.ended.claim.job_id == job_id for item in done.accepted)
        check(settled or row["claimable_at"] <= self._arena.clock.now, "it was claimed before its time", job_id)
        check(done.before.batches[row["batch_id"]]["state"] == "open", "its batch is not open", job_id)
        narrowed = done.request.wants.batch_ids
        check(narrowed is None or row["batch_id"] in narrowed, "its batch was not asked for", job_id)
        check(claim.token == row["token"] + 1, f"token {claim.token} does not follow {row['token']}", job_id)
        in_hand = {item.job_id for item in done.request.held}
        check(job_id not in in_hand or settled, "who has it in hand claimed it again", job_id)
        self._newest[job_id] = claim.token
        self._arena.owners[job_id, claim.token] = done.runner

    def _check_claims(self, done: Exchange) -> None:
        check, now = self._arena.check, self._arena.clock.now
        for claim in done.reply.claims:
            row = done.after.jobs[claim.job_id]
            holds = (row["state"], row["token"], row["claimed_by"]) == ("inflight", claim.token, done.runner)
            check(holds, f"{done.runner} was given a job that is not its own", claim.job_id)
            # Also what is adopted: its commit may have been long ago.
            check(row["claimable_at"] == now + LEASE_MS, "a claim came without a whole lease", claim.job_id)
            check(claim.lane, "a claim names no lane", claim.job_id)
            self._leases[claim.job_id] = now + LEASE_MS
        check(done.request.adopt or len(done.fresh) == len(done.reply.claims), "an old claim came again")
        check(len(done.fresh) <= max(0, done.request.wants.slots), "more was claimed than there are slots")
        suspects = sum(claim.is_suspect for claim in done.fresh)
        check(suspects <= (not done.request.holds_suspect), f"{done.runner} was given {suspects} suspects at once")

    def _check_order(self, done: Exchange) -> None:
        """Check that nothing was claimed while something of a better priority was left that nothing held back."""
        if not done.fresh or done.request.wants.rooms:
            return
        lowest = min(done.before.batches[claim.batch.id]["priority"] for claim in done.fresh)
        in_hand = {item.job_id for item in done.request.held}
        for job_id, row in done.after.jobs.items():
            batch = done.after.batches[row["batch_id"]]
            waits = row["state"] == "pending" and row["leader_id"] is None and job_id not in in_hand
            due = waits and row["claimable_at"] <= self._arena.clock.now and row["losses"] < SUSPECT_LOSSES
            if due and batch["priority"] > lowest and self._is_free(done, batch):
                ids = [claim.job_id for claim in done.fresh]
                self._arena.check(False, "it was left behind for what is of less priority", job_id, *ids)

    def _is_free(self, done: Exchange, batch: Row) -> bool:
        """Whether neither its batch nor its lane holds a job back."""
        free_at = self.lanes.free_at(done.after, batch)
        narrowed = done.request.wants.batch_ids
        asked = narrowed is None or batch["id"] in narrowed
        is_open = batch["state"] == "open" and batch["budget"] is None
        return asked and is_open and free_at is not None and free_at <= self._arena.clock.now

    def _check_settlements(self, done: Exchange) -> None:
        late = 0
        for item in done.request.settlements:
            claim = item.ended.claim
            row = done.before.jobs.get(claim.job_id)
            if row is None:
                continue  # purged
            self._arena.note(claim.job_id, f"{done.runner} ends token {claim.token}: {item.outcome}")
            entry = done.before.log.get((claim.job_id, claim.token))
            if row["state"] == "inflight" and row["token"] == claim.token:
                done.accepted.append(self._check_accepted(done, item, row))
                self._leases.pop(claim.job_id, None)
                continue
            self._arena.check(entry is not None, f"attempt {claim.token} ended without a trace", claim.job_id)
            late += entry["outcome"] in {"lost", "cancelled"} and not entry["late"]
        self._arena.check(done.reply.late == late, f"{late} answers are late, and {done.reply.late} were told")

    def _check_accepted(self, done: Exchange, item: Settlement, row: Row) -> Settlement:
        """Check that an answer came into the log and the row; return it as it was settled."""
        claim = item.ended.claim
        entry = done.after.log.get((claim.job_id, claim.token))
        self._arena.check(entry is not None, "an accepted answer is not in the log", claim.job_id)
        if item.halt and entry["outcome"] == "failed":
            self._arena.check(row["halts"] + 1 >= MOST_HALTS, "it was condemned too soon", claim.job_id)
            return item
        self._arena.check(entry["outcome"] == item.outcome, f"{item.outcome} was settled otherwise", claim.job_id)
        again = claim.job_id in {fresh.job_id for fresh in done.fresh}
        after = done.after.jobs[claim.job_id]
        if not again:
            attempts = row["attempts"] - (not item.charged)
            right = (after["state"], after["attempts"]) == (item.state, attempts)
            self._arena.check(right, f"{item.outcome} must make it {item.state}", claim.job_id)
        if not again and item.state == "pending":
            due_at = self._arena.clock.now + item.delay_ms
            self._arena.check(after["claimable_at"] == due_at, f"it must wait {item.delay_ms} ms", claim.job_id)
        return item

    def _check_renewals(self, done: Exchange) -> set[int]:
        renewed = set()
        for item in done.request.held:
            row = done.before.jobs.get(item.job_id)
            holds = row is not None and row["state"] == "inflight" and row["token"] == item.token
            if not item.renew:
                continue
            told = f"{done.runner} was told the wrong thing of its lease, token {item.token}"
            self._arena.check((item.job_id in done.reply.lost) == (not holds), told, item.job_id)
            if holds:
                renewed.add(item.job_id)
                until = self._leases[item.job_id] = self._arena.clock.now + LEASE_MS
                whole = done.after.jobs[item.job_id]["claimable_at"] == until
                self._arena.check(whole, "its lease was not renewed", item.job_id)
        return renewed

    def _check_untouched(self, done: Exchange, renewed: set[int]) -> None:
        """Check that an exchange changes no other job than those that it is about."""
        right = renewed | {item.ended.claim.job_id for item in done.accepted}
        right |= {claim.job_id for claim in done.reply.claims}
        now = self._arena.clock.now
        for job_id, row in done.before.jobs.items():
            if job_id in right or done.after.jobs[job_id] == row:
                continue
            # Also who is lost for good, or set apart, changes.
            lost = row["state"] == "inflight" and row["claimable_at"] <= now and row["leader_id"] is None
            asked = done.request.expired_too and done.request.wants.slots > 0
            self._arena.check(lost and asked, f"{done.runner} changed a job that it has nothing to do with", job_id)
            self._arena.note(job_id, f"{done.runner} finds it lost")
            self._leases.pop(job_id, None)

    def _check_wake(self, done: Exchange) -> None:
        """Check that who has room for more is told to look again before anything becomes due."""
        wants = done.request.wants
        if done.request.adopt or len(done.fresh) >= wants.slots or not done.request.expired_too or wants.rooms:
            return
        chance = self._next_chance(done)
        if chance is None:
            return
        wait = max(chance - self._arena.clock.now, LOOK_AGAIN_MS)
        wake = done.reply.wake_in_ms
        told = f"{done.runner} was told to look again in {wake} ms, and there is work in {wait} ms"
        self._arena.check(wake is not None and wake <= wait, told)

    def _next_chance(self, done: Exchange) -> int | None:
        """Return when something may be claimed that neither a limit nor a budget holds back."""
        in_hand = {item.job_id for item in done.request.held} | {claim.job_id for claim in done.reply.claims}
        narrowed = done.request.wants.batch_ids
        times = []
        for row in done.after.jobs.values():
            batch = done.after.batches[row["batch_id"]]
            apart = row["losses"] >= SUSPECT_LOSSES or row["id"] in in_hand or row["leader_id"] is not None
            shut = batch["state"] != "open" or batch["budget"] is not None
            if apart or shut or row["state"] not in {"pending", "inflight"}:
                continue
            free_at = self.lanes.free_at(done.after, batch)
            if free_at is not None and (narrowed is None or row["batch_id"] in narrowed):
                times.append(max(row["claimable_at"], free_at))
        return min(times, default=None)
