"""The directory in which the workers on this machine say how they are."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from batchq.errors import ConfigurationError

VARIABLE = "BATCHQ_RUNTIME_DIR"


@dataclass(frozen=True, slots=True)
class RuntimeDirectory:
    """Where workers write and `batchq health` reads.

    One that was `given` by whoever set the process up may belong to somebody else, who shares it; any other is this
    user's alone.
    """

    path: Path
    given: bool

    @contextmanager
    def opened(self, *, make: bool = False) -> Iterator[int]:
        """Open it, or `make` it first. Raises OSError, and ConfigurationError where others could put files into it."""
        if make:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        # In a directory that all may write to, a link may stand at a name that can be foreseen.
        opened = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | (0 if self.given else os.O_NOFOLLOW))
        try:
            self._refuse_unsafe(os.fstat(opened))
            yield opened
        finally:
            os.close(opened)

    def _refuse_unsafe(self, found: os.stat_result) -> None:
        """Raise ConfigurationError for a directory in which a file may be anybody's."""
        if not self.given and (found.st_uid != os.geteuid() or found.st_mode & 0o077):
            raise ConfigurationError(
                f"{self.path} should be this user's alone (mode 0700): remove it, or name another with {VARIABLE}"
            )
        if found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX:
            raise ConfigurationError(f"{self.path} can be written to by all users: name another with {VARIABLE}")


def runtime_directory(environment: Mapping[str, str], given: Path | None = None) -> RuntimeDirectory:
    """Return the directory that is given, or the one that this environment means."""
    if given is not None:
        return RuntimeDirectory(given, given=True)
    if named := environment.get(VARIABLE):
        return RuntimeDirectory(Path(named), given=True)
    if of_unit := environment.get("RUNTIME_DIRECTORY"):  # man 5 systemd.exec
        return RuntimeDirectory(Path(of_unit.partition(":")[0]), given=True)
    session = environment.get("XDG_RUNTIME_DIR")
    if session and _is_own(session):
        return RuntimeDirectory(Path(session) / "batchq", given=False)
    temporary = Path(environment.get("TMPDIR") or "/tmp")  # noqa: S108 - a directory of one's own in it
    return RuntimeDirectory(temporary / f"batchq-{os.geteuid()}", given=False)


def _is_own(directory: str) -> bool:
    """Whether it is this user's: `su` and `sudo` may leave the variable of the user before."""
    try:
        return os.stat(directory).st_uid == os.geteuid()  # noqa: PTH116 - Path.stat does the same
    except OSError:
        return False
