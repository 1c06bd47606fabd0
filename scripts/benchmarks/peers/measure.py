"""Measures batchq and its peers in one run: how fast they are, and what a killed worker leaves behind."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from scripts.benchmarks.peers.calling import Failed, Installed, Places
from scripts.benchmarks.peers.contract import Peer, Recovery
from scripts.benchmarks.peers.environments import NotInstalled, python_for, version_of
from scripts.benchmarks.peers.recovery import Recovered, given_up, recover
from scripts.benchmarks.peers.registry import PEERS
from scripts.benchmarks.peers.throughput import seconds_for, size_for
from scripts.postgres_server import PostgresServer, PostgresUnavailable, postgres_server

# What one tool may do wrong without keeping the others from being measured.
_PROBLEMS = (Failed, NotInstalled, PostgresUnavailable, subprocess.SubprocessError, OSError, ValueError)


@dataclass(slots=True)
class Measured:
    """What was found out about one tool; `problems` say what was not."""

    key: str
    peer: Peer
    version: str = ""
    jobs: int = 0
    rates: list[float] = field(default_factory=list)
    recovered: list[Recovered] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def rate(self) -> float | None:
        """Jobs/s: the median of the rounds."""
        return statistics.median(self.rates) if self.rates else None


def measure(rounds: int, parent: Path | None, names: Sequence[str] = ()) -> list[Measured]:
    """Measure the tools of these names, or all."""
    found = [Measured(key, peer) for key, peer in PEERS.items() if not names or key in names]
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="batchq-peers-", dir=parent)))
        places = Places(directory, _server(stack, found))
        tools = _install(found)
        _speeds(tools, places, rounds)
        _recoveries(tools, places)
    return found


def _server(stack: ExitStack, found: Sequence[Measured]) -> PostgresServer | None:
    if all(entry.peer.database == "sqlite" for entry in found):
        return None
    try:
        return stack.enter_context(postgres_server(durable=True))
    except PostgresUnavailable as problem:
        for entry in found:
            if entry.peer.database == "postgresql":
                entry.problems.append(str(problem))
        return None


def _install(found: Sequence[Measured]) -> list[tuple[Measured, Installed]]:
    tools = []
    for entry in found:
        if entry.problems:
            continue
        try:
            python = python_for(entry.peer)
            entry.version = version_of(entry.peer, python)
            tools.append((entry, Installed(entry.key, entry.peer, python)))
        except _PROBLEMS as problem:
            entry.problems.append(f"not installed: {problem}")
    return tools


def _speeds(tools: Sequence[tuple[Measured, Installed]], places: Places, rounds: int) -> None:
    """Take every tool once per round, in turn, so that all of them see the same machine."""
    for round_number in range(rounds):
        for entry, tool in tools:
            if round_number and not entry.rates:
                continue
            print(f"measuring {tool.key}, round {round_number + 1} …", file=sys.stderr, flush=True)
            try:
                entry.jobs = entry.jobs or size_for(tool, places)
                entry.rates.append(entry.jobs / seconds_for(tool, places, entry.jobs))
            except _PROBLEMS as problem:
                entry.problems.append(f"no speed: {problem}")


def _recoveries(tools: Sequence[tuple[Measured, Installed]], places: Places) -> None:
    """Kill a worker of each tool; most of it is waiting, so all of them wait together."""
    print("killing workers, and waiting for their jobs …", file=sys.stderr, flush=True)
    cases = [(entry, tool, recovery) for entry, tool in tools for recovery in tool.peer.recoveries]
    # Where a start is part of what is measured, the others have had theirs by then.
    cases.sort(key=lambda case: case[2].restarts)
    with ThreadPoolExecutor(max(1, len(cases))) as pool:
        futures = [pool.submit(_recover, *case, places, number) for number, case in enumerate(cases)]
        for (entry, _, recovery), future in zip(cases, futures, strict=True):
            try:
                entry.recovered.append(future.result())
            except _PROBLEMS as problem:
                entry.problems.append(f"{recovery.label}: {problem}")
            except BaseException:
                given_up.set()
                raise


def _recover(entry: Measured, tool: Installed, recovery: Recovery, places: Places, number: int) -> Recovered:
    return recover(tool, recovery, places.new(tool), places.directory / f"{entry.key}-{number}.ledger")
