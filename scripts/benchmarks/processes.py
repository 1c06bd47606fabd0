"""Runs measurements and batchq commands in processes of their own, and ends those it started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import ParamSpec, TypeVar, cast

P = ParamSpec("P")
T = TypeVar("T")

ROOT = Path(__file__).resolve().parent.parent.parent
BATCHQ = Path(sys.executable).with_name("batchq")
PATIENCE = 900.0
_SETTINGS = ("BATCHQ_", "OPENROUTER_", "OPENAI_", "MODEL", "PYTHONPATH")


def environment() -> dict[str, str]:
    """Return this process's environment without anything that batchq would read."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_SETTINGS)}


def in_child(function: Callable[P, T], *arguments: P.args, **_: P.kwargs) -> T:
    """Run a module's function in a fresh interpreter; arguments and result travel as JSON."""
    child = start_child(function, *arguments)
    return finish_child(child)


def start_child(function: Callable[P, T], *arguments: P.args, **_: P.kwargs) -> Child[T]:
    """Start what `in_child` runs; give it to `finish_child`."""
    command = [sys.executable, "-P", "-m", __name__, f"{function.__module__}:{function.__name__}"]
    return Child(
        subprocess.Popen(
            [*command, json.dumps(arguments)],
            stdout=subprocess.PIPE,
            text=True,
            env=environment() | {"PYTHONPATH": str(ROOT)},
        )
    )
