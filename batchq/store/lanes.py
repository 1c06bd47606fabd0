"""Lanes: what one rate limit covers waits, stops and reopens for all processes together.

A lane's state is read, asked and written back by pure functions of `pacing`, within one writing
transaction. Lanes without limits, pauses or halts have no row, and cost an exchange one look.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, fields, replace
from types import NoneType
from typing import Any

from sqlalchemy import BigInteger, CursorResult, RowMapping, Text, bindparam, cast, func, select

from batchq.database import Transaction
from batchq.database.dialect import insert_missing, json_list, lock_order, locks_rows, upsert
from batchq.jobs import Answered, Batch, Lane, LaneChange, LaneMove
from batchq.pacing import LaneState, Limits, lane
from batchq.schema import jobs, lanes
from batchq.settlement import MOST_HALTS, Settlement, condemn, may_be_its_own
from batchq.store.damage import refuse_odd
from batchq.store.find import AMONG_LIVE, INFLIGHT, live_batches, now_ms

_FIELDS = tuple(field.name for field in fields(LaneState))
_STATES = select(*(lanes.c[name] for name in _FIELDS))
_NUMBERS = tuple(name for name in _FIELDS if not isinstance(lanes.c[name].type, Text))
_NUMBER = frozenset({int, float, bool, NoneType})
_SOME = _STATES.where(lanes.c.name.in_(json_list("names", Text()))).order_by(lock_order(lanes.c.name))
_SOME_LOCKED = _SOME.with_for_update()
_SOME_FREE = _SOME.with_for_update(skip_locked=True)
_NAMES = select(lanes.c.name).where(lanes.c.name.in_(json_list("names", Text())))
_SAVE = upsert(lanes, ("name",))
# When to ask again for a lane that another transaction held.
_TAKEN_MS = 20

# Batch by batch, so that the index leads to the rows in flight, past all that wait.
_live = live_batches()
_calls = (INFLIGHT, AMONG_LIVE, jobs.c.claimable_at > now_ms)
_of_batch = (
    select(func.count())
    .where(jobs.c.batch_id == _live.c.batch_id, *_calls, jobs.c.lane == bindparam("lane", type_=Text))
    .correlate(_live)
    .scalar_subquery()
)
_IN_FLIGHT = select(cast(func.coalesce(func.sum(_of_batch), 0), BigInteger)).select_from(_live)
_IN_FLIGHT_BY_LANE = (
    select(func.count(), jobs.c.lane)
    .where(jobs.c.batch_id.in_(select(_live.c.batch_id)), *_calls)
    .group_by(jobs.c.lane)
)


class LaneBook:
    """The lanes that one transaction deals with: read once, changed in memory, written by `save`."""

    def __init__(self, tx: Transaction, *, locking: bool = True) -> None:
        """Start with nothing read; `locking` keeps others from the lanes that are read, until the transaction ends."""
        self._tx = tx
        self._locking = locking
        self._taken: set[str] = set()
        self._read: dict[str, LaneState | None] = {}
        self._states: dict[str, LaneState] = {}
        self._awake: dict[str, int | None] = {}

    def go_on(self, tx: Transaction) -> None:
        """Go on with the same transaction at its later time."""
        self._tx = tx

    def read(self, names: Iterable[str]) -> None:
        """Read lanes that will be asked for, in one statement."""
        missing = set(names) - self._read.keys()
        if not missing:
            return
        found = self._fetch(sorted(missing))
        self._read.update({name: found.get(name) for name in missing})
        self._states.update(found)

    def _fetch(self, names: list[str]) -> dict[str, LaneState]:
        """Read lanes; wait for those that others hold only where that is in the order in which all do."""
        bound = {"names": json.dumps(names)}
        in_order = not self._read or names[0] > max(self._read)
        if in_order or not (self._locking and locks_rows(self._tx)):
            statement = _SOME_LOCKED if self._locking else _SOME
            return _by_name(self._tx.connection.execute(statement, bound))
        found = _by_name(self._tx.connection.execute(_SOME_FREE, bound))
        self._taken |= set(self._tx.connection.execute(_NAMES, bound).scalars()) - found.keys()
        return found

    def make(self, new: Iterable[LaneState]) -> None:
        """Make lanes that are not there: before any is waited for, since who makes one waits for others who do."""
        unread = {state.name: state for state in new if state.name not in self._read}
        if unread and locks_rows(self._tx):
            there = self._tx.connection.execute(_NAMES, {"names": json.dumps(list(unread))}).scalars()
            rows = [asdict(unread[name]) for name in sorted(unread.keys() - set(there))]
            if rows:
                self._tx.connection.execute(insert_missing(lanes, ("name",)), rows)

    def get(self, name: str) -> LaneState | None:
        """Return a lane; None if there never was news of it."""
        self.read((name,))
        return self._states.get(name)

    def of_batch(self, name: str, batch: Batch) -> LaneState:
        """Return the lane of a batch's calls, a new one if there never was news of it."""
        return self.get_or_make(_new_lane(name, batch, self._tx.now))

    def get_or_make(self, new: LaneState) -> LaneState:
        """Return the lane of that name; `new` if there never was news of it, and nobody else has any just now."""
        found = self.get(new.name)
        if found is None and locks_rows(self._tx):
            self._tx.connection.execute(insert_missing(lanes, ("name",)), asdict(new))
            found = self._wait_for(new.name)
        return found or new

    def put(self, state: LaneState) -> None:
        """Take over a lane's next state."""
        self._states[state.name] = state

    def room(self, name: str) -> int | None:
        """Return how many calls may start in a lane now; None: as many as one likes."""
        if name in self._taken:
            return 0
        if name not in self._awake:
            self._awake[name] = self._wake(name)
        return self._awake[name]

    def wait_ms(self, name: str) -> int:
        """Return how long a lane that was asked for has to wait, as far as time decides it."""
        if name in self._taken:
            return _TAKEN_MS
        state = self._states.get(name)
        return 0 if state is None else lane.ready_at(state) - self._tx.now

    def draw(self, name: str, calls: int, wanted: int) -> None:
        """Note that calls start in a lane; `room` must have been asked before."""
        state = self.get(name)
        if state is None or not state.limited:
            return
        self.put(lane.draw(state, calls, wanted, self._tx.now))
        left = self._awake.get(name)
        self._awake[name] = None if left is None else left - calls

    def save(self) -> None:
        """Write what has changed."""
        changed = []
        for name, state in self._states.items():
            ready = replace(state, ready_at=lane.ready_at(state))
            if ready != self._read.get(name):
                changed.append(ready)
                self._read[name] = self._states[name] = ready
        if changed:
            self._tx.connection.execute(_SAVE, [asdict(state) for state in changed])

    def _wait_for(self, name: str) -> LaneState | None:
        """Read a lane that is there, whoever has it at the moment: what is made of it must not undo what he does."""
        statement = _SOME_LOCKED
        found = _by_name(self._tx.connection.execute(statement, {"names": json.dumps([name])})).get(name)
        self._taken.discard(name)
        self._read[name] = found
        if found is not None:
            self._states[name] = found
        return found

    def _wake(self, name: str) -> int | None:
        state = self.get(name)
        if state is None:
            return None
        if lane.ready_at(state) > self._tx.now:  # it was not when the batch was found
            return 0
        if not state.limited:
            return None
        in_flight = 0
        if state.max_inflight is not None or state.cut_at is not None:
            in_flight = self._tx.connection.execute(_IN_FLIGHT, {"lane": name, "now": self._tx.now}).scalar_one()
        awake = lane.wake(state, self._tx.now, in_flight)
        self.put(awake)
        return lane.room(awake, in_flight)


