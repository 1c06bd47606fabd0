"""Measures what was asked for and prints one table."""

from __future__ import annotations

import argparse
import os
import platform
import sqlite3
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from scripts.benchmarks import (
    calls,
    enqueue,
    library,
    limits,
    memory,
    outages,
    queue,
    scale,
    soak,
    startup,
    storm,
    wake,
)
from scripts.benchmarks.places import POSTGRESQL, SQLITE, homes
from scripts.benchmarks.sizes import DEFAULT, QUICK, SCALE, Plan, Sizes
from scripts.benchmarks.table import Row, markdown, plain
from scripts.postgres_server import PostgresUnavailable, find_binaries

MEASURES: dict[str, Callable[[Plan], list[Row]]] = {
    "noop": queue.measure_noop,
    "processes": queue.measure_processes,
    "enqueue": enqueue.measure,
    "wake": wake.measure,
    "scale": scale.measure,
    "soak": soak.measure,
    "memory": memory.measure,
    "calls": calls.measure_zero_latency,
    "cpu": calls.measure_cpu,
    "latency": calls.measure_latency,
    "wide": calls.measure_wide,
    "library": library.measure,
    "startup": startup.measure,
    "limits": limits.measure,
    "storm": storm.measure,
    "outages": outages.measure,
}
# The others have their queues on SQLite, or none.
ON_BOTH = frozenset({"noop", "processes", "enqueue", "wake", "scale", "soak", "memory"})
# What --scale does unless --only says otherwise; the rest of GROWING would take as long again.
SCALED = ("scale", "soak", "memory")
GROWING = (*SCALED, "library", "limits", "storm")
DATABASES = {"sqlite": SQLITE, "postgresql": POSTGRESQL}


def main() -> None:
    options = _parse()
    sizes, label = _sizes(options)
    rows: list[Row] = []
    began, load, failures = time.monotonic(), os.getloadavg()[0], 0
    for name in _chosen(options):
        print(f"measuring {name} …", file=sys.stderr, flush=True)
        try:
            rows += _measure(name, sizes, options)
        except Exception:  # noqa: BLE001 - the others are worth having
            failures += 1
            traceback.print_exc()
    print(_machine(label, load, time.monotonic() - began), end="\n\n")
    print(markdown(rows) if options.markdown else plain(rows))
    sys.exit(1 if failures else 0)


def _chosen(options: argparse.Namespace) -> list[str]:
    names = options.only or (SCALED if options.scale else MEASURES)
    return [name for name in names if name in ON_BOTH or options.database != "postgresql"]


def _measure(name: str, sizes: Sizes, options: argparse.Namespace) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="batchq-bench-", dir=options.dir) as parent:
        directory = Path(parent).resolve()
        with homes(directory, _wanted(options) if name in ON_BOTH else ()) as found:
            return MEASURES[name](Plan(sizes, directory, found))


def _wanted(options: argparse.Namespace) -> tuple[str, ...]:
    """Return the databases to measure on: the one that was named, or all that this machine has."""
    if options.database:
        return (DATABASES[options.database],)
    try:
        find_binaries()
    except PostgresUnavailable as problem:
        print(problem, file=sys.stderr)
        return (SQLITE,)
    return tuple(DATABASES.values())


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description="Measure batchq against what does the same without a queue."
    )
    parser.add_argument("--only", nargs="+", choices=MEASURES, metavar="NAME", help=", ".join(MEASURES))
    parser.add_argument("--database", choices=DATABASES, help="measure what there is to measure on this one only")
    # scripts/bench sees it first and runs scripts.benchmarks.peers.
    parser.add_argument("--peers", action="store_true", help="other queues beside batchq instead; has its own --help")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="small sizes, one round: three or four minutes in all")
    size.add_argument(
        "--scale", action="store_true", help=f"millions of rows, in {', '.join(SCALED)}; or --only others"
    )
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    parser.add_argument("--dir", type=Path, help="where the SQLite files go; the disk matters")
    return parser.parse_args()


def _sizes(options: argparse.Namespace) -> tuple[Sizes, str]:
    if options.quick:
        return QUICK, "--quick: small sizes, one round"
    if options.scale:
        return SCALE, "--scale"
    return DEFAULT, f"default sizes: {', '.join(GROWING)} grow with --scale"


def _machine(label: str, load: float, seconds: float) -> str:
    versions: Sequence[str] = (
        f"{os.cpu_count()} cores ({platform.system()} {platform.machine()})",
        f"Python {platform.python_version()}",
        f"SQLite {sqlite3.sqlite_version}",
        _postgres_version(),
        f"load before {load:.1f}",
        f"{seconds:.0f} s",
    )
    return f"{', '.join(versions)}; {label}"


def _postgres_version() -> str:
    """Return what the server calls itself; no PostgreSQL is told of, too."""
    try:
        program = find_binaries() / "postgres"
    except PostgresUnavailable:
        return "no PostgreSQL"
    told = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    return f"PostgreSQL {told.split()[2]}"


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
