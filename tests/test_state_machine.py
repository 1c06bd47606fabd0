"""Random histories of runners, a producer and an operator against the real store and a clock of the test's own.

The invariants are those that a queue is judged by: I1 no job disappears; I2 a finished row never changes; I3 the
accepted result belongs to the attempt that held the current token; I4 at most one unexpired lease per job;
I5 attempts stay within their limit; I6 nothing is claimed before its time; I8 output order is input order;
I9 whatever happened, the queue drains; I10 tallies agree with a recount; I11 who follows another is never written,
weighs with its leader and is read through it; I12 what is reused is the newest answer, at no cost. The last tests
weaken the guard on writes in the ways that are known to fail: the machine must find each of them.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from raw_connection import RawConnection, connect
from sqlalchemy import Integer, Text, and_, func, select
from sqlalchemy.dialects import postgresql
from store_driver import LEASE_MS, Clock, Hand, done, failed, halted, open_queue, released, retry, throttled

from batchq.database.staging import StagedRows
from batchq.errors import DataRefused
from batchq.jobs import Added, Batch, Claim, Exchanged, FinishedPlace, Held, NewBatch, NewJob, Reuse
from batchq.request import encode
from batchq.settlement import REFUSED_CLASSES, Settlement
from batchq.store import ExchangeRequest, operate, settle

MAX_ATTEMPTS = 3
BATCHES = ("first", "second")
RUNNERS = ("a", "b", "c")
FINAL_STATES = ("done", "failed", "cancelled")
STATES = ("pending", "inflight", *FINAL_STATES)
ACTIONS = ("enqueue", "enqueue", "reuse", "seal", "pause", "resume", "cancel", "retry", "start_over", "purge", "read")
# For each row whom it follows, None: nobody. The first rows run, mostly: it is claims that may go wrong.
FIRST_ROWS = (None, None, None, None, 2)
# Rows of different batches, and some of one, ask for the same.
REQUESTS = 4
STEPS_MS = (1, LEASE_MS // 4, LEASE_MS - 1, LEASE_MS, 3 * LEASE_MS)
DRAIN_ROUNDS = 60


def answer(claim: Claim) -> Settlement:
    """Succeed with a result that tells which attempt gave it."""
    return done(claim, f"{claim.job_id}/{claim.token}", cost=claim.token)


OUTCOMES = {
    "done": answer,
    "failed": failed,
    "retry": lambda claim: retry(claim, after=0, cost=7),
    "back off": lambda claim: retry(claim, after=90),
    "throttled": throttled,
    "throttled for long": lambda claim: throttled(claim, after=20),
    "released": released,
    "halted": halted,
}

runners = st.sampled_from([*RUNNERS, "a", "a"])
batches = st.sampled_from([*BATCHES, "first"])
outcomes = st.sampled_from([*OUTCOMES, "done", "retry", "throttled", "released"])
leads = st.lists(st.none() | st.integers(0, 7), min_size=2, max_size=4)


# Stands before PostgreSQL's own random(), since what a history does must not hang on chance.
REPEATABLE_RANDOM = """
    CREATE SCHEMA repeatable;
    CREATE FUNCTION repeatable.random() RETURNS float8 VOLATILE LANGUAGE sql AS 'SELECT 0.37::float8';
    DO $$ BEGIN
        EXECUTE format('ALTER DATABASE %I SET search_path = repeatable, pg_catalog, public', current_database());
    END $$;
