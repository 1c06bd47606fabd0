"""Holds a history against what batchq promises; pure functions, which name what was broken and by which job."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from scripts.chaos_campaign.history import Attempt, Blow, Calls, History, Job, Move, answer_of
from tests.killpoints import INSIDE_COMMIT

# Between the clock of the database and that of who signals, on one machine.
CLOCK_MS = 50
# Of all attempts: so many may lose their leases for want of a processor before it is renewing that is to blame.
STARVED_SHARE = 0.05
STARVED = "starved"


@dataclass(frozen=True, slots=True)
class Breach:
    """A promise that was broken. `kind` is what the table counts it as."""

    kind: str
    text: str
    job: Job | None = None


LOST, DOUBLED, OTHER = "lost", "doubled", "other"


def judge(history: History) -> list[Breach]:
    """Return what was broken, of every promise."""
    breaches = [*_all_are_there(history), *_calls_have_attempts(history), *_leases_are_renewed(history)]
    for job in history.jobs:
        for look in _LOOKS:
            breaches += look(history, job)
    return breaches


def _all_are_there(history: History) -> Iterator[Breach]:
    there = [(job.batch, job.position) for job in history.jobs]
    wanted = {(batch, position) for batch, prompts in history.prompts.items() for position in range(len(prompts))}
    for batch, position in sorted(wanted - {*there}):
        yield Breach(LOST, f"{batch}:{position} is not in the queue")
    for batch, position in sorted({*there} - wanted):
        yield Breach(DOUBLED, f"{batch}:{position} was never enqueued")
    if len(there) != len({*there}):
        yield Breach(DOUBLED, "a row of the input has more than one job")


def _calls_have_attempts(history: History) -> Iterator[Breach]:
    for prompt in history.stray_calls:
        yield Breach(OTHER, f"a call belongs to no attempt: {prompt!r}")
    known = {(attempt.job_id, attempt.token) for attempt in history.attempts}
    for job_id, token in sorted(history.calls.keys() - known):
        yield Breach(OTHER, f"the log has no attempt {token} of job {job_id}, and it made a call")


def _leases_are_renewed(history: History) -> Iterator[Breach]:
    """Who is at work keeps what he holds, unless the whole machine is too slow."""
    starved = sum(reason_of(history, attempt) == STARVED for attempt in history.attempts if attempt.outcome == "lost")
    if starved > STARVED_SHARE * len(history.attempts):
        yield Breach(OTHER, f"{starved} attempts lost their leases, and nothing had happened to their processes")


def _ends_once(history: History, job: Job) -> Iterator[Breach]:
    """Every job ends; one that is not done has lost all its attempts. A done row never changes."""
    ends = [move for move in history.moves_of[job.id] if move.became in {"done", "failed"}]
    gave_up = job.state == "failed" and job.error_class == "worker_died" and job.attempts == history.max_attempts
    if job.state != "done" and not gave_up:
        yield Breach(LOST, f"it is {job.state} ({job.error_class})", job)
    if len(ends) > 1:
        yield Breach(DOUBLED, f"it ended {len(ends)} times", job)
    if not ends:
        yield Breach(LOST, "it never ended", job)
    if any(move.was == "done" for move in history.moves_of[job.id]):
        yield Breach(DOUBLED, "its row was changed after it was done", job)


def _result_is_of_the_token(history: History, job: Job) -> Iterator[Breach]:
    """The accepted result is the answer of the attempt that held the token, and to the job's own prompt."""
    if job.state != "done":
        return
    text, mark = answer_of(job)
    prompts = history.prompts.get(job.batch, ())
    wanted = f"echo: {prompts[job.position]}" if job.position < len(prompts) else None
    if text != wanted:
        yield Breach(OTHER, f"its answer is {text!r} instead of {wanted!r}", job)
    if mark != (job.id, job.token):
        yield Breach(DOUBLED, f"its answer is that of {mark}, and it was done under token {job.token}", job)
    ends = {(move.was, move.old_token, move.new_token) for move in history.moves_of[job.id] if move.became == "done"}
    if ends != {("inflight", job.token, job.token)}:
        yield Breach(DOUBLED, f"it became done by {ends}", job)


