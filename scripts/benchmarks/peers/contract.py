"""What a tool must be able to do to be measured beside batchq.

Each tool is a `with_*.py` file that implements `Peer`. Our side imports it to read what it says about
itself; its methods run in the tool's own virtual environment, so what they need they import themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

Database = Literal["postgresql", "sqlite"]
TaskName = Literal["nothing", "sleeping"]

SLOTS = 16
QUEUE = "jobs"
MANY_JOBS = 20_000


@dataclass(frozen=True, slots=True)
class Recovery:
    """One way to get the jobs of a killed worker back.

    `options` are the worker's settings for it. With `restarts` the killed worker is started again under its
    name; else a second one is already there. `otherwise` says what is to be done if nothing comes back.
    """

    label: str
    options: Mapping[str, float] = field(default_factory=dict)
    restarts: bool = False
    otherwise: str = ""


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What a worker process is told: its name, how many jobs at once (0: what is fastest), further settings."""

    name: str = "first"
    slots: int = 0
    options: Mapping[str, float] = field(default_factory=dict)


class Peer(Protocol):
    """A queue on a database. A `target` is the path of a SQLite file or the URL of an empty PostgreSQL database."""

    @property
    def name(self) -> str: ...

    @property
    def package(self) -> str:
        """Its name in `REQUIREMENTS`; empty for what is in our own environment."""

    @property
    def database(self) -> Database: ...

    @property
    def keeps_results(self) -> bool:
        """Whether it stores what a task returns."""

    @property
    def settings(self) -> str:
        """With which settings it runs as fast as it can."""

    @property
    def most_jobs(self) -> int:
        """How many jobs its speed is measured with at most."""

    @property
    def recoveries(self) -> Sequence[Recovery]: ...

    def prepare(self, target: str) -> None:
        """Create its tables."""

    def enqueue(self, target: str, task: TaskName, jobs: int) -> None:
        """Enqueue jobs numbered from 0."""

    def work(self, target: str, worker: WorkerSettings) -> None:
        """Run jobs until the process ends."""

    def finished(self, target: str) -> int:
        """Count the jobs whose end is stored."""

    def unfinished(self, target: str) -> int:
        """Count the jobs that the database still has to do, running ones included."""

    def claimed_at(self, target: str) -> float | None:
        """When the first job was claimed, in seconds since 1970, if the database knows."""
