"""Measures batchq beside its peers: what `scripts/bench --peers` runs."""

from __future__ import annotations

import argparse
import os
import platform
import sqlite3
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from scripts.benchmarks import table
from scripts.benchmarks.peers import report
from scripts.benchmarks.peers.measure import measure
from scripts.benchmarks.peers.registry import PEERS

ROUNDS = 3


def main(arguments: Sequence[str]) -> int:
    """Measure and print; return the exit status, which says whether batchq itself was measured."""
    options = _parse(arguments)
    began, load = time.monotonic(), os.getloadavg()[0]
    found = measure(1 if options.quick else ROUNDS, options.dir, options.only or ())
    rows = report.rows(found)
    print(_machine(load, time.monotonic() - began), end="\n\n")
    if rows:
        print(table.markdown(rows) if options.markdown else table.plain(rows), end="\n\n")
    print(report.markdown(found) if options.markdown else report.plain(found))
    return 1 if any(entry.problems and not entry.peer.package for entry in found) else 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench --peers", description="Measure batchq beside other queues, from the package index."
    )
    parser.add_argument("--peers", action="store_true", help="what brought you here")
    parser.add_argument("--only", nargs="+", choices=PEERS, metavar="NAME", help=", ".join(PEERS))
    parser.add_argument("--quick", action="store_true", help="one round instead of three")
    parser.add_argument("--markdown", action="store_true", help="print Markdown tables")
    parser.add_argument("--dir", type=Path, help="where the SQLite files go; PostgreSQL's go to /tmp")
    return parser.parse_args(arguments)


def _machine(load: float, seconds: float) -> str:
    cores = f"{os.cpu_count()} cores ({platform.system()} {platform.machine()})"
    versions = f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}"
    return f"{cores}, {versions}, load before {load:.1f}, {seconds:.0f} s"


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
