"""How much memory the commands need at their peak, for a small and a large batch."""

from __future__ import annotations

import json
import re
import resource
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from scripts.benchmarks.places import Home, Place
from scripts.benchmarks.processes import ROOT, run
from scripts.benchmarks.queues import MODEL, prompts
from scripts.benchmarks.sizes import Plan
from scripts.benchmarks.table import Row

LIMIT_MB = 150
SLOTS = 256
COMMANDS = ("enqueue", "worker", "collect")


def measure(plan: Plan) -> list[Row]:
    """Peak resident memory of `enqueue`, `worker` (echo, 256 slots) and `collect`, each a process, at two sizes.

    Taken by the process itself at its end: what its parent held when it was started does not count. Each
    command's peak for the larger batch relative to 150 MB; then the peaks of larger against smaller, of
    the command where that is worst.
    """
    return [row for home in plan.homes for row in _measure(plan, home)]


def _measure(plan: Plan, home: Home) -> list[Row]:
    sizes = (plan.sizes.small_batch, plan.sizes.large_batch)
    small, large = (_peaks(plan.directory, home.place(f"jobs_{jobs}"), jobs) for jobs in sizes)
    rows = [
        Row(
            f"{home.database}: peak memory of {command}, relative to {LIMIT_MB} MB",
            large[command] / LIMIT_MB,
            1,
            f"{large[command]:.0f} MB for {sizes[1]:,} jobs, {small[command]:.0f} MB for {sizes[0]:,}",
            at_most=True,
        )
        for command in COMMANDS
    ]
    growth = {command: large[command] / small[command] for command in COMMANDS}
    worst = max(growth, key=lambda command: growth[command])
    note = f"{worst}, of {', '.join(f'{command} {growth[command]:.2f} ×' for command in COMMANDS)}"
    name = f"{home.database}: peak memory of {sizes[1]:,} jobs against {sizes[0]:,}"
    return [*rows, Row(name, growth[worst], 1.2, note, at_most=True)]


def _peaks(parent: Path, place: Place, jobs: int) -> dict[str, float]:
    place.clear()
    queue = f"--db={place.location}"
    with TemporaryDirectory(dir=parent) as name:
        directory = Path(name)
        source = directory / "main.jsonl"
        with source.open("w") as file:
            file.writelines(json.dumps({"prompt": text}) + "\n" for text in prompts(jobs))
        arguments = {
            "enqueue": [str(source), "--worker=echo", f"--model={MODEL}", queue],
            "worker": ["--until-empty", f"--concurrency={SLOTS}", "--log-level=error", queue],
            "collect": ["main", f"--out={directory / 'out.jsonl'}", queue],
        }
        return {command: _peak(directory / command, command, *arguments[command]) for command in COMMANDS}


def _peak(report: Path, *arguments: str) -> float:
    """Run a command of batchq's and return its peak in MB."""
    run([sys.executable, "-P", "-m", __name__, report, *arguments], PYTHONPATH=str(ROOT))
    return int(report.read_text()) / 2**20


def _main() -> None:
    from batchq.cli import main

    report, sys.argv = Path(sys.argv[1]), ["batchq", *sys.argv[2:]]
    try:
        main()
    finally:
        report.write_text(str(peak_bytes()))


def peak_bytes() -> int:
    """Return the most memory that this process has had."""
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage tells on Linux includes the parent's size at the fork
        found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text())
        if found:
            return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    _main()
