"""A real systemd, booted in a container over this machine's own files; whatever is written there is gone with it.

It takes root and systemd-nspawn (Debian: systemd-container). Nothing of it touches the network.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

READY_SECONDS = 60.0
CGROUPS = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd")


class Booted:
    """The machine that was booted."""

    def __init__(self, leader: int, root: Path) -> None:
        self._leader = leader
        self.root = root

    def run(self, command: str, *, check: bool = True, timeout: float = 120.0) -> str:
        """Run a line of shell in it, and return what it says."""
        done = subprocess.run(
            ["nsenter", "-t", str(self._leader), "-a", "/bin/sh", "-c", command],
            capture_output=True, text=True, timeout=timeout, check=False, env={"PATH": os.environ["PATH"], "HOME": "/root"},
        )  # fmt: skip
        if check and done.returncode:
            raise AssertionError(f"{command}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout + done.stderr

    def shown(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.run(f"systemctl show -P {name} {shlex.quote(unit)}").strip()

    def log(self, unit: str) -> str:
        """What a unit has said."""
        return self.run(f"journalctl --no-pager -o cat -u {shlex.quote(unit)}")


@contextmanager
def booted(directory: Path) -> Iterator[Booted]:
    """Boot it; ended, with all that runs in it, by its own word, else by its id."""
    root = directory / "root"
    made = subprocess.run(
        ["/bin/sh", "-ec", f"""
            mkdir -p {directory} && mount -t tmpfs -o mode=755 batchq-systemd {directory}
            mkdir {directory}/upper {directory}/work {root}
            mount -t overlay -o lowerdir=/,upperdir={directory}/upper,workdir={directory}/work batchq-systemd {root}
        """], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    machine = None
    try:
        with (directory / "boot").open("w") as told:
            machine = subprocess.Popen(
                ["systemd-nspawn", "-q", "-D", str(root), "--boot", "--register=no", "--keep-unit", "--private-network",
                 "--link-journal=no", "--console=pipe", "--machine=batchq-test", "systemd.unit=multi-user.target"],
                env={"PATH": os.environ["PATH"], "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1", "SYSTEMD_NSPAWN_LOCK": "0"},
                stdin=subprocess.DEVNULL, stdout=told, stderr=subprocess.STDOUT,
            )  # fmt: skip
        found = Booted(_leader_of(machine), root)
        _wait_until_it_runs(found)
        yield found
        with suppress(AssertionError, subprocess.TimeoutExpired):
            found.run("systemctl poweroff", timeout=30)
    finally:
        if machine is not None:
            _end(machine)
        subprocess.run(["umount", "-l", str(root)], check=False)
        subprocess.run(["umount", "-l", str(directory)], check=False)
        shutil.rmtree(directory, ignore_errors=True)
        for cgroup in CGROUPS:
            for name in ("payload", "supervisor"):
                with suppress(OSError):
                    (Path(cgroup) / name).rmdir()


def _leader_of(machine: subprocess.Popen[bytes]) -> int:
    """The id of the first process in it."""
    children = Path(f"/proc/{machine.pid}/task/{machine.pid}/children")
    end = time.monotonic() + READY_SECONDS
    while time.monotonic() < end:
        assert machine.poll() is None, "systemd-nspawn has ended"
        if found := children.read_text().split():
            return int(found[-1])
        time.sleep(0.05)
    raise AssertionError("systemd-nspawn has started nothing")


def _wait_until_it_runs(machine: Booted) -> None:
    end = time.monotonic() + READY_SECONDS
    while time.monotonic() < end:
        said = machine.run("systemctl is-system-running", check=False)
        if said.strip() in {"running", "degraded"}:
            return
        time.sleep(0.2)
    raise AssertionError(f"it does not come up: {said}")


def _end(machine: subprocess.Popen[bytes]) -> None:
    with suppress(subprocess.TimeoutExpired):
        machine.wait(30)
    if machine.poll() is None:
        machine.terminate()
        with suppress(subprocess.TimeoutExpired):
            machine.wait(10)
    if machine.poll() is None:
        machine.kill()
        machine.wait()