"""


class Arena:
    """One store for all histories: each begins by emptying it, which is quicker than opening another."""

    def __init__(self, location: str, raw: RawConnection) -> None:
        self.clock = Clock()
        self._loop = asyncio.new_event_loop()
        self._raw = raw
        self._calls = 0
        self.is_sqlite = raw.is_sqlite
        if not self.is_sqlite:
            raw.execute(REPEATABLE_RANDOM)
        self.store = self.run(open_queue(location, self.clock))
        if self.is_sqlite:
            self.run(self.store._database._writer.call(self._make_quick_and_repeatable))
        self.owners: dict[tuple[int, int], str] = {}

    def _make_quick_and_repeatable(self, connection) -> None:
        connection.exec_driver_sql("PRAGMA synchronous=OFF")
        connection.connection.driver_connection.create_function("random", 0, lambda: self._random.getrandbits(62))

    def reset(self) -> None:
        self._random = random.Random(0)
        self.clock.now = Clock().now
        self.owners.clear()
        self._seen_after = -1
        for table in ("attempts", "tallies", "jobs", "batches", "lanes", "runners"):
            self._raw.execute(f"DELETE FROM {table}")
        if self.is_sqlite:
            self._raw.execute("DELETE FROM sqlite_sequence")
            return
        for sequence in ("public.jobs_id_seq", "public.batches_id_seq"):
            self._raw.execute(f"ALTER SEQUENCE {sequence} RESTART")

    def forget_staged_rows(self) -> None:
        """Let the table that they are staged in be made anew, with other columns."""
        if self.is_sqlite:
            self.run(
                self.store._database._writer.call(lambda on: on.exec_driver_sql("DROP TABLE IF EXISTS temp.ended"))
            )

    def run(self, call):
        self._calls += 1
        return self._loop.run_until_complete(call)

    def rows(self, sql: str) -> list[Mapping[str, Any]]:
        return self._raw.execute(sql)

    def jobs(self) -> dict[int, dict[str, object]]:
        self._refresh()
        return self._jobs

    def log(self) -> dict[tuple[int, int], dict[str, object]]:
        self._refresh()
        return self._log

    def batch(self, name: str) -> Mapping[str, Any]:
        return self._raw.execute("SELECT * FROM batches WHERE name = ?", (name,))[0]

    def _refresh(self) -> None:
        """Read again if the store was asked for anything since."""
        if self._calls != self._seen_after:
            self._seen_after = self._calls
            self._jobs = {row["id"]: dict(row) for row in self.rows("SELECT * FROM jobs")}
            self._log = {(row["job_id"], row["token"]): dict(row) for row in self.rows("SELECT * FROM attempts")}

    def close(self) -> None:
        self.run(self.store.close())
        self._loop.close()


class QueueMachine(RuleBasedStateMachine):
    """What may happen to a queue, in any order."""

    def __init__(self, arena: Arena) -> None:
        super().__init__()
        arena.reset()
        self.arena = arena
        self.store = arena.store
        self.clock = arena.clock
        self.hands = {name: Hand(self.store, name) for name in RUNNERS}
        self.batches: dict[str, Batch] = {}
        self.unanswered: dict[str, ExchangeRequest] = {}
        self.zombies: dict[str, list[Claim]] = {name: [] for name in RUNNERS}
        self.rows: dict[str, list[NewJob]] = {}
        # For each row the position of the one that runs for it, which may be its own.
        self.roots: dict[str, list[int]] = {}
        self.followers: dict[int, dict[str, object]] = {}
        self.reused: dict[int, object] = {}
        self.final: dict[int, dict[str, object]] = {}
        self.tokens_at_retry: dict[int, int] = {}
        self.newest: dict[int, int] = {}
        for name in BATCHES:
            self.open(name)

    # Runners

    @rule(name=runners, slots=st.integers(1, 4), expired_too=st.sampled_from([True, True, False]))
    def claim(self, name, slots, expired_too):
        self.repeat_unanswered(name)
        self.send(name, self.hands[name].request(slots=slots, expired_too=expired_too))

    @rule(name=runners, ends=st.lists(outcomes, min_size=1, max_size=4))
    def settle(self, name, ends):
        self.repeat_unanswered(name)
        self.send(name, self.hands[name].request(self.ends_of(name, ends)))

    @rule(name=runners, kept=st.integers(0, 3), slots=st.integers(0, 2))
    def renew(self, name, kept, slots):
        self.repeat_unanswered(name)
        hand = self.hands[name]
        self.send(name, hand.request(slots=slots, renew=list(hand.held)[kept:]))

    @rule(name=runners, ends=st.lists(outcomes, max_size=3), slots=st.integers(0, 4), answered=st.booleans())
    def exchange(self, name, ends, slots, answered):
        self.repeat_unanswered(name)
        hand = self.hands[name]
        request = hand.request(self.ends_of(name, ends), slots, renew=list(hand.held)[len(ends) :])
        if answered:
            self.send(name, request)
        else:
            self.exchanged(name, request)
            self.unanswered[name] = request

    @rule(
        name=runners,
        kind=st.none() | outcomes,
        index=st.integers(0, 3),
        slots=st.integers(0, 2),
        away=st.sampled_from([0, LEASE_MS]),
    )
    def crash_or_come_back(self, name, kind, index, slots, away):
        """Forget what is in hand, or settle what was forgotten."""
        zombies, hand = self.zombies[name], self.hands[name]
        if kind is None or not zombies:
            self.unanswered.pop(name, None)
            zombies += hand.forget()
            self.clock.advance(away)
            return
        self.repeat_unanswered(name)
        claim = zombies.pop(index % len(zombies))
        if hand.held.get(claim.job_id) != claim:
            request = hand.request([OUTCOMES[kind](claim)], slots)
            self.send(name, replace(request, held=[*request.held, Held(claim.job_id, claim.token, renew=False)]))

    @rule(milliseconds=st.sampled_from(STEPS_MS))
    def advance(self, milliseconds):
        self.clock.advance(milliseconds)

    # An operator, and a producer

    # One rule for all, since each rule is as likely as any other and runners should act most.
    @rule(name=batches, action=st.sampled_from(ACTIONS), leads=leads)
    def operate(self, name, action, leads):
        getattr(self, action)(name, *([leads] if action in {"enqueue", "reuse"} else []))

    def open(self, name):
        new = NewBatch(name, "echo", model=f"model-{BATCHES.index(name)}", max_attempts=MAX_ATTEMPTS)
        self.batches[name] = self.arena.run(self.store.open_batch(new))
        self.rows[name], self.roots[name] = [], []
        self.reuse(name, FIRST_ROWS)

    def enqueue(self, name, leads, reuse=None):
        """Enqueue the rows again, and one more for each of `leads`."""
        if self.arena.batch(name)["state"] == "cancelled":
            return
        start = len(self.rows[name])
        for lead in leads:
            self.append_row(name, lead, start)
        before = self.arena.jobs()
        added = self.arena.run(self.store.add_jobs(self.batches[name], self.rows[name], reuse))
        after = self.arena.jobs()
        fresh = {row["position"]: row for job_id, row in after.items() if job_id not in before}
        assert sorted(fresh) == list(range(start, len(self.rows[name])))
        answers = {} if reuse is None else answers_in(before)
        counted = Counter(self.check_new_row(name, row, after, answers) for row in fresh.values())
        assert added == Added(len(leads), counted["reused"], counted["follows"])
        for job_id, row in before.items():
            # Only how many follow it may change.
            assert {**after[job_id], "followers": row["followers"]} == row

    def append_row(self, name, lead, start):
        """Append a row; who follows names a row that runs, or any that was there before."""
        rows, roots = self.rows[name], self.roots[name]
        position = len(rows)
        if lead is None:
            roots.append(position)
            rows.append(new_row(name, position, position % REQUESTS))
            return
        named = lead % position
        root = roots[named]
        named = named if named < start else root
        roots.append(root)
        leader = rows[named].position if rows[named].custom_id is None else rows[named].custom_id
        rows.append(new_row(name, position, int(rows[root].key, 16), leader))

    def check_new_row(self, name, row, jobs, answers):
        position = row["position"]
        root = self.roots[name][position]
        source = answers.get(row["key"])
        spent = (row["token"], row["attempts"], row["cost"] or 0)
        assert spent == (0, 0, 0)
        if root != position:
            assert row["state"] == "pending"
            assert jobs[row["leader_id"]]["position"] == root
            return "follows"
        assert row["leader_id"] is None
        if source is None:
            assert row["state"] == "pending"
            return "runs"
        assert all(row[column] == source[column] for column in ("state", "result", "error", "error_class"))
        self.reused[row["id"]] = row["result"]
        return "reused"

    def reuse(self, name, leads):
        self.enqueue(name, leads, Reuse(refusals=True))

    def seal(self, name):
        self.arena.run(self.store.seal(self.batches[name]))

    def purge(self, name):
        """Delete a batch, whatever is in hand, and start another of its name."""
        batch = self.batches[name]
        assert self.arena.run(self.store.purge(batch)) == len(self.rows[name])
        assert batch.id not in {row["batch_id"] for row in self.arena.jobs().values()}
        assert self.arena.rows(f"SELECT * FROM tallies WHERE batch_id = {batch.id}") == []
        self.open(name)

    def read(self, name):
        """Read what a reader sees: who follows has its leader's state and answer, its own prompt, and cost nothing."""
        batch = self.batches[name]
        rows = {row["position"]: row for row in self.arena.jobs().values() if row["batch_id"] == batch.id}
        found = self.arena.run(collect(self.store, batch, page_rows=3, with_prompt=True))
        assert [result.position for result in found] == list(range(len(self.rows[name])))
        for result, job, root in zip(found, self.rows[name], self.roots[name], strict=True):
            ran = rows[root]
            assert (result.custom_id, result.payload, result.key) == (job.custom_id, job.payload, job.key)
            assert (result.state, result.attempts) == (ran["state"], ran["attempts"])
            assert (result.result, result.error, result.error_class) == (
                ran["result"], ran["error"], ran["error_class"],
            )  # fmt: skip
            assert result.leader == (None if root == result.position else root)
            assert result.cost == (ran["cost"] if result.leader is None else 0)
        unique = self.arena.run(collect(self.store, batch, unique=True))
        assert [result.position for result in unique] == sorted(set(self.roots[name]))
        counted = Counter(result.state for result in found)
        assert self.arena.run(self.store.recount(batch)) == counted
        return found

    def pause(self, name):
        self.arena.run(self.store.pause(self.batches[name]))

    def resume(self, name):
        self.arena.run(self.store.resume(self.batches[name]))

    def cancel(self, name):
        self.arena.run(self.store.cancel(self.batches[name]))

    def retry(self, name):
        batch = self.batches[name]
        before = self.arena.jobs()
        again = {
            job_id: row
            for job_id, row in before.items()
            if row["batch_id"] == batch.id and row["state"] in {"failed", "cancelled"}
        }
        assert self.arena.run(self.store.retry(batch)) == len(again)
        after = self.arena.jobs()
        for job_id, row in again.items():
            assert (after[job_id]["state"], after[job_id]["attempts"]) == ("pending", 0)
            assert after[job_id]["token"] == row["token"]
            self.tokens_at_retry[job_id] = row["token"]
            self.final.pop(job_id, None)

    def start_over(self, name):
        self.cancel(name)
        self.retry(name)
        self.resume(name)

    # Invariants

    @invariant()
    def no_job_disappears(self):
        for name, rows in self.rows.items():
            size = len(rows)
            batch = self.arena.batch(name)
            found = [row["position"] for row in self.arena.jobs().values() if row["batch_id"] == batch["id"]]
            assert sorted(found) == list(range(size))
            assert batch["size"] == size

    @invariant()
    def finished_rows_never_change(self):
        for job_id, row in self.arena.jobs().items():
            if job_id in self.final:
                # More may follow it.
                assert row == {**self.final[job_id], "followers": row["followers"]}
            elif row["state"] in FINAL_STATES:
                self.final[job_id] = row

    @invariant()
    def who_follows_is_never_written_and_counted_by_its_leader(self):
        jobs = self.arena.jobs()
        following: Counter[int] = Counter()
        for job_id, row in jobs.items():
            if row["leader_id"] is not None:
                assert row == self.followers.setdefault(job_id, row)
                assert jobs[row["leader_id"]]["batch_id"] == row["batch_id"]
                following[row["leader_id"]] += 1
        # Nobody follows who follows: followers have none.
        assert all(row["followers"] == following[job_id] for job_id, row in jobs.items())

    @invariant()
    def a_result_belongs_to_the_attempt_that_held_the_token(self):
        log = self.arena.log()
        for row in self.arena.jobs().values():
            if row["state"] == "done" and row["token"] == 0:
                assert row["result"] == self.reused[row["id"]]
            elif row["state"] == "done":
                assert row["result"] == f'"{row["id"]}/{row["token"]}"'
                assert log[row["id"], row["token"]]["cost"] == row["token"]

    @invariant()
    def a_job_adds_up_what_was_spent_on_it_in_time(self):
        spent: Counter[int] = Counter()
        for (job_id, _token), entry in self.arena.log().items():
            spent[job_id] += 0 if entry["late"] else entry["cost"] or 0
        for job_id, row in self.arena.jobs().items():
            assert (row["cost"] or 0) == spent[job_id]

    @invariant()
    def attempts_stay_within_their_limit_and_agree_with_the_log(self):
        log = self.arena.log()
        for job_id, row in self.arena.jobs().items():
            assert 0 <= row["attempts"] <= MAX_ATTEMPTS
            since = self.tokens_at_retry.get(job_id, 0)
            running = row["state"] == "inflight"
            expected = range(since + 1, row["token"] + (not running))
            entries = [log[job_id, token] for token in expected]
            assert row["attempts"] == sum(entry["charged"] for entry in entries) + running

    @invariant()
    def tallies_agree_with_a_recount(self):
        sums = ", ".join(f"coalesce(sum({state}), 0) AS {state}" for state in STATES)
        jobs = self.arena.jobs()
        for name in BATCHES:
            counts = dict.fromkeys(STATES, 0)
            for row in jobs.values():
                if row["batch_id"] == self.batches[name].id:
                    counts[jobs[row["leader_id"] or row["id"]]["state"]] += 1
            assert self.one(f"SELECT {sums} FROM tallies WHERE batch_id = {self.batches[name].id}") == counts
        told = (
            "SELECT coalesce(sum({}), 0) AS late, coalesce(sum({}), 0) AS lost, coalesce(sum(cost), 0) AS cost FROM {}"
        )
        logged = told.format("CASE WHEN late THEN 1 END", "CASE WHEN outcome = 'lost' THEN 1 END", "attempts")
        assert self.one(told.format("late", "losses", "tallies")) == self.one(logged)

    # What every exchange is held to

    def exchanged(self, name: str, request: ExchangeRequest) -> Exchanged:
        before, log = self.arena.jobs(), self.arena.log()
        try:
            reply = self.arena.run(self.store.exchange(request))
        except DataRefused as error:
            raise AssertionError(f"the store contradicts itself: {error}") from error
        after = self.arena.jobs()
        fresh = [claim for claim in reply.claims if self.newest.get(claim.job_id, 0) < claim.token]
        for claim in fresh:
            self.check_claim(name, claim, before[claim.job_id], after[claim.job_id])
        for claim in reply.claims:
            assert (after[claim.job_id]["token"], after[claim.job_id]["claimed_by"]) == (claim.token, name)
            # Also what is adopted: its commit may have been long ago.
            assert after[claim.job_id]["claimable_at"] == self.clock.now + LEASE_MS
            assert claim.lane
        assert request.adopt or len(fresh) == len(reply.claims)
        assert sum(claim.is_suspect for claim in fresh) <= (not request.holds_suspect)
        self.check_lanes(fresh)
        right = self.check_settlements(request, reply, before, after, log)
        right |= self.check_renewals(request, reply, before, after)
        right |= {claim.job_id for claim in reply.claims}
        if request.expired_too and request.wants.slots:
            right |= {job_id for job_id, row in before.items() if self.is_due(row) and row["state"] == "inflight"}
        for job_id in before.keys() - right:
            assert after[job_id] == before[job_id]
        return reply

    def check_claim(self, name, claim, before, after):
        assert before["state"] in {"pending", "inflight"}
        assert before["leader_id"] is None
        assert self.is_due(before)
        assert claim.token == before["token"] + 1
        assert after["claimable_at"] == self.clock.now + LEASE_MS
        assert claim.batch.state == "open"
        assert claim.job_id not in self.hands[name].held
        self.newest[claim.job_id] = claim.token
        self.arena.owners[claim.job_id, claim.token] = name

    def check_lanes(self, claims):
        for lane in self.arena.rows("SELECT * FROM lanes"):
            taken = [claim for claim in claims if claim.lane == lane["name"]]
            if lane["halted_at"] is not None:
                assert [claim.probe for claim in taken] in ([], [True])
            if (lane["paused_until"] or 0) > self.clock.now:
                assert taken == []

    def check_settlements(self, request, reply, before, after, log):
        accepted, late = set(), 0
        for item in request.settlements:
            claim = item.ended.claim
            if claim.job_id not in before:
                continue  # purged
            row, entry = before[claim.job_id], log.get((claim.job_id, claim.token))
            if row["state"] == "inflight" and row["token"] == claim.token:
                accepted.add(claim.job_id)
                assert after[claim.job_id]["state"] == item.state
                assert after[claim.job_id]["attempts"] == row["attempts"] - (not item.charged)
                continue
            assert entry is not None, "an attempt ended without a trace"
            if entry["outcome"] in {"lost", "cancelled"} and not entry["late"]:
                late += 1
        assert reply.late == late
        return accepted

    def check_renewals(self, request, reply, before, after):
        renewed = set()
        for item in request.held:
            row = before.get(item.job_id)
            holds = row is not None and row["state"] == "inflight" and row["token"] == item.token
            if item.renew:
                assert (item.job_id in reply.lost) == (not holds)
            if item.renew and holds:
                renewed.add(item.job_id)
                assert after[item.job_id]["claimable_at"] == self.clock.now + LEASE_MS
        return renewed

    def is_due(self, row):
        return row["claimable_at"] <= self.clock.now

    # Helpers

    def ends_of(self, name, kinds):
        return [OUTCOMES[kind](claim) for kind, claim in zip(kinds, self.hands[name].held.values(), strict=False)]

    def send(self, name, request):
        reply = self.exchanged(name, request)
        self.take_in(name, request, reply)

    def take_in(self, name, request, reply):
        held = self.hands[name].held
        for settlement in request.settlements:
            claim = settlement.ended.claim
            if held.get(claim.job_id) == claim:
                del held[claim.job_id]
        for job_id in reply.lost:
            if job_id in held:
                self.zombies[name].append(held.pop(job_id))
        held.update({claim.job_id: claim for claim in reply.claims})

    def repeat_unanswered(self, name):
        """Repeat the exchange whose commit was not confirmed, as a runner does before any other."""
        if request := self.unanswered.pop(name, None):
            self.send(name, replace(request, adopt=True))

    def one(self, sql):
        return dict(self.arena.rows(sql)[0])

    def teardown(self):
        """Let the faults end: the queue drains, what it holds comes out in order, and is taken over."""
        for name in BATCHES:
            self.arena.run(self.store.resume(self.batches[name]))
        hand = Hand(self.store, "drainer")
        self.hands["drainer"] = hand
        self.zombies["drainer"] = []
        for _ in range(DRAIN_ROUNDS):
            if not self.arena.rows("SELECT id FROM jobs WHERE state IN ('pending', 'inflight') LIMIT 1"):
                break
            self.clock.advance(LEASE_MS)
            self.send("drainer", hand.request([answer(claim) for claim in hand.held.values()], 50))
        for name in RUNNERS:
            self.repeat_unanswered(name)
            self.send(name, self.hands[name].request([answer(claim) for claim in self.hands[name].held.values()]))
        for name in BATCHES:
            self.check_drained(name)
        # Many histories end before anything is there to reuse; now there is.
        self.reuse(BATCHES[1], FIRST_ROWS)
        self.read(BATCHES[1])

    def check_drained(self, name):
        batch = self.batches[name]
        self.arena.run(self.store.seal(batch))
        assert self.arena.run(self.store.progress(name)).finished
        found = self.read(name)
        assert all(result.state in FINAL_STATES for result in found)
        ended = self.arena.run(collect_finished(self.store, batch))
        assert sorted(ended, key=lambda result: result.position) == found


