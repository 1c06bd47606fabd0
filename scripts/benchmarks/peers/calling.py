"""Runs the commands of a tool in its own environment, on databases of their own."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

from scripts.benchmarks.peers.contract import Peer, WorkerSettings
from scripts.benchmarks.peers.tasks import LEDGER
from scripts.benchmarks.processes import ROOT, running
from scripts.postgres_server import PostgresServer

COMMAND_SECONDS = 120


class Failed(Exception):
    """A tool did not do what it was told; the message is its last words."""


@dataclass(frozen=True, slots=True)
class Installed:
    """A tool, its key in the registry and the Python that has it."""

    key: str
    peer: Peer
    python: Path


class Places:
    """Makes empty databases: files in a directory, or databases of a server."""

    def __init__(self, directory: Path, server: PostgresServer | None) -> None:
        self.directory = directory
        self._server = server
        self._numbers = count(1)

    def new(self, tool: Installed) -> str:
        """Return the target of a new empty database for a tool."""
        name = f"{tool.key.replace('-', '_')}_{next(self._numbers)}"
        if tool.peer.database == "sqlite":
            return str(self.directory / f"{name}.db")
        server = self._postgres()
        server.create_database(name)
        return server.url(name, driver="")

    def settle(self, target: str) -> None:
        """Let PostgreSQL know the sizes of its tables and write out what it has in memory."""
        if target.startswith("postgresql"):
            server = self._postgres()
            server.execute("VACUUM ANALYZE", target.rpartition("/")[2])
            server.execute("CHECKPOINT")

    def remove(self, target: str) -> None:
        """Remove a database."""
        if target.startswith("postgresql"):
            self._postgres().drop_database(target.rpartition("/")[2])
            return
        for path in self.directory.glob(f"{Path(target).name}*"):
            path.unlink()

    def _postgres(self) -> PostgresServer:
        if self._server is None:
            raise Failed("there is no PostgreSQL server")
        return self._server


def call(tool: Installed, command: str, target: str, arguments: object = None) -> Any:  # noqa: ANN401 - JSON
    """Run a command of a tool to its end and return what it printed."""
    with tempfile.TemporaryFile("w+") as errors:
        parts = _command(tool, command, target, arguments)
        with running(parts, stdout=subprocess.PIPE, stderr=errors.fileno(), **_variables()) as process:
            try:
                output, _ = process.communicate(timeout=COMMAND_SECONDS)
            except subprocess.TimeoutExpired:
                raise Failed(f"{command} did not end within {COMMAND_SECONDS} s{_last(errors.fileno())}") from None
        if process.returncode:
            raise Failed(f"{command} ended with {process.returncode}{_last(errors.fileno())}")
    return json.loads(output.splitlines()[-1])


@contextmanager
def worker(tool: Installed, target: str, settings: WorkerSettings, ledger: Path) -> Iterator[subprocess.Popen[str]]:
    """Keep a worker process of a tool running for the length of the block."""
    parts = _command(tool, "work", target, asdict(settings))
    with ledger.with_suffix(f".{settings.name}.log").open("a") as log:
        variables = _variables() | {LEDGER: str(ledger)}
        with running(parts, stdout=log.fileno(), stderr=log.fileno(), **variables) as process:
            yield process


def _command(tool: Installed, command: str, target: str, arguments: object) -> Sequence[str | Path]:
    module = f"{__package__}.run"
    return [tool.python, "-P", "-m", module, tool.key, command, target, json.dumps(arguments or {})]


def _variables() -> dict[str, str]:
    return {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}


def _last(file: int) -> str:
    with open(file, closefd=False, errors="replace") as errors:
        errors.seek(0)
        lines = [line.strip() for line in errors if line.strip()]
    return f": {lines[-1][:200]}" if lines else ""
