"""Whether the end of a soak looks like its beginning."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from scripts.benchmarks.table import Row
from scripts.soaking.samples import Sample

# The first fifth is for warming up: what it shows is not compared with.
_PARTS = 5
# Below this a checkpoint is not even asked for, four times over.
_LOG_MB = 64.0
# Below this a table's size is that of a few batches, come or gone.
_TABLE_MB = 16.0


def judge(title: str, samples: Sequence[Sample]) -> list[Row]:
    """Return a row for each thing that must be as it was: the last fifth of the samples against the second.

    Raises RuntimeError where there are too few to tell.
    """
    if len(samples) < 2 * _PARTS:
        raise RuntimeError(f"only {len(samples)} samples: the run was too short to say anything")
    early, late = _part(samples, 1), _part(samples, _PARTS - 1)
    return [
        _peak(f"{title}: memory of a worker", early, late, lambda sample: sample.memory_mb, "MB", 1.1),
        _peak(f"{title}: its file descriptors", early, late, lambda sample: sample.descriptors, "", 1.0),
        _peak(f"{title}: its threads", early, late, lambda sample: sample.threads, "", 1.0),
        *_log(title, samples, early, late),
        _peak(f"{title}: size of the tables", early, late, lambda sample: max(sample.table_mb, _TABLE_MB), "MB", 1.25),
        _rate(title, early, late),
    ]


def _part(samples: Sequence[Sample], number: int) -> Sequence[Sample]:
    return samples[len(samples) * number // _PARTS : len(samples) * (number + 1) // _PARTS]


def _peak(
    name: str,
    early: Sequence[Sample],
    late: Sequence[Sample],
    value: Callable[[Sample], float],
    unit: str,
    allowed: float,
) -> Row:
    before, after = max(map(value, early)), max(map(value, late))
    note = f"at most {after:.0f} {unit}".rstrip() + f" in the last fifth, {before:.0f} in the second"
    return Row(f"{name}, the end against the beginning", after / max(before, 1.0), allowed, note, at_most=True)


def _log(title: str, samples: Sequence[Sample], early: Sequence[Sample], late: Sequence[Sample]) -> list[Row]:
    if not any(sample.log_mb for sample in samples):
        return []  # PostgreSQL's log is the server's
    before, after = (max(sample.log_mb for sample in part) for part in (early, late))
    note = f"at most {after:.0f} MB in the last fifth, {before:.0f} in the second"
    return [Row(f"{title}: write-ahead log, relative to {_LOG_MB:.0f} MB", after / _LOG_MB, 1.0, note, at_most=True)]


def _rate(title: str, early: Sequence[Sample], late: Sequence[Sample]) -> Row:
    before, after = _per_second(early), _per_second(late)
    note = f"{after:,.0f} answers/s in the last fifth, {before:,.0f} in the second"
    return Row(f"{title}: answers/s, the end against the beginning", after / max(before, 1e-9), 0.95, note)


def _per_second(part: Sequence[Sample]) -> float:
    return (part[-1].answered - part[0].answered) / (part[-1].at - part[0].at)
