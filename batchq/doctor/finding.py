"""What a check came to."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How much it matters: all is well, it may become a problem, or it is one."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check came to, and what to do about it.

    `what_to_do` is empty where nothing is to be done, or where `what` says it.
    """

    name: str
    level: Level
    what: str
    what_to_do: str = ""


def ok(name: str, what: str) -> Finding:
    """Say that something is as it should be."""
    return Finding(name, Level.OK, what)


def warning(name: str, what: str, what_to_do: str = "") -> Finding:
    """Say what may become a problem."""
    return Finding(name, Level.WARNING, what, what_to_do)


def error(name: str, what: str, what_to_do: str = "") -> Finding:
    """Say what is a problem."""
    return Finding(name, Level.ERROR, what, what_to_do)
