"""Drives a real store from tests: a clock to set, runners to hold claims, and looks at the rows themselves."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from raw_connection import connect

from batchq.jobs import (
    Answered,
    Batch,
    Claim,
    Ended,
    Exchanged,
    Failed,
    Halted,
    Held,
    NewBatch,
    NewJob,
    Outcome,
    Reason,
    Released,
    Retry,
    RunnerIdentity,
    Serving,
    Succeeded,
    Throttled,
    Usage,
    Wants,
)
from batchq.request import encode
from batchq.settlement import Settlement, settle
from batchq.store import ExchangeRequest, Store, open_store

LEASE_MS = 60_000
SERVING = (Serving("echo", "default", "http://localhost/v1", opened=True),)


class Clock:
    """The database's clock, as tests set it."""

    def __init__(self) -> None:
        self.now = 1_800_000_000_000

    def advance(self, milliseconds: int) -> None:
        self.now += milliseconds


async def open_queue(location: object, clock: Clock) -> Store:
    return await open_store(str(location), create=True, clock=lambda: clock.now)


async def make_tables(location: str) -> None:
    async with await open_store(location, create=True):
        pass


def identity(name: str, lease_ms: int = LEASE_MS) -> RunnerIdentity:
    return RunnerIdentity(name, "host", 1, 16, "echo", lease_ms)


class Hand:
    """A runner as the store sees one: what it holds, and its exchanges."""

    def __init__(self, store: Store, name: str = "runner", lease_ms: int = LEASE_MS) -> None:
        self.store = store
        self.runner = identity(name, lease_ms)
        self.held: dict[int, Claim] = {}

    def request(
        self,
        settlements: Sequence[Settlement] = (),
        slots: int = 0,
        *,
        renew: bool | Iterable[int] = False,
        serving: tuple[Serving, ...] = SERVING,
        batch_ids: Iterable[int] | None = None,
        **options: bool,
    ) -> ExchangeRequest:
        renewed = set(self.held if renew is True else renew or ())
        held = [Held(claim.job_id, claim.token, claim.job_id in renewed) for claim in self.held.values()]
        narrowed = None if batch_ids is None else frozenset(batch_ids)
        options.setdefault("holds_suspect", any(claim.is_suspect for claim in self.held.values()))
        return ExchangeRequest(self.runner, settlements, held, Wants(slots, serving, narrowed), **options)

    async def send(self, request: ExchangeRequest) -> Exchanged:
        """Exchange, and keep in hand what came."""
        reply = await self.store.exchange(request)
        for settlement in request.settlements:
            self._drop(settlement.ended.claim)
        for job_id in reply.lost:
            self.held.pop(job_id, None)
        self.held.update({claim.job_id: claim for claim in reply.claims})
        return reply

    async def claim(self, slots: int = 1, **options: object) -> tuple[Claim, ...]:
        return (await self.send(self.request(slots=slots, **options))).claims

    async def settle(self, *settlements: Settlement) -> Exchanged:
        return await self.send(self.request(settlements))

    async def renew(self, *job_ids: int) -> Exchanged:
        return await self.send(self.request(renew=job_ids or True))

    def forget(self) -> list[Claim]:
        """Crash: nothing is in hand any more. Returns what was."""
        claims = list(self.held.values())
        self.held.clear()
        return claims

    def _drop(self, claim: Claim) -> None:
        if self.held.get(claim.job_id) == claim:
            del self.held[claim.job_id]


def ended(claim: Claim, outcome: Outcome) -> Settlement:
    return settle(Ended(claim, outcome, duration_ms=5))


def done(claim: Claim, value: object = "ok", *, cost: int | None = None, usage: Usage | None = None) -> Settlement:
    return ended(claim, Succeeded(answered(encode(value), cost, usage)))


def answered(result: str, cost: int | None = None, usage: Usage | None = None) -> Answered:
    return Answered(result, usage or Usage(), cost, None if cost is None else "provider")


def failed(claim: Claim, message: str = "no", error_class: str = "bad_request") -> Settlement:
    return ended(claim, Failed(Reason(error_class, message, 400)))


