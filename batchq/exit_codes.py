"""Every code that the command line ends with, in one table."""

from __future__ import annotations

from enum import IntEnum
from typing import Self


class ExitCode(IntEnum):
    """A code that a command ends with, and what it means to whoever waits for the command."""

    meaning: str

    def __new__(cls, code: int, meaning: str) -> Self:
        """Keep the meaning beside the number."""
        made = int.__new__(cls, code)
        made._value_ = code
        made.meaning = meaning
        return made

    OK = 0, "ok"
    FAILURE = 1, "failure; `purge`: you said no; `health`, `doctor`, `db check`: something is wrong"
    USAGE = 2, "usage, or bad input: the same command can't succeed"
    SOME_FAILED = 3, "some jobs failed or were cancelled (`--strict`)"
    TIMED_OUT = 4, "timed out waiting (`--wait-timeout`)"
    CANNOT_GO_ON = 5, "can't go on: what is left is halted, paused or over its budget, or its enqueue died"
    RELEASED = 75, "a worker released unfinished jobs at its drain deadline; start it again"
    CONFIGURATION = 78, "configuration: a key, URL, right or worker is missing or wrong"
    HUNG_UP = 129, "hung up (SIGHUP): the terminal was closed"
    INTERRUPTED = 130, "interrupted (SIGINT, Ctrl-C)"
    TERMINATED = 143, "terminated (SIGTERM)"
