"""Runs one command of one tool; started by our side in the tool's own environment.

python -m scripts.benchmarks.peers.run TOOL COMMAND TARGET [JSON]
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from typing import Any

from scripts.benchmarks.peers.contract import Peer, WorkerSettings
from scripts.benchmarks.peers.registry import PEERS
from scripts.benchmarks.peers.tasks import runs

POLL_SECONDS = 0.01


def main() -> None:
    key, command, target, *rest = sys.argv[1:]
    peer, arguments = PEERS[key], json.loads(rest[0]) if rest else {}
    print(json.dumps(_run(peer, command, target, arguments)))


def _run(peer: Peer, command: str, target: str, arguments: dict[str, Any]) -> object:
    match command:
        case "fill":
            peer.prepare(target)
            peer.enqueue(target, arguments["task"], arguments["jobs"])
        case "drain":
            _drain(peer, target, arguments["jobs"])
        case "work":
            peer.work(target, WorkerSettings(**arguments))
        case "unfinished":
            return peer.unfinished(target)
        case _:
            raise SystemExit(f"no command {command!r}")
    return None


def _drain(peer: Peer, target: str, jobs: int) -> None:
    runs.expected = jobs
    threading.Thread(target=_report, args=(peer, target, jobs), daemon=True).start()
    peer.work(target, WorkerSettings())
    raise SystemExit("the worker ended before its jobs did")


def _report(peer: Peer, target: str, jobs: int) -> None:
    """Print how long the jobs took, from the first claim to the last stored result, and end the process.

    The database is not asked before all jobs have begun, so that asking costs them nothing.
    """
    runs.all.wait()
    while peer.finished(target) < jobs:
        time.sleep(POLL_SECONDS)
    ended = time.time()
    claimed = peer.claimed_at(target)
    print(json.dumps(ended - (runs.began if claimed is None else min(claimed, runs.began))), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
