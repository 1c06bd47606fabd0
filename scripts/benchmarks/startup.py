"""How long a command takes to begin."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from scripts.benchmarks.processes import BATCHQ, run
from scripts.benchmarks.sizes import Plan, interleaved
from scripts.benchmarks.table import Row


def measure(plan: Plan) -> list[Row]:
    """`batchq --help` against `python -c "import click"`: wall time of the process, median, taken in turn."""
    commands: tuple[Sequence[str | Path], ...] = ([BATCHQ, "--help"], [sys.executable, "-c", "import click"])
    found = interleaved(plan.sizes.starts, *(partial(_seconds, command) for command in commands))
    ours, theirs = (statistics.median(seconds) * 1000 for seconds in found)
    note = f"{ours:.0f} ms against {theirs:.0f} ms; median of {plan.sizes.starts}"
    return [Row("start-up: batchq --help against python -c 'import click'", ours / theirs, 3, note, at_most=True)]


def _seconds(command: Sequence[str | Path]) -> float:
    began = time.perf_counter()
    run(command)
    return time.perf_counter() - began
