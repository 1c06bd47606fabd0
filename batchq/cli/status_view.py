"""What `batchq status` shows: a queue at one moment, as lines for people or as JSON."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from batchq.display.lanes import limits_of, stop_of
from batchq.display.text import dollars, duration, one_line, plural, table, told_cost
from batchq.installed import installed_version

if TYPE_CHECKING:
    from batchq.coordinator import Pace
    from batchq.jobs import Lane, Overview, Progress, RunnerInfo
    from batchq.overview import Paces

_HEADER = ("batch", "state", "jobs", "done", "failed", "in flight", "ended", "tokens", "cost")
_PACE_HEADER = ("per second", "left")
_SHOWN_ERRORS = 8


def lines_of(found: Overview, paces: Paces | None = None) -> list[str]:
    """Return a status as lines, with `paces` where it is watched.

    What came from outside may still hold control characters.
    """
    from batchq.overview import why_waits
    from batchq.waiting import told_moved

    lines = [] if found.moved_to is None else [told_moved(found.moved_to)]
    lines += [f"database {found.database}", ""]
    if found.batches:
        header = _HEADER if paces is None else (*_HEADER, *_PACE_HEADER)
        lines += table(header, [_row(progress, paces) for progress in found.batches], left=2)
    else:
        lines.append("no batches yet")
    if found.older:
        ended = ", some of them unfinished" if found.more_unfinished else " that ended"
        lines.append(f"and {plural(found.older, 'older batch')}{ended}")
    for progress in found.batches:
        if why := why_waits(progress, found):
            lines += ["", f"{one_line(progress.batch.name, 60)} waits: {one_line(why, 500)}"]
    lines += _spend_lines(found) + _error_lines(found)
    lines += ["", f"{plural(len(found.runners), 'live worker')}"]
    lines += [
        f"  {one_line(runner.host, 60)} pid {runner.pid}: {runner.in_flight} of {runner.concurrency} calls,"
        f" serves {one_line(runner.serves, 100)}{_other_version(runner)}"
        for runner in found.runners
    ]
    shown = [line for lane in found.lanes if (line := _lane_line(lane, found.now))]
    return lines + (["", "lanes", *shown] if shown else [])


def json_of(found: Overview, paces: Paces | None = None) -> dict[str, object]:
    """Return a status as a machine reads it: money in nano-dollars, times in ms, rates where it is watched."""
    from batchq.overview import Paces, why_waits

    seen = paces or Paces()
    return {
        "database": found.database,
        "now": found.now,
        "moved_to": found.moved_to,
        "batches": [_batch_json(progress, found) | _pace_json(progress, seen.of(progress))
                    | {"waiting": why_waits(progress, found)} for progress in found.batches],
        "models": [
            {"model": model, "cost_nano_dollars": spend.cost, "estimated_nano_dollars": spend.estimated,
             "unpriced": spend.unpriced, "input_tokens": spend.input_tokens, "output_tokens": spend.output_tokens}
            for model, spend in _by_model(found).items()
        ],
        "older_batches": found.older,
        "more_unfinished": found.more_unfinished,
        "workers": [_runner_json(runner) for runner in found.runners],
        "lanes": [asdict(lane) for lane in found.lanes],
    }  # fmt: skip


def _row(progress: Progress, paces: Paces | None) -> tuple[str, ...]:
    from batchq.overview import state_of

    counts, usage = progress.counts, progress.usage
    percent = f"{100 * counts.final / counts.total:.0f}%" if counts.total else "-"
    return (
        progress.batch.name,
        state_of(progress),
        f"{counts.total:,}",
        f"{counts.done:,}",
        f"{counts.failed:,}",
        f"{counts.inflight:,}",
        percent,
        f"{(usage.input_tokens or 0) + (usage.output_tokens or 0):,}",
        told_cost(progress),
        *(() if paces is None else _pace_cells(progress, paces.of(progress))),
    )


def _pace_cells(progress: Progress, pace: Pace) -> tuple[str, str]:
    rate, left = pace.per_second, pace.seconds_left(progress)
    return (
        "-" if rate is None or progress.finished else f"{rate:,.1f}",
        "-" if left is None or progress.finished else duration(left),
    )


@dataclass(slots=True)
class _Spend:
    """What the batches of one model came to."""

    cost: int | None = None
    estimated: int = 0
    unpriced: int = 0
    input_tokens: int = 0
    output_tokens: int = 0


def _by_model(found: Overview) -> dict[str, _Spend]:
    models: defaultdict[str, _Spend] = defaultdict(_Spend)
    for progress in found.batches:
        spend = models[progress.batch.model]
        if progress.cost is not None:
            spend.cost = (spend.cost or 0) + progress.cost
        spend.estimated += progress.estimated
        spend.unpriced += progress.unpriced
        spend.input_tokens += progress.usage.input_tokens or 0
        spend.output_tokens += progress.usage.output_tokens or 0
    return dict(models)


def _spend_lines(found: Overview) -> list[str]:
    lines = [
        f"  {one_line(progress.batch.name, 60)}: {dollars(progress.cost) if progress.cost is not None else 'unknown'}"
        f" of a budget of {dollars(progress.batch.budget)}"
        for progress in found.batches
        if progress.batch.budget is not None
    ]
    models = {name: spend for name, spend in _by_model(found).items() if spend.cost is not None or spend.unpriced}
    for name, spend in models.items():
        told = f"; {plural(spend.unpriced, 'answer')} told no cost" if spend.unpriced else ""
        guessed = f", {dollars(spend.estimated)} of it estimated" if spend.estimated else ""
        lines.append(
            f"  {one_line(name, 60) or 'no model'}: {dollars(spend.cost) if spend.cost is not None else 'cost unknown'}"
            f"{guessed}, {spend.input_tokens:,} tokens in, {spend.output_tokens:,} out{told}"
        )
    return ["", "spend", *lines] if lines else []


def _error_lines(found: Overview) -> list[str]:
    lines: list[str] = []
    for name, groups in found.errors.items():
        lines += ["", f"errors of {one_line(name, 60)}"]
        lines += [
            f"  {group.count:,} {one_line(group.error_class, 40)}, e.g. position {group.example_position}:"
            f" {one_line(group.example)}"
            for group in groups[:_SHOWN_ERRORS]
        ]
        if len(groups) > _SHOWN_ERRORS:
            lines.append(f"  and {plural(len(groups) - _SHOWN_ERRORS, 'class')} more")
    return lines


def _other_version(runner: RunnerInfo) -> str:
    """Say which batchq a worker is, where it is another one than this."""
    own = installed_version()
    if own is None or runner.version == own:
        return ""
    return f"; it is batchq {one_line(runner.version or 'of an unknown version', 40)}, this is {own}"


def _lane_line(lane: Lane, now: int) -> str | None:
    """Return what there is to say of a lane; None where nothing limits or keeps it."""
    from batchq.waiting import lane_label

    told = [*stop_of(lane, now), *limits_of(lane)]
    if not told:
        return None
    return f"  {lane_label(lane)}: {'; '.join([*told, f'{lane.in_flight:,} in flight now'])}"


def _runner_json(runner: RunnerInfo) -> dict[str, object]:
    served = None if runner.batch_ids is None else sorted(runner.batch_ids)
    return asdict(runner) | {"batch_ids": served}


def _pace_json(progress: Progress, pace: Pace) -> dict[str, object]:
    return {"jobs_per_second": pace.per_second, "seconds_left": pace.seconds_left(progress)}


def _batch_json(progress: Progress, found: Overview) -> dict[str, object]:
    from batchq.overview import state_of

    return {
        "name": progress.batch.name,
        "state": state_of(progress),
        "worker": progress.batch.worker,
        "endpoint": progress.batch.endpoint,
        "model": progress.batch.model,
        "total": progress.counts.total,
        **asdict(progress.counts),
        "finished": progress.finished,
        "sealed": progress.batch.sealed_at is not None,
        "usage": asdict(progress.usage),
        "cost_nano_dollars": progress.cost,
        "estimated_nano_dollars": progress.estimated,
        "unpriced": progress.unpriced,
        "budget_nano_dollars": progress.batch.budget,
        "attempts": progress.attempts,
        "losses": progress.losses,
        "throttles": progress.throttles,
        "errors": [asdict(group) for group in found.errors.get(progress.batch.name, ())],
    }
