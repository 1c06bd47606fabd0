"""What is done to whom and when: a schedule that a seed makes, the same one each time."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import count, cycle, islice

from tests.killpoints import PRODUCER_POINTS, WORKER_POINTS

# Seconds of work before a fault, and between the two signals of one that comes twice.
_WORK = (0.3, 1.5)
_TWICE = (0.02, 0.3)
# A collect of what is there is soon over.
_COLLECT = (0.02, 0.4)
# How long a worker stays stopped: it often comes back while another one is at work on what it held.
_STOPPED_LEASES = (1.0, 1.5)
_KILLS_AT_RANDOM = 6
_CHUNKS = 4


class Kind(Enum):
    """What is done to a process."""

    KILL = "SIGKILL"
    STOP = "SIGSTOP, SIGCONT"
    TERMINATE = "SIGTERM"
    TERMINATE_TWICE = "SIGTERM twice"


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: after `work` seconds of work, at a point or wherever the process is at that moment.

    `hold` is how long a stop lasts, in leases, or the time between two signals, in seconds. A producer passes its
    point `passing` times until then.
    """

    kind: Kind
    point: str | None
    work: float
    hold: float = 0.0
    passing: int = 1

    @property
    def where(self) -> str:
        """Where it meets the process, as the table says it."""
        return self.point or "at random"

    def __str__(self) -> str:
        """Return it as a line of the schedule."""
        held = f", held {self.hold:.2f}" if self.hold else ""
        passing = f", passing {self.passing}" if self.passing > 1 else ""
        return f"{self.kind.value} {self.where}{passing} after {self.work:.2f} s{held}"


@dataclass(frozen=True)
class Schedule:
    """All that a campaign does to its processes."""

    seed: int
    workers: int
    kills: int

    def of_worker(self, slot: int) -> list[Fault]:
        """What meets the workers of one slot, one after the other."""
        return self._faults()[slot :: self.workers]

    def calm(self) -> Iterator[Fault]:
        """Kills in the end, one after the other, with all others at work: to see how long it takes to recover."""
        drawing = self._drawing("calm")
        while True:
            yield _kill(drawing, None)

    def of_producer(self) -> Iterator[Fault | None]:
        """What meets the enqueue of each batch; None: nothing."""
        drawing = self._drawing("producer")
        for point in cycle((*PRODUCER_POINTS, None)):
            yield _kill(drawing, point, passing=1 if point not in PRODUCER_POINTS[:2] else drawing.randint(1, _CHUNKS))
            yield None

    def of_collector(self) -> Iterator[Fault]:
        """What meets the collects that follow batches."""
        drawing = self._drawing("collector")
        while True:
            yield Fault(Kind.KILL, None, _seconds(drawing, _COLLECT))

    def lines(self) -> Iterator[str]:
        """Return the schedule as it is printed."""
        for slot in range(self.workers):
            for fault in self.of_worker(slot):
                yield f"worker {slot}: {fault}"
        for number, met in enumerate(islice(self.of_producer(), 2 * (len(PRODUCER_POINTS) + 1))):
            yield f"enqueue {number}: {met or 'nothing'}"

    def _faults(self) -> list[Fault]:
        dealt: list[Fault] = []
        kills = 0
        for fault in _deal(self._drawing("workers")):
            if kills == self.kills:
                return dealt
            kills += fault.kind is Kind.KILL
            dealt.append(fault)
        raise AssertionError("a deal never ends")

    def _drawing(self, what: str) -> random.Random:
        return random.Random(f"{self.seed} {what}")


def _deal(drawing: random.Random) -> Iterator[Fault]:
    """Deal decks without end: in each are kills at every point and at random, and some of all else."""
    for turn in count():
        deck = [_kill(drawing, point) for point in (*WORKER_POINTS, *[None] * _KILLS_AT_RANDOM)]
        for point in (None, WORKER_POINTS[turn % len(WORKER_POINTS)]):
            deck.append(Fault(Kind.STOP, point, _seconds(drawing, _WORK), _seconds(drawing, _STOPPED_LEASES)))
            deck.append(Fault(Kind.TERMINATE, point, _seconds(drawing, _WORK)))
        deck.append(Fault(Kind.TERMINATE_TWICE, None, _seconds(drawing, _WORK), _seconds(drawing, _TWICE)))
        drawing.shuffle(deck)
        yield from deck


def _kill(drawing: random.Random, point: str | None, *, passing: int = 1) -> Fault:
    return Fault(Kind.KILL, point, _seconds(drawing, _WORK), passing=passing)


def _seconds(drawing: random.Random, between: tuple[float, float]) -> float:
    return round(drawing.uniform(*between), 3)
