"""What a runner says to the store and hears from it: claims, leases, what ended."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from batchq.jobs.batch import Batch
from batchq.jobs.outcome import Outcome

DEFAULT_LEASE_MS = 60_000

# A job that was lost this often may be what kills its workers.
SUSPECT_LOSSES = 2


@dataclass(frozen=True, slots=True)
class RunnerIdentity:
    """Who claims: a fresh `id` per start, so that a re-used pid or name is never taken for its past.

    `endpoints` is JSON: the base URL of each endpoint that it knows. `batch_ids` are the batches that it
    serves; None: any. `pid_space` tells among which processes `pid` means something (see `pids`),
    `version` which batchq it is.
    """

    id: str
    host: str
    pid: int
    concurrency: int
    serves: str
    lease_ms: int
    endpoints: str = "{}"
    batch_ids: frozenset[int] | None = None
    pid_space: str | None = None
    version: str | None = None


@dataclass(frozen=True, slots=True)
class Serving:
    """A worker and endpoint that a runner can serve; `opened` once the worker's client is there."""

    worker: str
    endpoint: str
    base_url: str
    opened: bool


@dataclass(frozen=True, slots=True)
class Wants:
    """What a runner asks of an exchange: up to `slots` jobs of what it serves.

    `batch_ids` narrows it to these batches. `rooms` says of some lanes how many more calls this process
    would make there (see pacing.Window); in all others it is as many as there are slots.
    """

    slots: int
    serving: tuple[Serving, ...]
    batch_ids: frozenset[int] | None = None
    rooms: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Claim:
    """A job that this runner holds under a lease, as the claim returned it.

    `payload` is still JSON text: it is decoded where the job runs, so that one bad row
    fails alone. `attempts` counts this claim. `epoch` is the lane's at the time of the claim;
    `probe` marks the one job that a halted lane lets through. `tokens` were reserved in a lane that
    counts them. `strikes` is how often in a row it ended with the error `strike_class`, `halts` how
    often it halted its lane, the first time at `halted_at`.
    """

    job_id: int
    token: int
    batch: Batch
    position: int
    custom_id: str | None
    payload: str
    attempts: int
    losses: int
    throttles: int
    lane: str = ""
    epoch: int = 0
    probe: bool = False
    tokens: float = 0.0
    strikes: int = 0
    strike_class: str | None = None
    halts: int = 0
    halted_at: int | None = None

    @property
    def is_suspect(self) -> bool:
        """Whether the job may be what kills its workers: a runner holds one of these at a time."""
        return self.losses >= SUSPECT_LOSSES


@dataclass(frozen=True, slots=True)
class AtWork:
    """A call that has been running for so many seconds."""

    claim: Claim
    seconds: float


class Phase(StrEnum):
    """Where a runner is between its start and its end."""

    STARTING = "starting"
    RUNNING = "running"
    DRAINING = "draining"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class RunnerReport:
    """A runner at one moment, for whoever watches over its process.

    `done` and `failed` count the jobs that it has ended, `drain_seconds` is how long what runs may still take
    (None before it drains). `away` says why the database could not be asked the last time; None if it could.
    """

    phase: Phase
    concurrency: int
    in_flight: int
    done: int
    failed: int
    drain_seconds: float | None = None
    away: str | None = None


@dataclass(frozen=True, slots=True)
class Held:
    """A claim in hand; `renew` asks for its lease to be extended."""

    job_id: int
    token: int
    renew: bool


@dataclass(frozen=True, slots=True)
class Ended:
    """An attempt that ended, on its way to the store. `duration_ms` is how long it ran."""

    claim: Claim
    outcome: Outcome
    duration_ms: int


class LaneMove(StrEnum):
    """What an exchange did to a lane."""

    THROTTLED = "throttled"
    HALTED = "halted"
    REOPENED = "reopened"


@dataclass(frozen=True, slots=True)
class LaneChange:
    """A lane that an exchange has throttled for so many `seconds`, halted or reopened, and why."""

    lane: str
    move: LaneMove
    reason: str | None = None
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Exchanged:
    """What an exchange brought.

    `now` is the database's clock at the exchange, `lost` the ids of held jobs that are no longer
    this runner's, `unopened` the workers to open before their jobs can be claimed, `wake_in_ms` the
    time until something becomes due (None: nothing is waiting), `came_late` the id of the job of each outcome
    that was refused, `condemned` those that failed since they halted their lane again and again, `lanes` what became of
    lanes, `concurrency` what an operator wants of this runner from now on.
    """

    now: int
    claims: tuple[Claim, ...] = ()
    lost: frozenset[int] = frozenset()
    unopened: tuple[Serving, ...] = ()
    wake_in_ms: int | None = None
    came_late: tuple[int, ...] = ()
    concurrency: int | None = None
    condemned: frozenset[int] = frozenset()
    lanes: tuple[LaneChange, ...] = ()

    @property
    def late(self) -> int:
        """How many outcomes were refused."""
        return len(self.came_late)