def blame(book: LaneBook, settlements: Sequence[Settlement]) -> Sequence[Settlement]:
    """Mark the jobs whose answers halt a lane; one that does so again and again while others succeed fails.

    The book must not lock: jobs are settled before lanes are waited for.
    """
    halting = [item for item in settlements if item.halt]
    if not halting:
        return settlements
    book.read(item.ended.claim.lane for item in halting)
    return [_blamed(item, book.get(item.ended.claim.lane)) if item.halt else item for item in settlements]


def _blamed(item: Settlement, state: LaneState | None) -> Settlement:
    claim = item.ended.claim
    if state is not None and state.epoch != claim.epoch:
        return item  # of before another halt, or a resume: anybody's answer
    proved = state is not None and (state.proved_at or 0) > (claim.halted_at or 0) > 0
    if proved and claim.halts + 1 >= MOST_HALTS and may_be_its_own(item):
        return condemn(item)
    return replace(item, blamed=True)


def _new_lane(name: str, batch: Batch, now: int) -> LaneState:
    base_url = name[len(batch.worker) + 1 : len(name) - len(batch.model) - 1]
    return LaneState(name, batch.worker, base_url, batch.model, refilled_at=now)


def act_on_lanes(book: LaneBook, now: int, settled: Iterable[Settlement]) -> tuple[LaneChange, ...]:
    """Tell the lanes what these outcomes mean for them; lanes without news are not written. Return what changed."""
    by_lane: dict[str, list[Settlement]] = {}
    for item in settled:
        if item.ended.claim.lane:
            by_lane.setdefault(item.ended.claim.lane, []).append(item)
    news = {name: items[0] for name, items in by_lane.items() if any(item.throttled or item.halt for item in items)}
    book.make(_new_lane(name, item.ended.claim.batch, now) for name, item in news.items())
    book.read(by_lane)
    changes: list[LaneChange] = []
    for name, items in sorted(by_lane.items()):
        if name in news or book.get(name) is not None:
            state = book.of_batch(name, items[0].ended.claim.batch)
            after = _after(state, items, now)
            book.put(after)
            changes += _changes(state, after, now)
    return tuple(changes)


