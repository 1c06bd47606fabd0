"""What a process may do with a queue's file; it says so in its settings."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FileRules:
    """The permissions of a file that is created; whether one may be on a file system that machines share."""

    mode: int = 0o600
    network: bool = False
