"""Runs scripts/fake_llm.py as a process (a fork) for the length of a `with` block."""

from __future__ import annotations

import json
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

import forked

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "fake_llm.py"
READY_WITHIN = 20.0
STOPPED_WITHIN = 5.0

# Without proxies: a proxy in the environment must not stand between a test and its own machine.
_opener = build_opener(ProxyHandler({}))


@dataclass(frozen=True)
class Provider:
    base_url: str
    pid: int

    def ledger(self, *, prompts: bool = False, times: bool = False) -> dict[str, Any]:
        return self._ask(f"/ledger?prompts={int(prompts)}&times={int(times)}")

    def reset(self) -> None:
        self._ask("/ledger/reset", {})

    def behave(self, **changes: object) -> dict[str, Any]:
        """Change options of the running provider; they are the flags of scripts/fake_llm.py."""
        return self._ask("/behaviour", changes)

    def _ask(self, path: str, body: dict[str, object] | None = None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        try:
            with _opener.open(Request(self.base_url + path, data=data), timeout=10) as response:
                answer: dict[str, Any] = json.load(response)
        except HTTPError as refusal:
            with refusal:
                raise ValueError(json.load(refusal)["error"]["message"]) from None
        return answer


@contextmanager
def running_provider(**options: object) -> Iterator[Provider]:
    """`running_provider(latency=0.1, no_cost=True)` runs `fake_llm.py --latency=0.1 --no-cost`."""
    command = [sys.executable, str(SCRIPT), "--port=0", *_flags(options)]
    with forked.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Provider(_base_url(process), process.pid)
        finally:
            _stop(process)


def _flags(options: dict[str, object]) -> Iterator[str]:
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        if value is True:
            yield flag
        elif value is not None and value is not False:
            yield f"{flag}={value}"


def _base_url(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], READY_WITHIN)
    line = process.stdout.readline() if ready else ""
    if not line.startswith("listening on "):
        raise RuntimeError(f"the fake provider did not start: {line!r}")
    return line.removeprefix("listening on ").strip()


def _stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(STOPPED_WITHIN)
    except subprocess.TimeoutExpired:
        process.kill()
