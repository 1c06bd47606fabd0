"""How fast: back-off of a job, limits and learned rate of a lane, concurrency of a process. Knows no database."""

from __future__ import annotations

from batchq.pacing.back_off import BACK_OFF_BASE_MS, asked_ms, back_off_ms, delay_ms
from batchq.pacing.lane import PROBE_EVERY_MS, LaneState, Limits
from batchq.pacing.window import Window

__all__ = [
    "BACK_OFF_BASE_MS",
    "PROBE_EVERY_MS",
    "LaneState",
    "Limits",
    "Window",
    "asked_ms",
    "back_off_ms",
    "delay_ms",
]
