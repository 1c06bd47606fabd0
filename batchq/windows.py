"""The windows of a process: how many calls it makes beside each other in each lane."""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

from batchq.clock import uptime
from batchq.jobs import Claim, Failed, Halted, Outcome, Released, Retry, Succeeded, Throttled
from batchq.pacing import Window


@dataclass(frozen=True, slots=True)
class Place:
    """Where a call began: as one of how many in its lane, and when."""

    beside: int
    began: float


class Windows:
    """Keeps a window for each lane that this process calls."""

    def __init__(self, concurrency: int) -> None:
        """Begin with windows as wide as the process."""
        self.concurrency = concurrency
        self._windows: dict[str, Window] = {}

    @property
    def rooms(self) -> tuple[tuple[str, int], ...]:
        """How many more calls may start in the lanes that have been narrowed."""
        return tuple((lane, window.room) for lane, window in self._windows.items() if window.size < self.concurrency)

    def widen(self, concurrency: int) -> None:
        """Take over another concurrency; what was narrowed by 429s stays so, unless that is wider still."""
        for window in self._windows.values():
            if window.size >= min(self.concurrency, concurrency):
                window.size = float(concurrency)
        self.concurrency = concurrency

    def begin(self, claim: Claim) -> Place:
        """Note that a claim's call starts."""
        window = self._windows.get(claim.lane)
        if window is None:
            window = self._windows[claim.lane] = Window(self.concurrency)
        return Place(window.begin(), uptime())

    def end(self, claim: Claim, place: Place, outcome: Outcome) -> None:
        """Note how it ended."""
        window = self._windows[claim.lane]
        window.end()
        match outcome:
            case Throttled(after=after):
                window.refused(place.beside, place.began, uptime(), after)
            case Succeeded() | Failed() | Retry():
                window.let_through(place.beside, place.began, uptime(), self.concurrency)
            case Halted() | Released():
                pass
            case _ as unreachable:
                assert_never(unreachable)