def _changes(before: LaneState, after: LaneState, now: int) -> Iterator[LaneChange]:
    """Yield what people would call a change: not a further 429 of the same pause, nor a probe in vain."""
    if after.halted_at is not None and before.halted_at is None:
        yield LaneChange(after.name, LaneMove.HALTED, after.reason)
    elif after.halted_at is None and before.halted_at is not None:
        yield LaneChange(after.name, LaneMove.REOPENED)
    if after.cut_at != before.cut_at and after.halted_at is None:
        seconds = max(0, (after.paused_until or 0) - now) / 1000
        yield LaneChange(after.name, LaneMove.THROTTLED, after.reason, seconds)


def _after(state: LaneState, items: list[Settlement], now: int) -> LaneState:
    """Return the lane after these outcomes: refusals first, so that what was let through counts behind the cut."""
    for item in items:
        claim = item.ended.claim
        reason = item.reason.message if item.reason else None
        if item.throttled:
            state = lane.throttle(state, claim.epoch, item.pause_ms, reason, now)
        elif item.halt:
            state = lane.halt(state, claim.epoch, reason, now)
    for item in items:
        claim = item.ended.claim
        if item.proves_lane and claim.probe:
            state = lane.prove(state, claim.epoch, now)
        if state.tpm is not None:
            state = lane.correct_tokens(state, claim.tokens, _tokens(item.answer), made=item.let_through)
    if not state.limited:
        return state
    return lane.answered(state, through) if (through := sum(item.let_through for item in items)) else state


def _tokens(answer: Answered | None) -> int | None:
    if answer is None:
        return None
    usage = answer.usage
    return (usage.input_tokens or 0) + (usage.output_tokens or 0) or None


def reopen(tx: Transaction, *, worker: str | None = None, model: str | None = None) -> int:
    """Reopen halted lanes, those of a worker and model or all; return how many."""
    halted = [
        state
        for state in _all_states(tx, locking=True)
        if state.halted_at is not None and (worker is None or (state.worker, state.model) == (worker, model))
    ]
    _save(tx, [lane.reopen(state) for state in halted])
    return len(halted)


def probe_now(tx: Transaction) -> None:
    """Let halted lanes try one job at once: somebody just started a runner, so the cause may be gone."""
    change_lanes(tx, lambda state: replace(state, probe_at=tx.now) if state.halted_at else state)


def change_lanes(tx: Transaction, change: Callable[[LaneState], LaneState]) -> None:
    """Put what `change` makes of each lane in its place."""
    changed = [(state, change(state)) for state in _all_states(tx, locking=True)]
    _save(tx, [after for before, after in changed if after != before])


def set_limits(tx: Transaction, identity: LaneState, limits: Limits, *, forget: bool = False) -> Lane:
    """Give a lane other limits, and, if so asked, forget what its 429s taught; return it."""
    state = LaneBook(tx).get_or_make(replace(identity, refilled_at=tx.now))
    state = lane.configure(state, limits, tx.now)
    if forget:
        state = lane.forget(state)
    _save(tx, [state])
    return _seen(state, 0)


def read_lanes(tx: Transaction, *, counted: bool = True) -> tuple[Lane, ...]:
    """Return all lanes that ever had news; `counted` ones with how many of their calls run, which is a seek a batch."""
    states = _all_states(tx, locking=False)
    running: Counter[str] = Counter()
    if states and counted:
        rows = tx.connection.execute(_IN_FLIGHT_BY_LANE, {"now": tx.now}).all()
        running.update({lane_name: calls for calls, lane_name in rows})
    return tuple(_seen(state, running[state.name]) for state in states)


def _by_name(found: CursorResult[*tuple[Any, ...]]) -> dict[str, LaneState]:
    return {row["name"]: _state(row) for row in found.mappings().all()}


def _all_states(tx: Transaction, *, locking: bool) -> list[LaneState]:
    statement = _STATES.order_by(lanes.c.name)
    rows = tx.connection.execute(statement.with_for_update() if locking else statement).mappings().all()
    return [_state(row) for row in rows]


def _state(row: RowMapping) -> LaneState:
    """Build the value. Raises DamagedRow where somebody has made of a number something else: no limit would hold."""
    if not _NUMBER.issuperset(type(row[name]) for name in _NUMBERS):
        refuse_odd(f"the lane {row['name']} in the table `lanes`", ((name, row[name], _NUMBER) for name in _NUMBERS))
    return LaneState(**row)


def _save(tx: Transaction, states: list[LaneState]) -> None:
    rows = [asdict(replace(state, ready_at=lane.ready_at(state))) for state in states]
    if rows:
        tx.connection.execute(_SAVE, rows)


def _seen(state: LaneState, running: int) -> Lane:
    return Lane(
        worker=state.worker,
        base_url=state.base_url,
        model=state.model,
        paused_until=state.paused_until,
        halted_at=state.halted_at,
        probe_at=state.probe_at,
        reason=state.reason,
        rpm=state.rpm,
        tpm=state.tpm,
        max_inflight=state.max_inflight,
        burst=state.request_burst if state.rpm is not None else None,
        asked_burst=state.burst,
        ready_at=state.ready_at,
        vain_probes=state.vain_probes,
        learned_rpm=None if state.learned_rate is None else state.learned_rate * 60,
        in_flight=running,
    )