def new_row(name: str, position: int, request: int, leader: int | str | None = None) -> NewJob:
    """Make a row; those of the second batch have names, and every other says its request in another way."""
    custom_id = None if name == BATCHES[0] else f"r{position}"
    return NewJob(position, custom_id, f"{request:032x}", encode(f"{request}, {position % 2}"), leader)


def answers_in(jobs: dict[int, dict[str, object]]) -> dict[object, dict[str, object]]:
    """Return by key the job whose answer or refusal is taken over: the newest, answers before refusals."""
    ended = [row for row in jobs.values() if row["leader_id"] is None]
    refused = [row for row in ended if row["state"] == "failed" and row["error_class"] in REFUSED_CLASSES]
    answered = [row for row in ended if row["state"] == "done"]
    return {row["key"]: row for found in (refused, answered) for row in sorted(found, key=lambda row: row["id"])}


async def collect(store, batch, **options):
    return [result async for result in store.results(batch, **options)]


async def collect_finished(store, batch):
    found, page = [], await store.finished(batch, FinishedPlace(), page_rows=3)
    while page.results:
        found += page.results
        page = await store.finished(batch, page.place, page_rows=3)
    return found


@pytest.fixture
def arena(location, monkeypatch):
    # What goes by chunks goes by several.
    monkeypatch.setattr(operate, "CHUNK_ROWS", 3)
    with connect(location) as raw, closing(Arena(location, raw)) as opened:
        yield opened


