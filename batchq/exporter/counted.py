"""What an exporter has counted since it began: pure bookkeeping, from one look to the next."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from batchq.jobs import BatchTotals, EndedPage

# Calls take from a tenth of a second to minutes; a job of a large batch may wait for a day.
DURATION_BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)
QUEUE_BUCKETS = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 43200.0, 86400.0)

# The tallies that only grow; those of states go both ways.
GROWING = (
    "attempts", "losses", "late", "throttles", "input_tokens", "output_tokens", "cached_tokens", "reasoning_tokens",
    "cost", "unpriced",
)  # fmt: skip

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
        self._seen: Mapping[int, BatchTotals] | None = None

    def note_totals(self, totals: Mapping[int, BatchTotals]) -> list[int]:
        """Count what the tallies have grown by; return the batches in which something has changed."""
        before, self._seen = self._seen, totals
        if before is None:
            for total in totals.values():  # shown as 0 from the start, so that the first increase is one
                self.grown[total.worker, total.model].update(dict.fromkeys(GROWING, 0))
            return list(totals)
        changed = []
        for batch_id, total in totals.items():
            old = before[batch_id].sums if batch_id in before else {}
            if total.sums != old:
                changed.append(batch_id)
                grown = self.grown[total.worker, total.model]
                grown.update({name: max(0, total.sums.get(name, 0) - old.get(name, 0)) for name in GROWING})
        return changed

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
