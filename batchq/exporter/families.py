"""What is measured, as metrics of Prometheus: their names, labels and meanings.

By prometheus.io/docs/practices/naming: seconds and dollars, and `_total` for what only grows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from batchq.exporter.counted import Counted, Histogram, Who
from batchq.exporter.measuring import Measured
from batchq.installed import installed_version
from batchq.jobs import NANO, Lane, Overview, Progress, RunnerInfo
from batchq.overview import state_of

STATES = ("pending", "inflight", "done", "failed", "cancelled")
BATCH_STATES = (
    "adding", "incomplete", "waiting", "running", "paused", "halted", "over budget", "cancelled", "purging", "finished",
)  # fmt: skip
# Nobody is to be called because of a batch that was paused, or that may cost no more.
TAKEN = frozenset({"adding", "incomplete", "waiting", "running", "halted"})
_MODEL = ("worker", "model")
_LANE = ("worker", "server", "model")
_RUNNER = ("runner", "host", "pid")
_TOKENS = ("input_tokens", "output_tokens", "cached_tokens", "reasoning_tokens")


def families_of(measured: Measured, counted: Counted | None) -> Iterator[Metric]:
    """Yield all metrics; of a queue that can't be read only that it can't, and what was counted before, if anything."""
    yield _gauge("batchq_up", "Whether the queue could be read.", [((), measured.overview is not None)])
    yield _gauge("batchq_scrape_seconds", "How long reading the queue took.", [((), measured.seconds)])
    version = installed_version() or "unknown"
    yield _gauge("batchq_build_info", "The version of the exporter.", [((version,), 1)], ("version",))
    if counted is not None:
        yield from _counters(counted)
    if measured.overview is not None:
        yield from _of_batches(measured.overview)
        yield from _of_lanes(measured.overview.lanes, measured.overview.now)
        yield from _of_runners(measured.runners, measured.overview.now)


def _gauge(
    name: str, meaning: str, values: Sequence[tuple[Sequence[str], float]], labels: Sequence[str] = ()
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, meaning, labels=labels)
    for label_values, value in values:
        family.add_metric(label_values, float(value))
    return family


def _of_batches(found: Overview) -> Iterator[Metric]:
    batches = found.batches
    yield _gauge(
        "batchq_jobs", "Jobs of a batch by state: of unfinished batches and the newest ones.",
        [((each.batch.name, state), getattr(each.counts, state)) for each in batches for state in STATES],
        ("batch", "state"),
    )  # fmt: skip
    standing = Counter(map(state_of, batches))
    yield _gauge(
        "batchq_batches", "Batches by what `batchq status` says of them, of those that are told.",
        [((state,), standing[state]) for state in BATCH_STATES], ("state",),
    )  # fmt: skip
    yield _gauge(
        "batchq_batches_left_out", "Batches that ended before those that are told, or are too many to tell.",
        [((), found.older)],
    )  # fmt: skip
    yield _gauge(
        "batchq_oldest_pending_age_seconds",
        "How long the job that is due the longest has been waiting, of batches that workers may take; 0 where none is.",
        [((each.batch.name,), _age(each)) for each in batches if state_of(each) in TAKEN],
        ("batch",),
    )
    yield _gauge(
        "batchq_batch_cost_dollars", "What a batch has cost so far, as far as answers told it.",
        [((each.batch.name,), each.cost / NANO) for each in batches if each.cost is not None], ("batch",),
    )  # fmt: skip
    yield _gauge(
        "batchq_batch_budget_dollars", "What a batch may cost.",
        [((each.batch.name,), each.batch.budget / NANO) for each in batches if each.batch.budget is not None],
        ("batch",),
    )  # fmt: skip


def _age(progress: Progress) -> float:
    return 0.0 if progress.next_due_at is None else max(0, progress.now - progress.next_due_at) / 1000


def _of_lanes(lanes: Sequence[Lane], now: int) -> Iterator[Metric]:
    def gauge(name: str, meaning: str, value: Mapping[Lane, float | None]) -> Metric:
        told = [
            ((lane.worker, lane.base_url, lane.model), number) for lane, number in value.items() if number is not None
        ]
        return _gauge(f"batchq_lane_{name}", meaning, told, _LANE)

    yield gauge("in_flight", "Calls of a lane that are running.", {lane: lane.in_flight for lane in lanes})
    yield gauge("max_in_flight", "The limit of that.", {lane: lane.max_inflight for lane in lanes})
    yield gauge("rpm_limit", "The limit of requests per minute.", {lane: lane.rpm for lane in lanes})
    yield gauge("tpm_limit", "The limit of tokens per minute.", {lane: lane.tpm for lane in lanes})
    yield gauge("learned_rpm", "Requests per minute, as 429s have taught.", {lane: lane.learned_rpm for lane in lanes})
    yield gauge(
        "halted", "Whether the provider refuses every call of a lane.",
        {lane: lane.halted_at is not None for lane in lanes},
    )  # fmt: skip
    yield gauge(
        "paused_seconds", "How long a throttled lane still waits.",
        {lane: max(0, (lane.paused_until or 0) - now) / 1000 for lane in lanes},
    )  # fmt: skip


def _of_runners(runners: Sequence[RunnerInfo], now: int) -> Iterator[Metric]:
    live = [each for each in runners if each.live]
    yield _gauge(
        "batchq_workers", "Worker processes: live, or gone without a word.",
        [(("live",), len(live)), (("gone",), len(runners) - len(live))], ("state",),
    )  # fmt: skip

    def gauge(name: str, meaning: str, value: Mapping[str, float]) -> Metric:
        told = [((each.id[:8], each.host, str(each.pid)), value[each.id]) for each in live]
        return _gauge(f"batchq_worker_{name}", meaning, told, _RUNNER)

    yield gauge("concurrency", "Calls that a live worker makes at once.", {each.id: each.concurrency for each in live})
    yield gauge("in_flight", "Jobs that it holds.", {each.id: each.in_flight for each in live})
    yield gauge(
        "last_seen_seconds", "How long ago it was heard of.",
        {each.id: max(0, now - each.seen_at) / 1000 for each in live},
    )  # fmt: skip


def _counters(counted: Counted) -> Iterator[Metric]:
    yield _counter("jobs_finished", "Jobs that ended, by state.", counted.finished, "state")
    yield _counter("attempts", "Attempts at jobs that have ended, by outcome.", counted.attempts, "outcome")
    yield _grown("claims", "Claims: attempts that began.", counted, "attempts")
    yield _grown("throttles", "Answers that asked to come later (429, 503).", counted, "throttles")
    yield _grown("leases_expired", "Attempts that were lost with their worker.", counted, "losses")
    yield _grown("late_answers", "Answers to claims that were lost by then.", counted, "late")
    yield _grown("unpriced_answers", "Answers that told no cost.", counted, "unpriced")
    tokens = CounterMetricFamily("batchq_tokens", "Tokens; those cached are among the input.", labels=(*_MODEL, "type"))
    for who, sums in counted.grown.items():
        for name in _TOKENS:
            tokens.add_metric((*who, name.removesuffix("_tokens")), float(sums[name]))
    yield tokens
    cost = CounterMetricFamily("batchq_cost_dollars", "What answers have cost.", labels=_MODEL)
    for who, sums in counted.grown.items():
        cost.add_metric(who, sums["cost"] / NANO)
    yield cost
    yield _histogram("attempt_duration_seconds", "How long attempts took.", counted.durations)
    yield _histogram("job_queue_seconds", "How long jobs waited for their first claim.", counted.queued)


def _counter(name: str, meaning: str, sums: Mapping[Who, Mapping[str, int]], label: str) -> Metric:
    family = CounterMetricFamily(f"batchq_{name}", meaning, labels=(*_MODEL, label))
    for who, counts in sums.items():
        for value, count in counts.items():
            family.add_metric((*who, value), float(count))
    return family


def _grown(name: str, meaning: str, counted: Counted, tally: str) -> Metric:
    family = CounterMetricFamily(f"batchq_{name}", meaning, labels=_MODEL)
    for who, sums in counted.grown.items():
        family.add_metric(who, float(sums[tally]))
    return family


def _histogram(name: str, meaning: str, histograms: Mapping[Who, Histogram]) -> Metric:
    family = HistogramMetricFamily(f"batchq_{name}", meaning, labels=_MODEL)
    for who, histogram in histograms.items():
        family.add_metric(who, histogram.cumulative(), histogram.total)
    return family