def explore(arena: Arena, *, examples: int, steps: int, **options) -> None:
    run_state_machine_as_test(
        lambda: QueueMachine(arena),
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
            **options,
        ),
    )


def test_every_history_keeps_the_invariants(arena):
    # A history takes ten times as long on a server.
    explore(arena, examples=60 if arena.is_sqlite else 10, steps=40)


# The test of the test: each of these guards lets a stale attempt through.


def rows_with_owner_and_number() -> StagedRows:
    columns = {column.name: column.type for column in settle.ended_rows.c}
    return StagedRows("ended", columns | {"number": Integer(), "owner": Text()})


WEAK_GUARDS = {
    "id": lambda jobs, rows, now: jobs.c.id == rows.c.job_id,
    "state": lambda jobs, rows, now: and_(jobs.c.id == rows.c.job_id, jobs.c.state == "inflight"),
    "owner": lambda jobs, rows, now: and_(
        jobs.c.id == rows.c.job_id, jobs.c.state == "inflight", jobs.c.claimed_by == rows.c.owner
    ),
    "owner and lease": lambda jobs, rows, now: and_(
        jobs.c.id == rows.c.job_id,
        jobs.c.state == "inflight",
        jobs.c.claimed_by == rows.c.owner,
        jobs.c.claimable_at > now,
    ),
    "attempt number": lambda jobs, rows, now: and_(
        jobs.c.id == rows.c.job_id, jobs.c.state == "inflight", jobs.c.attempts == rows.c.number
    ),
}


