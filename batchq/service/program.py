"""The batchq that services are to run: this one, if another user can reach it."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

from batchq.errors import ConfigurationError

# ProtectHome= and PrivateTmp= of the unit hide them.
_HIDDEN = tuple(map(Path, ("/home", "/root", "/run/user", "/tmp", "/var/tmp")))  # noqa: S108


def this_program() -> list[str]:
    """Return the command that runs this batchq, with full paths."""
    # Not resolved: the interpreter of a virtual environment is a link to one that knows nothing of it.
    script = Path(sys.executable).absolute().with_name("batchq")
    # -P: what lies in the directory of a queue is no code of ours.
    return [str(script)] if script.is_file() else [sys.executable, "-P", "-m", "batchq"]


def refuse_hidden(program: list[str]) -> None:
    """Raise ConfigurationError where the user of the services can't reach what it takes to run batchq."""
    python = Path(sys.executable)
    for needed in (Path(program[0]), python, python.resolve(), Path(sys.base_prefix), Path(__file__).resolve()):
        if not _is_reachable(needed):
            raise ConfigurationError(
                f"the workers' own user can't reach {needed}, which this batchq needs: install it where all users may"
                " read, like `python3 -m venv /opt/batchq` with a Python of the system, or use --user"
            )


def is_hidden(path: Path) -> bool:
    """Whether services don't see a path, whatever its mode."""
    return any(real.is_relative_to(home) for home in _HIDDEN for real in (path, path.resolve()))


def _is_reachable(path: Path) -> bool:
    if is_hidden(path):
        return False
    try:
        return all(os.stat(above).st_mode & stat.S_IXOTH for above in path.parents)  # noqa: PTH116 - Path.stat does the same
    except OSError:
        return False
