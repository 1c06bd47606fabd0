"""What a queue went through: its rows, its log, every change of a job's state or token, and the provider's ledger.

The changes are kept by triggers in the database itself, so that none is missed between two looks.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.killpoints import read_mark
from tests.raw_connection import RawConnection, connect

_MOVES = (
    "CREATE TABLE moves (job_id BIGINT, was TEXT, became TEXT, old_token BIGINT, new_token BIGINT, due BIGINT,"
    " claimed_at BIGINT, finished_at BIGINT)"
)
_WHEN = "OLD.state <> NEW.state OR OLD.token <> NEW.token OR OLD.state = 'done'"
_INSERT = (
    "INSERT INTO moves VALUES (OLD.id, OLD.state, NEW.state, OLD.token, NEW.token, OLD.claimable_at, NEW.claimed_at,"
    " NEW.finished_at);"
)
_ON_SQLITE = (f"CREATE TRIGGER watched AFTER UPDATE ON jobs WHEN {_WHEN} BEGIN {_INSERT} END",)
_ON_POSTGRESQL = (
    f"CREATE FUNCTION watch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {_INSERT} RETURN NULL; END $$",
    f"CREATE TRIGGER watched AFTER UPDATE ON jobs FOR EACH ROW WHEN ({_WHEN}) EXECUTE FUNCTION watch()",
)
_JOBS = (
    "SELECT jobs.id, name AS batch, position, jobs.state, token, attempts, losses, result, error_class,"
    " claimed_by FROM jobs JOIN batches ON batches.id = batch_id"
)
_ATTEMPTS = "SELECT job_id, token, runner, started_at, ended_at, outcome, charged, late FROM attempts ORDER BY token"


@dataclass(frozen=True, slots=True)
class Job:
    """A row of `jobs`, as it is in the end."""

    id: int
    batch: str
    position: int
    state: str
    token: int
    attempts: int
    losses: int
    result: str | None = None
    error_class: str | None = None
    claimed_by: str | None = None


@dataclass(frozen=True, slots=True)
class Attempt:
    """A row of the log."""

    job_id: int
    token: int
    runner: str
    started_at: int
    ended_at: int
    outcome: str
    charged: bool = True
    late: bool = False


@dataclass(frozen=True, slots=True)
class Move:
    """A change of a job; `due` is when its lease ran out, or when it was due."""

    job_id: int
    was: str
    became: str
    old_token: int
    new_token: int
    due: int = 0
    claimed_at: int | None = None
    finished_at: int | None = None


@dataclass(frozen=True, slots=True)
class Calls:
    """How often the provider was called for an attempt, and how often it answered."""

    made: int = 0
    answered: int = 0


@dataclass(frozen=True, slots=True)
class Blow:
    """A fault that was carried out, by the clock of the machine; a killed process never comes back.

    A `calm` one was the only one at its time.
    """

    kind: str
    point: str | None
    runner: str | None
    at: int
    until: float = float("inf")
    calm: bool = False

    def strikes(self, began: float, ended: float) -> bool:
        """Whether it fell into a span of time."""
        return self.at <= ended and began <= self.until


@dataclass(frozen=True)
class History:
    """All that a judge has to know. `prompts` are those that were enqueued, by batch, in order."""

    prompts: Mapping[str, Sequence[str]]
    jobs: Sequence[Job]
    attempts: Sequence[Attempt]
    moves: Sequence[Move]
    calls: Mapping[tuple[int, int], Calls]
    stray_calls: Sequence[str]
    blows: Sequence[Blow]
    lease_ms: int
    max_attempts: int
    by_job: Mapping[int, Sequence[Attempt]] = field(init=False)
    moves_of: Mapping[int, Sequence[Move]] = field(init=False)

    def __post_init__(self) -> None:
        """Sort what belongs to each job."""
        by_job, moves_of = defaultdict(list), defaultdict(list)
        for attempt in self.attempts:
            by_job[attempt.job_id].append(attempt)
        for move in self.moves:
            moves_of[move.job_id].append(move)
        object.__setattr__(self, "by_job", by_job)
        object.__setattr__(self, "moves_of", moves_of)

    def calls_of(self, attempt: Attempt) -> Calls:
        """Return what the provider was asked for an attempt."""
        return self.calls.get((attempt.job_id, attempt.token), Calls())

    def told(self, job: Job) -> str:
        """Return what happened to a job, for people."""
        lines = [f"job {job.id}, {job.batch}:{job.position}: {job.state}, token {job.token}, {job.result}"]
        lines += [f"  {attempt}, {self.calls_of(attempt)}" for attempt in self.by_job[job.id]]
        lines += [f"  {move}" for move in self.moves_of[job.id]]
        return "\n".join(lines)


def watch(location: str) -> None:
    """Have the database of a queue keep every change of its jobs."""
    with connect(location) as raw:
        for statement in (_MOVES, *(_ON_SQLITE if raw.is_sqlite else _ON_POSTGRESQL)):
            raw.execute(statement)


def read_rows(location: str) -> tuple[list[Job], list[Attempt], list[Move]]:
    """Return all rows that a judge looks at."""
    with connect(location) as raw:
        jobs = [Job(**row) for row in _dicts(raw, _JOBS)]
        attempts = [Attempt(**row | {"late": bool(row["late"])}) for row in _dicts(raw, _ATTEMPTS)]
        moves = [Move(**row) for row in _dicts(raw, "SELECT * FROM moves")]
    return jobs, attempts, moves


def _dicts(raw: RawConnection, sql: str) -> list[dict[str, Any]]:
    return [dict(row) for row in raw.execute(sql)]


def read_calls(ledger: Mapping[str, Any]) -> tuple[dict[tuple[int, int], Calls], list[str]]:
    """Return the calls of a ledger by attempt, and the prompts that carry no mark."""
    calls, strays = {}, []
    for prompt, made in ledger["prompts"].items():
        _, mark = read_mark(prompt)
        if mark is None:
            strays.append(prompt)
        else:
            calls[mark] = Calls(made, ledger["answered_prompts"].get(prompt, 0))
    return calls, strays


def answer_of(job: Job) -> tuple[str, tuple[int, int] | None]:
    """Return the text of a job's result without its mark, and the attempt that the mark names."""
    return read_mark(json.loads(job.result or '""'))