def weaken(monkeypatch, arena, guard) -> None:
    """Let the settling statements pass by `guard` instead of the token."""
    staged = rows_with_owner_and_number()
    arena.forget_staged_rows()
    row_of = settle._row

    def row_with_owner_and_number(item):
        claim = item.ended.claim
        return (*row_of(item), claim.attempts, arena.owners[claim.job_id, claim.token])

    monkeypatch.setattr(settle, "ENDED", staged)
    monkeypatch.setattr(settle, "ended_rows", staged.rows)
    monkeypatch.setattr(settle, "_row", row_with_owner_and_number)
    monkeypatch.setattr(settle, "insert", postgresql.insert)
    condition = guard(settle.jobs, staged.rows, settle.now_ms)
    # The log's own key would refuse a second end of one attempt, and so hide what the guard lets through.
    log = settle.log_statement(condition)
    log = log.prefix_with("OR IGNORE") if arena.is_sqlite else log.on_conflict_do_nothing()
    monkeypatch.setattr(settle, "LOG_ENDED", log)
    monkeypatch.setattr(settle, "SETTLE", settle.settle_statement(condition))
    monkeypatch.setattr(settle, "_settle_and_log", settle_whatever_is_logged)


@cache
def settle_whatever_is_logged(log, settling):
    logged = log.returning(settle.attempts.c.job_id).cte("logged")
    return settling.where(select(func.count(logged.c.job_id)).scalar_subquery() >= 0)