def _claims_wait(history: History, job: Job) -> Iterator[Breach]:
    """The token grows with each claim, and no claim comes before the lease of another has run out."""
    for move in history.moves_of[job.id]:
        if move.new_token == move.old_token:
            if move.became == "inflight":
                yield Breach(OTHER, f"it was claimed under an old token: {move}", job)
        elif move.new_token != move.old_token + 1 or move.became != "inflight":
            yield Breach(OTHER, f"its token changed without a claim: {move}", job)
        elif move.claimed_at is None or move.claimed_at < move.due:
            yield Breach(DOUBLED, f"it was claimed before it was due: {move}", job)


def _attempts_are_counted(history: History, job: Job) -> Iterator[Breach]:
    """The log has each claim once; losses count, what was given back does not, and there are not too many."""
    log = history.by_job[job.id]
    if sorted(attempt.token for attempt in log) != list(range(1, job.token + 1)):
        yield Breach(OTHER, f"the log has not each of its {job.token} attempts once", job)
    charged, lost = sum(attempt.charged for attempt in log), sum(attempt.outcome == "lost" for attempt in log)
    if (job.attempts, job.losses) != (charged, lost):
        yield Breach(OTHER, f"it counts {job.attempts} attempts and {job.losses} losses: {charged} and {lost}", job)
    if job.attempts > history.max_attempts:
        yield Breach(OTHER, f"it had {job.attempts} attempts of {history.max_attempts}", job)


def _calls_are_explained(history: History, job: Job) -> Iterator[Breach]:
    """An attempt makes one call, or none if it was lost or released; a call more was in flight at a fault."""
    for attempt in history.by_job[job.id]:
        calls = history.calls_of(attempt)
        if attempt.outcome == "succeeded":
            if calls != Calls(1, 1):
                yield Breach(OTHER, f"attempt {attempt.token} succeeded with {calls}", job)
        elif attempt.outcome not in {"lost", "released"}:
            yield Breach(OTHER, f"attempt {attempt.token} ended as {attempt.outcome}", job)
        elif calls.made > 1:
            yield Breach(OTHER, f"attempt {attempt.token} made {calls.made} calls", job)
        elif calls.made and reason_of(history, attempt) is None:
            yield Breach(OTHER, f"attempt {attempt.token} was paid for in vain, and nothing had happened to it", job)


def reason_of(history: History, attempt: Attempt) -> str | None:
    """Return which fault an attempt was in flight at that did not succeed; None if there was none.

    One that was lost although its process was never touched has its lease to thank: it ran out because the process
    could not renew it, behind another that was stopped inside a commit, or for want of a processor.
    """
    own = [blow for blow in history.blows if blow.runner == attempt.runner and _strikes(blow, attempt)]
    if own:
        return own[-1].kind
    if attempt.outcome != "lost":
        return None
    stopped = (blow for blow in history.blows if blow.point == INSIDE_COMMIT and blow.until < math.inf)
    if any(_strikes(blow, attempt) for blow in stopped):
        return "behind a stopped commit"
    return STARVED if _ran_out(history, attempt) else None


def _strikes(blow: Blow, attempt: Attempt) -> bool:
    return blow.strikes(attempt.started_at - CLOCK_MS, attempt.ended_at + CLOCK_MS)


def _ran_out(history: History, attempt: Attempt) -> bool:
    """Whether a lost attempt had its lease to its end."""
    ends = [move for move in history.moves_of[attempt.job_id] if _takes_away(move, attempt.token)]
    return any(attempt.ended_at >= move.due >= attempt.started_at + history.lease_ms for move in ends)


def _takes_away(move: Move, token: int) -> bool:
    return move.was == "inflight" and move.old_token == token and move.became != "done"


_LOOKS: tuple[Callable[[History, Job], Iterator[Breach]], ...] = (
    _ends_once,
    _result_is_of_the_token,
    _claims_wait,
    _attempts_are_counted,
    _calls_are_explained,
)
