"""What an exporter has counted since it began: pure bookkeeping, from one look to the next."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from batchq.jobs import BatchTotals, EndedPage

# Calls take from a tenth of a second to minutes; a job of a large batch may wait for a day.
DURATION_BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)
QUEUE_BUCKETS = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 43200.0, 86400.0)

# The tallies that only grow; those of states go both ways.
GROWING = (
    "attempts", "losses", "late", "throttles", "input_tokens", "output_tokens", "cached_tokens", "reasoning_tokens",
    "cost", "unpriced",
)  # fmt: skip
ENDS = ("done", "failed", "cancelled")
OUTCOMES = ("succeeded", "failed", "retry", "throttled", "halted", "released", "lost", "cancelled")

# A worker and a model.
Who = tuple[str, str]


@dataclass(slots=True)
class Histogram:
    """Counts values by buckets with these upper bounds."""

    bounds: Sequence[float]
    counts: list[int] = field(init=False)
    total: float = 0.0

    def __post_init__(self) -> None:
        """Begin with empty buckets, and one for what is above all bounds."""
        self.counts = [0] * (len(self.bounds) + 1)

    def add(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def cumulative(self) -> list[tuple[str, float]]:
        """Return the buckets as Prometheus has them: each with what is in those below it."""
        names = [*map(str, self.bounds), "+Inf"]
        counted, buckets = 0, []
        for name, count in zip(names, self.counts, strict=True):
            counted += count
            buckets.append((name, float(counted)))
        return buckets


class Counted:
    """Sums of all batches, by worker and model, that never fall: also where a batch is deleted or sent back."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.grown: defaultdict[Who, Counter[str]] = defaultdict(Counter)
        self.finished: defaultdict[Who, Counter[str]] = defaultdict(Counter)
        self.attempts: defaultdict[Who, Counter[str]] = defaultdict(Counter)
        self.durations: defaultdict[Who, Histogram] = defaultdict(lambda: Histogram(DURATION_BUCKETS))
        self.queued: defaultdict[Who, Histogram] = defaultdict(lambda: Histogram(QUEUE_BUCKETS))
        self._seen: dict[int, BatchTotals] | None = None

    def note_totals(self, totals: Mapping[int, BatchTotals]) -> list[int]:
        """Count what the tallies have grown by; return the batches in which something has changed.

        Where a worker and a model are new, all is told as 0 first, and counted by the next look: Prometheus sees no
        increase in a series that begins with one.
        """
        before, self._seen = self._seen, dict(totals)
        changed = []
        new = {(total.worker, total.model) for total in totals.values()} - self.grown.keys()
        for who in new:
            self._begin(who)
        for batch_id, total in totals.items():
            if before is None:
                continue
            old = before[batch_id].sums if batch_id in before else {}
            if (total.worker, total.model) in new:
                self._seen[batch_id] = replace(total, sums=old)
            elif total.sums != old:
                changed.append(batch_id)
                grown = self.grown[total.worker, total.model]
                grown.update({name: max(0, total.sums.get(name, 0) - old.get(name, 0)) for name in GROWING})
        return changed

    def _begin(self, who: Who) -> None:
        self.grown[who].update(dict.fromkeys(GROWING, 0))
        self.finished[who].update(dict.fromkeys(ENDS, 0))
        self.attempts[who].update(dict.fromkeys(OUTCOMES, 0))
        self.durations[who], self.queued[who] = Histogram(DURATION_BUCKETS), Histogram(QUEUE_BUCKETS)

    def note_ended(self, who: Who, page: EndedPage) -> None:
        """Count jobs that ended and their attempts."""
        for job in page.jobs:
            self.finished[who][job.state] += job.weight
            if job.waited_ms is not None:
                self.queued[who].add(job.waited_ms / 1000)
        for attempt in page.attempts:
            self.attempts[who][attempt.outcome] += 1
            if attempt.duration_ms is not None:
                self.durations[who].add(attempt.duration_ms / 1000)
