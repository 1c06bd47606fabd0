"""The lanes: what limits each, what runs in it, and what keeps it."""

from __future__ import annotations

from rich.text import Text

from batchq.display.lanes import stop_of
from batchq.display.top.grid import Cell, Column, cell, fitted, folded
from batchq.display.top.section import Section
from batchq.jobs import Lane, Overview

_COLUMNS = (
    Column("LANE", least=8, most=36),
    Column("SERVER", rank=5, least=10, most=40),
    Column("IN FL", right=True),
    Column("AT MOST", rank=2, right=True),
    Column("REQ/MIN", rank=2, right=True),
    Column("TOK/MIN", rank=3, right=True),
    Column("LEARNED", rank=1, right=True),
    Column("THROTTLED", rank=4, right=True),
)


def lane_section(found: Overview, width: int) -> Section | None:
    """Return the lanes that something limits or keeps, or that calls go through; None where there are none."""
    lanes = [lane for lane in found.lanes if lane.in_flight or _is_limited(lane) or stop_of(lane, found.now)]
    if not lanes:
        return None
    header, lines = fitted(_COLUMNS, [_row(lane, found) for lane in lanes], width)
    blocks = []
    for lane, line in zip(lanes, lines, strict=True):
        style = "bold red" if lane.halted_at is not None else "yellow"
        stop = cell("; ".join(stop_of(lane, found.now)), style, longest=400)
        blocks.append([line, *folded(stop, width, indent=2, most=3)])
    return Section(header, blocks)


def _is_limited(lane: Lane) -> bool:
    return any(limit is not None for limit in (lane.rpm, lane.tpm, lane.max_inflight, lane.learned_rpm))


def _row(lane: Lane, found: Overview) -> list[Cell]:
    throttles = _throttles_of(lane, found)
    return [
        cell(lane.model or lane.worker),
        cell(lane.base_url.removeprefix("https://")),
        Text(f"{lane.in_flight:,}{'+' if found.more_unfinished else ''}"),
        _number(lane.max_inflight),
        _number(lane.rpm),
        _number(lane.tpm),
        Text("" if lane.learned_rpm is None else f"{lane.learned_rpm:,.0f}/min", style="yellow"),
        Text(f"{throttles:,}" if throttles else ""),
    ]


def _number(limit: float | None) -> Text:
    return Text("" if limit is None else f"{limit:,.6g}")


def _throttles_of(lane: Lane, found: Overview) -> int:
    """Return how many claims of the batches that are shown the provider asked to come later."""
    place = (lane.worker, lane.base_url, lane.model)
    return sum(
        progress.throttles
        for progress in found.batches
        if any((own.worker, own.base_url, own.model) == place for own in progress.lanes)
    )
