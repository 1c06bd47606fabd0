"""What there is to say of a lane: its limits, and what keeps it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchq.display.text import one_line

if TYPE_CHECKING:
    from batchq.jobs import Lane


def limits_of(lane: Lane) -> list[str]:
    """Return what limits a lane, configured or learned."""
    parts = []
    if lane.rpm is not None:
        parts.append(f"{lane.rpm:,.6g} requests/min (bursts of {lane.burst:,.3g})")
    if lane.tpm is not None:
        parts.append(f"{lane.tpm:,.6g} tokens/min")
    if lane.max_inflight is not None:
        parts.append(f"at most {lane.max_inflight:,} in flight")
    if lane.learned_rpm is not None:
        parts.append(f"learned {lane.learned_rpm:,.0f} requests/min")
    return parts


def stop_of(lane: Lane, now: int) -> list[str]:
    """Return what keeps a lane at the moment, and until when; nothing where nothing does."""
    from batchq.waiting import clock

    reason = one_line(lane.reason or "no reason given")
    if lane.halted_at is not None:
        return [f"halted since {clock(lane.halted_at)}: {reason}", f"next try at {clock(lane.probe_at)}"]
    if (lane.paused_until or 0) > now:
        return [f"throttled until {clock(lane.paused_until)}: {reason}"]
    return []
