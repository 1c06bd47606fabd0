"""Measures what was asked for and prints one table."""

from __future__ import annotations

import argparse
import os
import platform
import sqlite3
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from scripts.benchmarks import calls, enqueue, library, limits, memory, queue, scale, startup, storm
from scripts.benchmarks.sizes import DEFAULT, QUICK, SCALE, Plan, Sizes
from scripts.benchmarks.table import Row, markdown, plain

MEASURES: dict[str, Callable[[Plan], list[Row]]] = {
    "noop": queue.measure_noop,
    "calls": calls.measure_zero_latency,
    "latency": calls.measure_latency,
    "wide": calls.measure_wide,
    "enqueue": enqueue.measure,
    "claims": scale.measure,
    "memory": memory.measure,
    "library": library.measure,
    "processes": queue.measure_processes,
    "startup": startup.measure,
    "limits": limits.measure,
    "storm": storm.measure,
}


def main() -> None:
    options = _parse()
    sizes, label = _sizes(options)
    rows: list[Row] = []
    began, load, failures = time.monotonic(), os.getloadavg()[0], 0
    for name in options.only or MEASURES:
        print(f"measuring {name} …", file=sys.stderr, flush=True)
        try:
            rows += _measure(name, sizes, options.dir)
        except Exception:  # noqa: BLE001 - the others are worth having
            failures += 1
            traceback.print_exc()
    print(_machine(label, load, time.monotonic() - began), end="\n\n")
    print(markdown(rows) if options.markdown else plain(rows))
    sys.exit(1 if failures else 0)


def _measure(name: str, sizes: Sizes, parent: Path | None) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="batchq-bench-", dir=parent) as directory:
        return MEASURES[name](Plan(sizes, Path(directory).resolve()))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description="Measure batchq against what does the same without a queue."
    )
    parser.add_argument("--only", nargs="+", choices=MEASURES, metavar="NAME", help=", ".join(MEASURES))
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="small sizes, one round: two or three minutes in all")
    size.add_argument("--scale", action="store_true", help="5 M finished + 1 M waiting rows; memory of 1 M jobs")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    parser.add_argument("--dir", type=Path, help="where the temporary databases go; the disk matters")
    return parser.parse_args()


def _sizes(options: argparse.Namespace) -> tuple[Sizes, str]:
    if options.quick:
        return QUICK, "--quick: small sizes, one round"
    if options.scale:
        return SCALE, "--scale"
    return DEFAULT, "default sizes: `claims`, `memory` and `library` grow tenfold with --scale"


def _machine(label: str, load: float, seconds: float) -> str:
    versions: Sequence[str] = (
        f"{os.cpu_count()} cores ({platform.system()} {platform.machine()})",
        f"Python {platform.python_version()}",
        f"SQLite {sqlite3.sqlite_version}",
        f"load before {load:.1f}",
        f"{seconds:.0f} s",
    )
    return f"{', '.join(versions)}; {label}"


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
