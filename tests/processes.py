"""Starts real batchq processes, waits for what they do, and ends those it started."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import forked
import pytest
from raw_connection import NOT_THERE_YET, connect

# For tests whose `place` is a bench of `bench_for`; without it they run on SQLite.
ON_BOTH = pytest.mark.parametrize("place", ["sqlite", "postgresql"], indirect=True)
DEADLINE = 60.0


def wait_for(condition: Callable[[], Any], what: str, deadline: float = DEADLINE) -> Any:
    """Poll until `condition` is true and return what it returned."""
    end = time.monotonic() + deadline
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"waited {deadline:g} s in vain for {what}")


@dataclass
class Bench:
    """A directory with a queue in it, and the processes that work on it."""

    directory: Path
    environment: dict[str, str]
    started: list[subprocess.Popen[str]] = field(default_factory=list)
    # What `python -m` runs as batchq.
    module: str = "batchq"

    @property
    def database(self) -> Path | str:
        """The file that commands use by themselves, or the URL that their environment names."""
        return self.environment.get("BATCHQ_DB") or self.directory / "runs.db"

    def run(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run one command to its end."""
        return forked.run(
            [sys.executable, "-m", self.module, *arguments],
            cwd=self.directory,
            env=self.environment | options.pop("env", {}),
            text=True,
            timeout=options.pop("timeout", DEADLINE),
            **options,
        )

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """Start one command; its output goes to numbered files."""
        number = len(self.started)
        with (self.directory / f"{number}.out").open("w") as out, (self.directory / f"{number}.err").open("w") as err:
            process = forked.Popen(
                [sys.executable, "-m", self.module, *arguments],
                cwd=self.directory,
                env=self.environment | options.pop("env", {}),
                text=True,
                stdout=out,
                stderr=err,
                **options,
            )
        self.started.append(process)
        return process

    def errors(self, process: subprocess.Popen[str]) -> str:
        """What a started process wrote to stderr."""
        return (self.directory / f"{self.started.index(process)}.err").read_text()

    def query(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Look into the database from outside; nothing while it is not there."""
        database = self.database
        if isinstance(database, Path) and not database.exists():
            return []
        with suppress(*NOT_THERE_YET), connect(database) as connection:
            return connection.tuples(sql, parameters)
        return []

    def count(self, state: str) -> int:
        """How many jobs are in a state."""
        rows = self.query("SELECT count(*) FROM jobs WHERE state = ?", state)
        return rows[0][0] if rows else 0

    def held_by(self, process: subprocess.Popen[str]) -> int:
        """How many jobs a worker process holds."""
        rows = self.query(
            "SELECT count(*) FROM jobs WHERE state = 'inflight' AND claimed_by IN "
            "(SELECT id FROM runners WHERE pid = ?)",
            process.pid,
        )
        return rows[0][0] if rows else 0

    def write_prompts(self, count: int, name: str = "prompts.jsonl") -> Path:
        """Write an input of distinct prompts."""
        path = self.directory / name
        path.write_text("".join(json.dumps({"prompt": f"prompt {i}"}) + "\n" for i in range(count)))
        return path

    def results(self, name: str, *options: str) -> list[dict[str, Any]]:
        """Collect a batch."""
        done = self.run("collect", name, *options)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def end(self) -> None:
        """End what still runs, by its id."""
        for process in self.started:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
        for process in self.started:
            process.wait(DEADLINE)


@contextmanager
def bench(directory: Path, **environment: str) -> Iterator[Bench]:
    """A bench in `directory`, with an environment that holds no settings but these."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("BATCHQ_", "OPEN", "MODEL"))}
    # Nor does whoever runs the tests bring settings of his own.
    place = Bench(directory, clean | {"XDG_CONFIG_HOME": str(directory / "none"), **environment})
    try:
        yield place
    finally:
        place.end()


@contextmanager
def bench_for(request: pytest.FixtureRequest, directory: Path, **environment: str) -> Iterator[Bench]:
    """A bench on the database that the test asks for with ON_BOTH."""
    if getattr(request, "param", "sqlite") == "postgresql":
        environment["BATCHQ_DB"] = request.getfixturevalue("postgres_url")
    with bench(directory, **environment) as place:
        yield place
