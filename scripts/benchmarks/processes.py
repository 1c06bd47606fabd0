"""Runs measurements and batchq commands in processes of their own, and ends those it started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

ROOT = Path(__file__).resolve().parent.parent.parent
BATCHQ = Path(sys.executable).with_name("batchq")
PATIENCE = 1_800.0
# The fake provider's helpers are in tests/.
PYTHON_PATH = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
_SETTINGS = ("BATCHQ_", "OPENROUTER_", "OPENAI_", "MODEL", "PYTHONPATH")


def in_child(function: Callable[..., T], *arguments: object) -> T:
    """Call a module's function in a fresh interpreter; arguments and result travel as JSON."""
    with child(function, *arguments) as result:
        return result()


@contextmanager
def child(function: Callable[..., T], *arguments: object) -> Iterator[Callable[[], T]]:
    """Start what `in_child` runs; what this yields waits for the result."""
    name = f"{function.__module__}:{function.__name__}"
    command = [sys.executable, "-P", "-m", __name__, name, json.dumps(arguments)]
    with running(command, stdout=subprocess.PIPE, PYTHONPATH=PYTHON_PATH) as process:

        def result() -> T:
            output, _ = process.communicate(timeout=PATIENCE)
            if process.returncode:
                raise RuntimeError(f"{name} ended with {process.returncode}")
            answer: T = json.loads(output)
            return answer

        yield result


def run(command: Sequence[str | Path], **variables: str) -> None:
    """Run a command to its end, in silence unless it fails."""
    with running(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **variables) as process:
        _, errors = process.communicate(timeout=PATIENCE)
    if process.returncode:
        raise RuntimeError(f"{command[0]} ended with {process.returncode}:\n{errors}")


@contextmanager
def running(
    command: Sequence[str | Path], *, stdout: int | None = None, stderr: int | None = None, **variables: str
) -> Iterator[subprocess.Popen[str]]:
    """Keep a command running for the length of the block, then end it, by its id.

    It sees none of the settings of whoever runs the benchmarks, only `variables`.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(_SETTINGS)}
    process = subprocess.Popen(
        [str(part) for part in command], stdout=stdout, stderr=stderr, text=True, env=inherited | variables
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_until(condition: Callable[[], bool], what: str, *processes: subprocess.Popen[str]) -> None:
    """Poll until `condition` holds; an error when it never does, or when one of `processes` ends before."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        ended = [process.returncode for process in processes if process.poll() is not None]
        if ended or time.monotonic() > deadline:
            raise RuntimeError(f"waited in vain for {what}" + (f": ended with {ended}" if ended else ""))
        time.sleep(0.02)


def _main() -> None:
    module, _, name = sys.argv[1].partition(":")
    print(json.dumps(getattr(import_module(module), name)(*json.loads(sys.argv[2]))))


if __name__ == "__main__":
    _main()