# Chance finds the others too, in more time; known histories find each of them, on both databases.
@pytest.mark.parametrize("location", ["sqlite"], indirect=True)
@pytest.mark.parametrize("name", ["state", "owner"])
def test_a_weak_guard_is_found_by_chance(arena, monkeypatch, name):
    weaken(monkeypatch, arena, WEAK_GUARDS[name])
    with pytest.raises(AssertionError):
        explore(arena, examples=400, steps=40, phases=[Phase.generate], report_multiple_bugs=False)


def lose(machine, name):
    machine.crash_or_come_back(name, None, 0, 0, LEASE_MS)


def come_back(machine, name, kind):
    machine.crash_or_come_back(name, kind, 0, 0, 0)


def end_what_has_ended(machine):
    machine.claim("a", 1, True)
    lose(machine, "a")
    machine.claim("b", 1, True)
    machine.settle("b", ["done"])
    come_back(machine, "a", "failed")


def end_what_another_holds(machine):
    machine.claim("a", 1, True)
    lose(machine, "a")
    machine.claim("b", 1, True)
    come_back(machine, "a", "done")


def end_what_was_claimed_again_since(machine):
    machine.claim("a", 1, True)
    lose(machine, "a")
    machine.claim("a", 1, True)
    come_back(machine, "a", "done")


def repeat_a_release_that_another_has_claimed_since(machine):
    machine.claim("a", 1, True)
    machine.exchange("a", ["released"], 0, False)
    machine.claim("b", 1, True)
    machine.repeat_unanswered("a")


HISTORIES = {
    "id": end_what_has_ended,
    "state": end_what_another_holds,
    "owner": end_what_was_claimed_again_since,
    "owner and lease": end_what_was_claimed_again_since,
    "attempt number": repeat_a_release_that_another_has_claimed_since,
}


def replay(arena, history) -> None:
    machine = QueueMachine(arena)
    machine.pause(BATCHES[1])
    history(machine)
    machine.finished_rows_never_change()
    machine.tallies_agree_with_a_recount()


@pytest.mark.parametrize("name", WEAK_GUARDS)
def test_a_stale_attempt_changes_nothing_unless_the_guard_is_weak(arena, monkeypatch, name):
    replay(arena, HISTORIES[name])
    weaken(monkeypatch, arena, WEAK_GUARDS[name])
    with pytest.raises(AssertionError):
        replay(arena, HISTORIES[name])
