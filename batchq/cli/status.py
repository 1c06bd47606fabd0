"""`batchq status`: the batches, the workers, and why what waits is waiting."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import click

from batchq.cli.options import HELP_NAMES, command_class, database_of, db_option, is_terminal, json_option, run_async
from batchq.cli.text import clean, dollars, one_line, plural, table

if TYPE_CHECKING:
    from batchq.jobs import Lane, Progress, RunnerInfo
    from batchq.store import Store

SHOWN_BATCHES = 100
WATCH_SECONDS = 1.0
_HEADER = ("batch", "state", "jobs", "done", "failed", "in flight", "ended", "tokens", "cost")
_CLEAR = "\x1b[H\x1b[J"


@dataclass(frozen=True, slots=True)
class Status:
    """The queue at one moment; `older` counts finished batches that are left out."""

    database: str
    batches: tuple[Progress, ...]
    older: int
    runners: tuple[RunnerInfo, ...]
    lanes: tuple[Lane, ...]
    now: int


@click.command(cls=command_class(), context_settings=HELP_NAMES, short_help="Show batches, workers and what waits.")
@click.argument("name", required=False)
@click.option("--watch", is_flag=True, help="Show it again each second; a named batch until it is finished.")
@db_option
@json_option
def status(name: str | None, *, watch: bool, db: str | None, as_json: bool) -> None:
    """Show all batches, or the batch NAME: how far they are, who works on them, and why one waits."""
    location = database_of(db)
    run_async(lambda: _status(location, name, watch=watch, as_json=as_json))


async def _status(location: str, name: str | None, *, watch: bool, as_json: bool) -> None:
    import anyio

    from batchq.store import open_store

    async with await open_store(location) as store:
        while True:
            found = await read_status(store, name)
            _print(found, as_json=as_json, clear=watch and is_terminal(sys.stdout))
            if not watch or (name is not None and found.batches[0].finished):
                return
            await anyio.sleep(WATCH_SECONDS)


async def read_status(store: Store, name: str | None) -> Status:
    """Read the batch of that name, or all unfinished and the newest other ones."""
    older = 0
    if name is not None:
        names = [name]
    else:
        batches = await store.batches()
        left = await store.unfinished()
        live = {batch.id for batch in (*(found.batch for found in left.live), *left.unsealed)}
        names = [batch.name for index, batch in enumerate(batches) if index < SHOWN_BATCHES or batch.id in live]
        older = len(batches) - len(names)
    found = tuple([await store.progress(each) for each in names])
    runners = tuple(runner for runner in await store.runners() if runner.live)
    now = max((progress.now for progress in found), default=0)
    lanes = tuple(lane for lane in await store.lanes() if lane.halted_at is not None or (lane.paused_until or 0) > now)
    return Status(store.location, found, older, runners, lanes, now)


def _print(found: Status, *, as_json: bool, clear: bool) -> None:
    if as_json:
        click.echo(json.dumps(_as_json(found)))
        return
    text = "\n".join(clean(line) for line in _lines(found))
    click.echo((_CLEAR if clear else "") + text)


def _lines(found: Status) -> list[str]:
    from batchq.waiting import lane_label, why_waiting

    lines = [f"database {found.database}", ""]
    if found.batches:
        lines += table(_HEADER, [_row(progress) for progress in found.batches], left=2)
    else:
        lines.append("no batches yet")
    if found.older:
        lines.append(f"and {plural(found.older, 'older batch')} that ended")
    for progress in found.batches:
        if why := why_waiting(progress, found.database):
            lines += ["", f"{one_line(progress.batch.name, 60)} waits: {one_line(why, 500)}"]
    lines += ["", f"{plural(len(found.runners), 'live worker')}"]
    lines += [
        f"  {one_line(runner.host, 60)} pid {runner.pid}: {runner.in_flight} of {runner.concurrency} calls,"
        f" serves {one_line(runner.serves, 100)}"
        for runner in found.runners
    ]
    for lane in found.lanes:
        state = "halted" if lane.halted_at is not None else "throttled"
        lines.append(f"  {state}: {lane_label(lane)}: {one_line(lane.reason or 'no reason given')}")
    return lines


def _row(progress: Progress) -> tuple[str, ...]:
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
        dollars(progress.cost),
    )


def state_of(progress: Progress) -> str:
    """Return one word for where a batch stands."""
    state = progress.batch.state.value
    if state != "open":
        return state
    if progress.finished:
        return "finished"
    if progress.batch.sealed_at is None:
        return "adding" if progress.enqueueing else "incomplete"
    if progress.counts.inflight:
        return "running"
    return "halted" if any(lane.halted_at is not None for lane in progress.lanes) else "waiting"


def _as_json(found: Status) -> dict[str, object]:
    from batchq.waiting import why_waiting

    return {
        "database": found.database,
        "batches": [
            {
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
                "attempts": progress.attempts,
                "losses": progress.losses,
                "waiting": why_waiting(progress, found.database),
            }
            for progress in found.batches
        ],
        "older_batches": found.older,
        "workers": [asdict(runner) for runner in found.runners],
        "lanes": [asdict(lane) for lane in found.lanes],
    }
