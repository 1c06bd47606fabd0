"""The short version of `scripts/chaos` on both databases, and tests of its judge."""

from dataclasses import replace

import pytest
from killpoints import (
    INSIDE_COMMIT,
    WORKER_POINTS,
    marked,
    read_mark,
)
from sqlalchemy import and_
from store_driver import Hand, answered, ended, fill, open_queue

from batchq.jobs import Succeeded
from batchq.store import settle
from scripts.chaos_campaign.campaign import Plan, run
from scripts.chaos_campaign.faults import Kind, Schedule
from scripts.chaos_campaign.history import Attempt, Blow, Calls, History, Job, Move, read_rows, watch
from scripts.chaos_campaign.judge import DOUBLED, LOST, OTHER, STARVED, judge, reason_of
from scripts.chaos_campaign.table import table

# Its first few kills meet every point, and all other faults are among them.
SEED, KILLS = 1355, 7


def test_workers_killed_stopped_and_terminated_lose_and_double_nothing(tmp_path, empty_location):
    schedule = Schedule(SEED, workers=3, kills=KILLS)
    plan = Plan(schedule, rows=100, batches=2, deaths=1, calm=1)

    verdict = run(plan, tmp_path, empty_location, lambda _progress: None)

    assert list(verdict.told_breaches()) == []
    figures = verdict.figures()
    assert (figures["lost"], figures["doubled"]) == (0, 0)
    assert all(verdict.kills[point] for point in WORKER_POINTS)
    assert all(verdict.faults(kind) for kind in Kind)
    assert verdict.others_killed["enqueue"]
    assert figures["jobs"] >= 2 * plan.rows
    assert "| lost " in table({"here": figures})


# The judge: on a history in which all is well, and on one that breaks a promise.


LEASE_MS, MAX_ATTEMPTS = 1_000, 3
# One that was killed in its call, and one that then had an answer.
LOST_FIRST = Attempt(1, 1, "a", 0, 1_500, "lost")
THEN_DONE = Attempt(1, 2, "b", 1_500, 1_700, "succeeded")
RETAKEN = Move(1, "inflight", "inflight", 1, 2, due=1_000, claimed_at=1_500)
DONE = Move(1, "inflight", "done", 2, 2, due=2_500, claimed_at=1_500, finished_at=1_700)


def history(**changes) -> History:
    """One job, lost once by a worker that was killed, and done by another."""
    parts = {
        "prompts": {"demo": ["hello"]},
        "jobs": [Job(1, "demo", 0, "done", 2, attempts=2, losses=1, result='"echo: hello #1/2"')],
        "attempts": [LOST_FIRST, THEN_DONE],
        "moves": [Move(1, "pending", "inflight", 0, 1, due=0, claimed_at=0), RETAKEN, DONE],
        "calls": {(1, 1): Calls(1, 0), (1, 2): Calls(1, 1)},
        "stray_calls": [],
        "blows": [Blow(Kind.KILL.value, None, "a", 100)],
    }
    return History(**parts | changes, lease_ms=LEASE_MS, max_attempts=MAX_ATTEMPTS)


def with_job(**changes) -> History:
    (job,) = history().jobs
    return history(jobs=[replace(job, **changes)])


def with_moves(*moves: Move) -> History:
    return history(moves=[*history().moves, *moves])


def with_calls(**changes) -> History:
    calls = {tuple(map(int, mark.removeprefix("of_").split("_"))): made for mark, made in changes.items()}
    return history(calls=history().calls | calls)


def test_a_history_that_keeps_all_promises_passes():
    assert judge(history()) == []


