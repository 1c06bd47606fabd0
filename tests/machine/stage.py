"""Who acts in a history, on what, and how calls may end."""

from __future__ import annotations

from store_driver import LEASE_MS, SERVING, done, failed, halted, released, retry, throttled

from batchq.jobs import Claim, NewJob, Usage
from batchq.pacing import Limits
from batchq.request import encode
from batchq.settlement import Settlement
from batchq.store.find import lane_name

HOUR_MS = 3_600_000
MAX_ATTEMPTS = 3
CHUNK_ROWS = 3
RUNNERS = ("a", "b", "c", "d", "e")
FINAL_STATES = ("done", "failed", "cancelled")
STATES = ("pending", "inflight", *FINAL_STATES)
# The first and the third share a lane.
MODELS = {"first": "model-0", "second": "model-1", "third": "model-0"}
BATCHES = tuple(MODELS)
LANES = tuple(lane_name("echo", SERVING[0].base_url, model) for model in sorted(set(MODELS.values())))
# For each row whom it follows, None: nobody. The first rows run, mostly: it is claims that may go wrong.
FIRST_ROWS = (None, None, None, 2)
# Rows of different batches, and some of one, ask for the same.
REQUESTS = 4
TOKENS = 150
STEPS_MS = (1, LEASE_MS // 4, LEASE_MS - 1, LEASE_MS, 3 * LEASE_MS)
# The clock that all go by: somebody sets it, or the machine slept.
JUMPS_MS = (HOUR_MS, -HOUR_MS)
LIMITS = (
    Limits(),
    Limits(max_inflight=1),
    Limits(rpm=2, burst=1),
    Limits(max_inflight=2, rpm=60),
    Limits(tpm=1_000),
)
BUDGETS = (None, 0, 5, 20)


def answer(claim: Claim, *, cost: int | None = None) -> Settlement:
    """Succeed with a result that tells which attempt gave it."""
    return done(claim, f"{claim.job_id}/{claim.token}", cost=cost, usage=Usage(TOKENS - 50, 50))


OUTCOMES = {
    "done": lambda claim: answer(claim, cost=claim.token),
    "done, at unknown cost": answer,
    "failed": failed,
    "retry": lambda claim: retry(claim, after=0, cost=7),
    "back off": lambda claim: retry(claim, after=90),
    "throttled": throttled,
    "throttled for long": lambda claim: throttled(claim, after=20),
    "released": released,
    "halted": halted,
    "halted by itself": lambda claim: halted(claim, "no such thing", "not_found"),
}


def new_row(name: str, position: int, request: int, leader: int | str | None = None) -> NewJob:
    """Make a row; those of the second batch have names, and every other says its request in another way."""
    custom_id = f"r{position}" if name == BATCHES[1] else None
    return NewJob(position, custom_id, f"{request:032x}", encode(f"{request}, {position % 2}"), leader)
