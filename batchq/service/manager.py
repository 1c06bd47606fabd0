"""The systemd of this machine, or of this user: where its files are, and how it is asked."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from batchq.errors import BatchqError, ConfigurationError, UsageError

TEMPLATE, TARGET = "batchq-worker@.service", "batchq.target"
_ETC = Path("/etc")
# man 3 sd_booted
_BOOTED = Path("/run/systemd/system")


@dataclass(frozen=True, slots=True)
class Manager:
    """One that runs services of `user`s own, or those of the whole machine."""

    user: bool

    @property
    def units(self) -> Path:
        """The directory of the units that are made by hand here."""
        if not self.user:
            return _ETC / "systemd" / "system"
        own = os.environ.get("XDG_CONFIG_HOME", "")
        return (Path(own) if os.path.isabs(own) else Path.home() / ".config") / "systemd" / "user"  # noqa: PTH117

    @property
    def drop_in(self) -> Path:
        """The file with what is this machine's own."""
        return self.units / f"{TEMPLATE}.d" / "10-installed.conf"

    def files(self) -> list[Path]:
        """Return all that an installation writes."""
        own = [self.units / TEMPLATE, self.units / TARGET, self.drop_in]
        return own if self.user else [*own, _ETC / "sysusers.d" / "batchq.conf", _ETC / "tmpfiles.d" / "batchq.conf"]

    def enabled_workers(self) -> list[str]:
        """Return the workers that start with the target, in their order."""
        found = [link.name for link in (self.units / f"{TARGET}.wants").glob("batchq-worker@*.service")]
        return sorted(found, key=lambda name: (len(name), name))

    def systemctl(self, *arguments: str) -> list[str]:
        """Return a command that asks it."""
        return ["systemctl", *(["--user"] if self.user else []), *arguments]

    def told(self, *arguments: str) -> str:
        """Return such a command as a person would type it."""
        return f"`{shlex.join(self.systemctl(*arguments))}`"

    def log(self) -> str:
        """Return the command that shows what the workers say."""
        return f"`journalctl {'--user ' if self.user else ''}-u 'batchq-worker@*' -f`"

    def refuse_absent(self) -> None:
        """Raise UsageError where there is no systemd, ConfigurationError for who may not ask it."""
        if not _BOOTED.is_dir() or shutil.which("systemctl") is None:
            raise UsageError(
                "this machine is not run by systemd: start `batchq worker` under what runs it, like supervisor or a"
                " container engine; --dry-run shows what would be written"
            )
        if not self.user and os.geteuid() != 0:
            raise ConfigurationError("services of the whole machine are root's: use sudo, or --user for your own")
        if self.user and not (_runtime_directory() / "systemd").is_dir():
            raise ConfigurationError("systemd does not run for this user: log in, or `loginctl enable-linger` first")

    def run(self, command: Sequence[str]) -> None:
        """Run a command to its end. Raises BatchqError where it fails."""
        environment = {**os.environ, "XDG_RUNTIME_DIR": str(_runtime_directory())} if self.user else None
        try:
            done = subprocess.run(  # noqa: S603 - ours, with names of ours
                command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
            )
        except OSError as error:
            raise BatchqError(f"can't run {command[0]}: {error.strerror or error}") from None
        if done.returncode:
            lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
            said = [line for line in lines if not line.startswith(("Created symlink", "Removed"))] or [
                "it says nothing"
            ]
            raise BatchqError(f"`{shlex.join(command)}` failed: {said[0]}; see {self.log()}")


def _runtime_directory() -> Path:
    """Return where this user's systemd listens; `su` and `sudo` may have left out the variable, or kept another's."""
    given = os.environ.get("XDG_RUNTIME_DIR", "")
    own = Path(f"/run/user/{os.geteuid()}")
    return Path(given) if given and not own.is_dir() else own