def retry(claim: Claim, after: float | None = 0.0, *, cost: int | None = None) -> Settlement:
    answer = None if cost is None else answered('"half"', cost)
    return ended(claim, Retry(Reason("timeout", "took too long"), after, answer))


def throttled(claim: Claim, after: float | None = 0.0) -> Settlement:
    return ended(claim, Throttled(Reason("rate_limit", "slow down", 429), after))


def halted(claim: Claim, message: str = "no credit", error_class: str = "no_credit") -> Settlement:
    return ended(claim, Halted(Reason(error_class, message, 402)))


def released(claim: Claim) -> Settlement:
    return ended(claim, Released())


async def halt(store: Store, hand: Hand) -> Claim:
    """Claim one job and let its answer halt the lane."""
    (claim,) = await hand.claim(1)
    await hand.settle(halted(claim))
    return claim


def new_jobs(count: int, start: int = 0, *, named: str | None = None) -> list[NewJob]:
    return [
        NewJob(
            position,
            None if named is None else f"{named}{position}",
            f"{named or ''}{position:032x}",
            encode(f"prompt {position}"),
        )
        for position in range(start, start + count)
    ]


async def fill(store: Store, count: int, name: str = "demo", *, seal: bool = True, **fields: object) -> Batch:
    """Enqueue a batch of `count` jobs."""
    batch = await store.open_batch(NewBatch(name, "echo", **fields))
    for start in range(0, count, 2_000):
        await store.add_jobs(batch, new_jobs(min(2_000, count - start), start))
    if seal:
        await store.seal(batch)
    return await store.batch(name)


def rows(store: Store, sql: str, *parameters: object) -> list[Mapping[str, Any]]:
    """Read rows past the store, by column name; parameters are marked `?`."""
    with connect(store.location) as connection:
        return connection.execute(sql, parameters)


def job_row(store: Store, job_id: int) -> Mapping[str, Any]:
    return rows(store, "SELECT * FROM jobs WHERE id = ?", job_id)[0]


def log_of(store: Store, job_id: int) -> list[Mapping[str, Any]]:
    return rows(store, "SELECT * FROM attempts WHERE job_id = ? ORDER BY token", job_id)


def states(store: Store, batch: Batch) -> dict[str, int]:
    counted = rows(store, "SELECT state, count(*) AS n FROM jobs WHERE batch_id = ? GROUP BY state", batch.id)
    return {row["state"]: row["n"] for row in counted}


async def check_tallies(store: Store, batch: Batch) -> None:
    """Compare every tally with what the rows and the log say."""
    counts = (await store.progress(batch.name)).counts
    told = {name: getattr(counts, name) for name in ("pending", "inflight", "done", "failed", "cancelled")}
    recounted = await store.recount(batch)
    assert {name: count for name, count in told.items() if count} == recounted
    summed = rows(store, "SELECT sum(late) AS late, sum(losses) AS losses, sum(cost) AS cost, "
                         "sum(priced) AS priced FROM tallies WHERE batch_id = ?", batch.id)[0]  # fmt: skip
    logged = rows(store, "SELECT count(CASE WHEN late THEN 1 END) AS late, "
                         "count(CASE WHEN a.outcome = 'lost' THEN 1 END) AS losses, sum(a.cost) AS cost, "
                         "count(a.cost) AS priced FROM attempts a JOIN jobs j ON j.id = a.job_id "
                         "WHERE j.batch_id = ?", batch.id)[0]  # fmt: skip
    assert {name: total or 0 for name, total in dict(summed).items()} == {
        name: total or 0 for name, total in dict(logged).items()
    }


def positions(claims: Iterable[Claim]) -> Iterator[int]:
    return (claim.position for claim in claims)


def open_at_once(location: str) -> None:
    """Open a queue and use it: what a process does that starts together with others."""

    async def main() -> None:
        async with await open_store(location, create=True) as store:
            await store.register(identity("one of many"))
            await store.open_batch(NewBatch("shared", "echo"))

    asyncio.run(main())
