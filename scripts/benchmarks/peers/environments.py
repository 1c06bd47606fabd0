"""A virtual environment for each tool, with what plain pip installs from the package index."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from scripts.benchmarks.peers.contract import Peer
from scripts.benchmarks.peers.versions import REQUIREMENTS
from scripts.benchmarks.processes import ROOT

ENVIRONMENTS = ROOT / ".venvs" / "peers"
INSTALL_SECONDS = 300


class NotInstalled(Exception):
    """A tool could not be installed."""


def python_for(peer: Peer) -> Path:
    """Return the Python that has a tool, after installing it where it is missing or of another version."""
    if not peer.package:
        return Path(sys.executable)
    requirements = REQUIREMENTS[peer.package]
    directory = ENVIRONMENTS / peer.package
    python, stamp = directory / "bin" / "python", directory / "installed"
    wanted = "\n".join((sys.version, str(directory), *requirements))
    if not stamp.is_file() or stamp.read_text() != wanted:
        print(f"installing {peer.package} into {directory} …", file=sys.stderr, flush=True)
        _run(sys.executable, "-m", "venv", "--clear", directory)
        _run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements)
        stamp.write_text(wanted)
    return python


def version_of(peer: Peer, python: Path) -> str:
    """Return the version of a tool that a Python has."""
    code = "import sys; from importlib.metadata import version; print(version(sys.argv[1]))"
    command: list[str | Path] = [python, "-P", "-c", code, peer.package or "batchq"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _run(*command: str | Path) -> None:
    try:
        ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=INSTALL_SECONDS)
    except subprocess.TimeoutExpired:
        raise NotInstalled(f"pip took longer than {INSTALL_SECONDS} s") from None
    if ended.returncode:
        lines = [line for line in ended.stderr.splitlines() if line.startswith("ERROR")] or ended.stderr.splitlines()
        raise NotInstalled(f"pip: {lines[-1] if lines else 'failed'}")
