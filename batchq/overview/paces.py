"""How fast the batches of a queue move, from one look to the next."""

from __future__ import annotations

from batchq.coordinator import Pace
from batchq.jobs import Overview, Progress

_STILL = Pace()


class Paces:
    """The pace of each batch that is looked at again and again."""

    def __init__(self) -> None:
        """Start with nothing seen."""
        self._paces: dict[int, Pace] = {}

    def note(self, found: Overview, now: float | None = None) -> None:
        """Take note of one moment; `now` is in seconds on any steady clock."""
        self._paces = {progress.batch.id: self._paces.get(progress.batch.id) or Pace() for progress in found.batches}
        for progress in found.batches:
            self._paces[progress.batch.id].note(progress, now)

    def forget(self) -> None:
        """Start anew: nobody knows what happened meanwhile, nor when."""
        self._paces.clear()

    def of(self, progress: Progress) -> Pace:
        """Return the pace of a batch."""
        return self._paces.get(progress.batch.id, _STILL)

    @property
    def per_second(self) -> float | None:
        """Jobs of all batches that ended per second; None until that is known."""
        rates = [rate for pace in self._paces.values() if (rate := pace.per_second) is not None]
        return sum(rates) if rates else None

    @property
    def cost_per_second(self) -> float | None:
        """Nano-dollars per second for all batches; None until that is known, or where nobody tells a cost."""
        costs = [cost for pace in self._paces.values() if (cost := pace.cost_per_second) is not None]
        return sum(costs) if costs else None