BROKEN = {
    "a job is missing": (history(jobs=[]), LOST),
    "a job that nobody enqueued": (history(prompts={"demo": []}), DOUBLED),
    "two jobs for one row": (history(jobs=[*history().jobs, replace(history().jobs[0], id=2)]), DOUBLED),
    "a job that never ended": (with_job(state="pending"), LOST),
    "a job that gave up with attempts left": (with_job(state="failed", error_class="worker_died"), LOST),
    "a second completion": (with_moves(DONE), DOUBLED),
    "a done row that changed": (with_moves(Move(1, "done", "done", 2, 2)), DOUBLED),
    "the answer of a stale attempt": (with_job(result='"echo: hello #1/1"'), DOUBLED),
    "the answer to another prompt": (with_job(result='"echo: bye #1/2"'), OTHER),
    "a claim before the lease ran out": (
        history(moves=[history().moves[0], replace(RETAKEN, due=1_600), DONE]),
        DOUBLED,
    ),
    "a token that went back": (with_moves(Move(1, "inflight", "inflight", 2, 1, claimed_at=9_000)), OTHER),
    "a claim without a token of its own": (with_moves(Move(1, "pending", "inflight", 2, 2, claimed_at=9_000)), OTHER),
    "an attempt that the log lacks": (history(attempts=[THEN_DONE]), OTHER),
    "a loss that was not counted": (with_job(losses=0), OTHER),
    "an attempt that was not charged": (with_job(attempts=1), OTHER),
    "too many attempts": (replace(history(), max_attempts=1), OTHER),
    "an attempt that called twice": (with_calls(of_1_2=Calls(2, 1)), OTHER),
    "a lost attempt that called twice": (with_calls(of_1_1=Calls(2, 0)), OTHER),
    "a completion without a call": (with_calls(of_1_2=Calls(0, 0)), OTHER),
    "a call of no attempt": (with_calls(of_1_3=Calls(1, 1)), OTHER),
    "a call without a mark": (history(stray_calls=["hello"]), OTHER),
    "a call paid for in vain with nothing to excuse it": (
        history(blows=[], moves=[history().moves[0], replace(RETAKEN, due=900), DONE]),
        OTHER,
    ),
    "leases that ran out with nothing to excuse it": (history(blows=[]), OTHER),
    "an attempt that failed though nothing was wrong": (
        history(attempts=[replace(LOST_FIRST, outcome="retry"), THEN_DONE]),
        OTHER,
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_the_judge_finds(what):
    broken, kind = BROKEN[what]

    assert kind in {breach.kind for breach in judge(broken)}


def test_a_job_that_was_lost_as_often_as_it_may_be_ends_failed_and_that_is_no_breach():
    attempts = [replace(LOST_FIRST, token=token, started_at=token, ended_at=token) for token in (1, 2, 3)]
    claims = [Move(1, "pending", "inflight", token - 1, token, 0, claimed_at=token) for token in (1, 2, 3)]
    gone = Move(1, "inflight", "failed", 3, 3, finished_at=5_000)
    job = Job(1, "demo", 0, "failed", 3, attempts=3, losses=3, error_class="worker_died")

    assert judge(history(jobs=[job], attempts=attempts, moves=[*claims, gone], calls={})) == []


def test_a_lost_call_is_put_down_to_what_happened_to_its_process():
    stop = Blow(Kind.STOP.value, None, "a", 100, 1_400)
    behind = Blow(Kind.STOP.value, INSIDE_COMMIT, "b", 100, 1_400)
    before = Blow(Kind.STOP.value, INSIDE_COMMIT, "a", -9_000, -8_000)
    of_another = Blow(Kind.KILL.value, INSIDE_COMMIT, "b", -9_000)

    assert reason_of(history(blows=[stop]), LOST_FIRST) == Kind.STOP.value
    assert reason_of(history(blows=[behind]), LOST_FIRST) == "behind a stopped commit"
    assert reason_of(history(blows=[before]), LOST_FIRST) == STARVED
    assert reason_of(history(blows=[of_another]), LOST_FIRST) == STARVED
    assert reason_of(history(blows=[before]), replace(LOST_FIRST, outcome="released")) is None


@pytest.mark.anyio
@pytest.mark.parametrize("weak", [False, True])
async def test_a_weak_guard_is_found_in_the_rows_of_a_real_store(location, clock, monkeypatch, weak):
    if weak:
        guard = and_(settle.jobs.c.id == settle.ended_rows.c.job_id, settle.jobs.c.state == "inflight")
        monkeypatch.setattr(settle, "LOG_ENDED", settle.log_statement(guard))
        monkeypatch.setattr(settle, "SETTLE", settle.settle_statement(guard))
    async with await open_queue(location, clock) as store:
        await fill(store, 1)
        watch(location)
        stale, fresh = Hand(store, "stale"), Hand(store, "fresh")
        (early,) = await stale.claim()
        clock.advance(60_001)
        (late,) = await fresh.claim()
        for hand, claim in ((stale, early), (fresh, late)):
            result = f'"echo: prompt 0 #{claim.job_id}/{claim.token}"'
            await hand.settle(ended(claim, Succeeded(answered(result))))

    jobs, attempts, moves = read_rows(location)
    calls = {(attempt.job_id, attempt.token): Calls(1, 1) for attempt in attempts}
    blows = [Blow(Kind.STOP.value, None, "stale", attempts[0].started_at)]
    breaches = judge(History({"demo": ["prompt 0"]}, jobs, attempts, moves, calls, [], blows, 60_000, 8))

    assert {breach.kind for breach in breaches} == ({DOUBLED} if weak else set())


def test_a_seed_makes_the_same_schedule_each_time_and_another_seed_another_one():
    lines = list(Schedule(1, workers=4, kills=500).lines())

    assert lines == list(Schedule(1, workers=4, kills=500).lines())
    assert lines != list(Schedule(2, workers=4, kills=500).lines())


def test_a_schedule_has_the_kills_that_were_asked_for_at_every_point():
    schedule = Schedule(1, workers=4, kills=500)
    faults = [fault for slot in range(4) for fault in schedule.of_worker(slot)]
    kills = [fault.point for fault in faults if fault.kind is Kind.KILL]

    assert len(kills) == 500
    assert all(kills.count(point) >= 40 for point in WORKER_POINTS)
    assert {fault.point for fault in faults if fault.kind is Kind.STOP} == {None, *WORKER_POINTS}


def test_the_mark_of_an_attempt_goes_with_its_prompt_and_comes_back_with_the_answer():
    body = marked({"model": "m", "messages": [{"role": "user", "content": "hello"}]}, 12, 3)

    assert body["messages"][-1]["content"] == "hello #12/3"
    assert read_mark("echo: hello #12/3") == ("echo: hello", (12, 3))
    assert read_mark("hello") == ("hello", None)
