"""The exchange: a runner's one conversation with the database.

Settle what ended since the last one, renew what is held, claim up to the free slots, all in one
transaction. While it commits, more outcomes gather: the batching adapts by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from batchq.database import Transaction
from batchq.database.dialect import after_waiting, locks_rows
from batchq.jobs import Claim, Exchanged, Held, RunnerIdentity, Wants
from batchq.settlement import Settlement, condemned_among
from batchq.store.adopt import adopt
from batchq.store.claim import Share, claim_share
from batchq.store.find import BATCHES_PER_EXCHANGE, AnyRow, find_due, next_wake_ms, unopened
from batchq.store.lanes import LaneBook, act_on_lanes, blame
from batchq.store.locks import lock_jobs
from batchq.store.runners import beat
from batchq.store.set_back import heed_set_back
from batchq.store.settle import renew, write_settlements
from batchq.store.tally import Tally

# What is due but was not claimed is in hand: whoever looked again at once would spin until it is let go.
LOOK_AGAIN_MS = 100


@dataclass(frozen=True, slots=True)
class ExchangeRequest:
    """What a runner brings to an exchange.

    `held` is all it runs or has not settled. `expired_too` is off for a while after a gap without an
    exchange: whoever slept should let the others renew first. So it is where the database's clock shows more than
    `clock_by`: it was set forward, and leases seem to have ended. `adopt` asks for claims whose commit
    was never confirmed. `beat` asks to be seen. `holds_suspect` says that a suspect is in hand (see
    `Claim.is_suspect`): no other is claimed then.
    """

    runner: RunnerIdentity
    settlements: Sequence[Settlement]
    held: Sequence[Held]
    wants: Wants
    expired_too: bool = True
    clock_by: int | None = None
    adopt: bool = False
    beat: bool = False
    holds_suspect: bool = False

    @property
    def writes(self) -> bool:
        """Whether there is something to write even if no work is found."""
        return bool(self.settlements) or self.adopt or self.beat or any(item.renew for item in self.held)


def look(tx: Transaction, request: ExchangeRequest) -> Exchanged | None:
    """Look for work without the write lock; None when there is some to claim."""
    if request.wants.slots <= 0:
        return Exchanged(tx.now)
    request = _heed_clock(tx, request)
    book = LaneBook(tx, locking=False)
    offer = _find_offer(tx, book, request, suspects=not request.holds_suspect)
    if any(row.opened and (row.due or request.expired_too) for row in offer.due):
        return None
    return Exchanged(tx.now, unopened=unopened(offer.due), wake_in_ms=_wake_in_ms(tx, book, request, offer))


def exchange(tx: Transaction, request: ExchangeRequest) -> Exchanged:
    """Settle, claim and renew; whatever has to be waited for is waited for before anything is granted."""
    if request.beat:
        heed_set_back(tx)
    request = _heed_clock(tx, request)
    tally, book = Tally(), LaneBook(tx)
    renewals = [item for item in request.held if item.renew]
    _lock_held(tx, request, renewals)
    settled, late = write_settlements(tx, blame(LaneBook(tx, locking=False), request.settlements), tally)
    changes = act_on_lanes(book, tx.now, settled)
    # A pause or a halt of this very moment holds for the claims below.
    book.save()
    # Before calls in flight are counted: whose lease had run out is one of them again.
    lost = renew(tx, renewals, request.runner.lease_ms)
    adopted: list[Claim] = []
    if request.adopt:
        adopted = adopt(tx, request.runner, {item.job_id for item in request.held}, request.wants)
    offer = None
    if request.wants.slots > len(adopted):
        suspects = not (request.holds_suspect or any(claim.is_suspect for claim in adopted))
        offer = _find_affordable(tx, book, request, tally, suspects=suspects)
    tx = _go_on(tx, book, renewals, request.runner.lease_ms)
    taken, wake_in_ms = _take(tx, book, request, offer, adopted, tally) if offer is not None else ([], None)
    book.save()
    tally.write(tx, request.runner.id)
    claims = (*adopted, *taken)
    concurrency = beat(tx, request.runner, len(request.held) + len(claims)) if request.beat else None
    to_open = () if offer is None else unopened(offer.due)
    return Exchanged(tx.now, claims, lost, to_open, wake_in_ms, late, concurrency, condemned_among(settled), changes)


def _heed_clock(tx: Transaction, request: ExchangeRequest) -> ExchangeRequest:
    """Return the request without expired jobs where the clock was set forward: who holds them could not renew."""
    set_forward = request.clock_by is not None and tx.now > request.clock_by
    return replace(request, expired_too=False) if set_forward else request


def _go_on(tx: Transaction, book: LaneBook, renewals: Sequence[Held], lease_ms: int) -> Transaction:
    """Return the transaction at its time after all waiting; leases begin then, too."""
    later = after_waiting(tx)
    book.go_on(later)
    if later.now > tx.now:
        renew(later, renewals, lease_ms)
    return later


def _take(
    tx: Transaction, book: LaneBook, request: ExchangeRequest, offer: _Offer, adopted: Sequence[Claim], tally: Tally
) -> tuple[list[Claim], int | None]:
    """Claim what is offered; return it, and when to look again if there is room for more."""
    slots = request.wants.slots - len(adopted)
    in_hand = {item.job_id for item in request.held} | {claim.job_id for claim in adopted}
    share = Share(request.runner, in_hand, slots, offer.suspects, request.expired_too, dict(request.wants.rooms))
    taken = claim_share(tx, book, offer.due, share, tally)
    book.save()  # before the next time is asked for
    wake_in_ms = _wake_in_ms(tx, book, request, offer) if len(taken) < slots else None
    if wake_in_ms is not None and offer.due and not taken:
        wake_in_ms = max(wake_in_ms, LOOK_AGAIN_MS)
    return taken, wake_in_ms


def _lock_held(tx: Transaction, request: ExchangeRequest, renewals: Sequence[Held]) -> None:
    """Lock the jobs that more than one statement changes."""
    if locks_rows(tx) and renewals:
        settled = (item.ended.claim.job_id for item in request.settlements)
        lock_jobs(tx, [*settled, *(item.job_id for item in renewals)])


@dataclass(frozen=True, slots=True)
class _Offer:
    """Batches with work that may start now, and the lanes in which none can start at this moment."""

    due: Sequence[AnyRow]
    shut: frozenset[str]
    suspects: bool


def _find_offer(tx: Transaction, book: LaneBook, request: ExchangeRequest, *, suspects: bool) -> _Offer:
    """Look for work until there is some in a lane with room, or none at all: full lanes hide no other."""
    shut = {lane for lane, room in request.wants.rooms if room <= 0}
    while True:
        due = find_due(tx, request.wants, suspects=suspects, shut=shut)
        book.read(row.lane for row in due)
        full = {row.lane for row in due if book.room(row.lane) == 0}
        shut |= full
        if not full or len(due) < BATCHES_PER_EXCHANGE:
            return _Offer([row for row in due if row.lane not in full], frozenset(shut), suspects)


def _find_affordable(
    tx: Transaction, book: LaneBook, request: ExchangeRequest, tally: Tally, *, suspects: bool
) -> _Offer:
    """Look for work; what this very transaction has spent counts too, where there is a budget by now."""
    offer = _find_offer(tx, book, request, suspects=suspects)
    if any(row.budget is not None and tally.has_spent(row.id) for row in offer.due):
        tally.write(tx, request.runner.id)
        offer = _find_offer(tx, book, request, suspects=suspects)
    return offer


def _wake_in_ms(tx: Transaction, book: LaneBook, request: ExchangeRequest, offer: _Offer) -> int | None:
    """Return when to look again; a lane that is full of calls says nothing, since whoever ends one commits that."""
    waits = [wait for lane in offer.shut if (wait := book.wait_ms(lane)) > 0]
    due = next_wake_ms(tx, request.wants, suspects=offer.suspects, expired_too=request.expired_too, shut=offer.shut)
    return min(waits + ([] if due is None else [due]), default=None)
