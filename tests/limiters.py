"""Runners against a provider's limiter in simulated time, paced by the real code.

What decides is called in the order in which the store's exchange and `batchq.windows` call it; only the
database, the network and the provider are make-believe. All that is random comes from the fleet's seed.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from batchq.pacing import LaneState, Limits, Window, asked_ms, lane

# From an answer to its exchange, from a claim to the provider; how a runner waits, and how late it wakes.
EXCHANGE_SECONDS, WAY_SECONDS = 0.005, 0.002
SHORTEST_WAIT_SECONDS, POLL_SECONDS, LATE_ALONE_SECONDS, LATE_AMONG_OTHERS_SECONDS = 0.01, 0.05, 0.004, 0.02
NEVER, NONE = float("inf"), Limits()

# Decides about a call that arrives at a time while so many are being answered.
Limiter = Callable[[float, int], bool]


def token_bucket(rate: float, burst: float, *, raised_at: float = NEVER, raised_to: float = 0.0) -> Limiter:
    """Let `rate` calls per second through and `burst` at once; from `raised_at` on, `raised_to` per second."""
    left, refilled_at = burst, 0.0

    def lets_through(now: float, in_flight: int) -> bool:
        nonlocal left, refilled_at
        left, refilled_at = min(burst, left + (now - refilled_at) * (rate if now < raised_at else raised_to)), now
        if passes := left >= 1:
            left -= 1
        return passes

    return lets_through


def fixed_window(most: int, seconds: float) -> Limiter:
    """Let `most` calls through in every window of so many seconds."""
    arrived = Counter[int]()

    def lets_through(now: float, in_flight: int) -> bool:
        arrived[int(now / seconds)] += 1
        return arrived[int(now / seconds)] <= most

    return lets_through


def in_flight_limit(most: int) -> Limiter:
    """Answer `most` calls beside each other."""
    return lambda now, in_flight: in_flight < most


def random_refusals(share: float, seed: int = 0) -> Limiter:
    """Refuse a share of the calls at any rate: an overloaded provider, or a pool shared with strangers."""
    drawn = random.Random(seed)
    return lambda now, in_flight: drawn.random() >= share


@dataclass(frozen=True)
class Run:
    """When the calls were answered, at the latest, how many were refused, and what their lane has come to."""

    answered_at: Sequence[float]
    seconds: float
    refused: int
    lane: LaneState


@dataclass(frozen=True)
class Fleet:
    """So many processes with so many slots each, which share a lane at a provider that answers in `latency` seconds."""

    processes: int = 1
    slots: int = 16
    latency: float = 0.05
    retry_after: float | None = 1.0
    limits: Limits = NONE
    seed: int = 0

    def run(self, limiter: Limiter, calls: int, give_up: float = 3_600.0) -> Run:
        """Have `calls` prompts answered, or as many as are within the simulated seconds to give up after."""
        return _Simulation(self, limiter, calls).run(give_up)


@dataclass(eq=False)
class _Process:
    window: Window
    exchange_at: float = NEVER
    ended: list[_Call] = field(default_factory=list)


@dataclass(eq=False)
class _Call:
    process: _Process
    epoch: int
    beside: int
    began: float
    refused: bool = False


class _Simulation:
    def __init__(self, fleet: Fleet, limiter: Limiter, calls: int) -> None:
        self.fleet, self.limiter, self.calls = fleet, limiter, calls
        self.random = random.Random(fleet.seed)
        self.late = LATE_ALONE_SECONDS if fleet.processes == 1 else LATE_AMONG_OTHERS_SECONDS
        self.now, self.ms, self.order = 0.0, 0, itertools.count()
        self.events: list[tuple[float, int, Callable[[Any], None], _Process | _Call]] = []
        self.pending, self.claimed, self.at_provider, self.refused = calls, 0, 0, 0
        self.answered_at: list[float] = []
        self.lane = lane.configure(LaneState("lane", "worker", "http://provider/v1", "model"), fleet.limits, 0)

    def run(self, give_up: float) -> Run:
        for _ in range(self.fleet.processes):
            self.exchange_by(self.soon(EXCHANGE_SECONDS), _Process(Window(self.fleet.slots)))
        while len(self.answered_at) < self.calls and self.now < give_up:
            self.now, _, happens, subject = heapq.heappop(self.events)
            self.ms = round(self.now * 1000)
            happens(subject)
        return Run(self.answered_at, self.now, self.refused, self.lane)

    def at(self, when: float, happens: Callable[[Any], None], subject: _Process | _Call) -> None:
        heapq.heappush(self.events, (when, next(self.order), happens, subject))

    def soon(self, seconds: float, spread: float = 0.5) -> float:
        return self.now + seconds * self.random.uniform(1 - spread, 1 + spread)

    def exchange_by(self, when: float, process: _Process) -> None:
        if when < process.exchange_at:
            process.exchange_at = when
            self.at(when, self.exchange, process)

    def exchange(self, process: _Process) -> None:
        if self.now != process.exchange_at:
            return  # there was another before
        process.exchange_at = NEVER
        if process.ended:
            self.settle(process.ended)
            process.ended = []
        free = self.fleet.slots - process.window.running
        wanted = min(free, process.window.room) if process.window.size < self.fleet.slots else free
        if wanted > 0 and self.claim(process, wanted) < free:  # otherwise the end of a call wakes it
            ready = self.lane.ready_at / 1000 if self.pending else self.now + POLL_SECONDS
            wake = max(ready, self.now + SHORTEST_WAIT_SECONDS) + self.late * self.random.random()
            self.exchange_by(wake, process)

    def settle(self, ended: Sequence[_Call]) -> None:
        """Do as `store.lanes` does: refusals first, so that what was let through counts behind the cut."""
        refused = [call for call in ended if call.refused]
        for call in refused:
            self.lane = lane.throttle(self.lane, call.epoch, asked_ms(self.fleet.retry_after), "slow down", self.ms)
        if self.lane.limited and len(refused) < len(ended):
            self.lane = lane.answered(self.lane, len(ended) - len(refused))
        self.claimed -= len(ended)
        self.pending += len(refused)
        self.save()

    def claim(self, process: _Process, wanted: int) -> int:
        """Do as `store.claim` does: nothing before the lane is ready, nor beyond its room; return how many."""
        wanted = min(wanted, self.pending)
        if not wanted or self.ms < self.lane.ready_at:
            return 0
        calls = wanted
        if self.lane.limited:
            self.lane = lane.wake(self.lane, self.ms, self.claimed)
            room = lane.room(self.lane, self.claimed)
            calls = wanted if room is None else min(wanted, room)
            if calls:
                self.lane = lane.draw(self.lane, calls, wanted, self.ms)
            self.save()
        self.claimed, self.pending = self.claimed + calls, self.pending - calls
        for _ in range(calls):
            call = _Call(process, self.lane.epoch, process.window.begin(), self.now)
            self.at(self.soon(WAY_SECONDS), self.arrive, call)
        return calls

    def save(self) -> None:
        self.lane = replace(self.lane, ready_at=lane.ready_at(self.lane))

    def arrive(self, call: _Call) -> None:
        call.refused = not self.limiter(self.now, self.at_provider)
        self.refused += call.refused
        self.at_provider += not call.refused
        self.at(self.soon(WAY_SECONDS if call.refused else self.fleet.latency, 0.2), self.end, call)

    def end(self, call: _Call) -> None:
        call.process.window.end()
        if call.refused:
            call.process.window.refused(call.beside, call.began, self.now, self.fleet.retry_after)
        else:
            call.process.window.let_through(call.beside, call.began, self.now, self.fleet.slots)
            self.at_provider -= 1
            self.answered_at.append(self.now)
        call.process.ended.append(call)
        self.exchange_by(self.soon(EXCHANGE_SECONDS), call.process)
