"""What it takes to have workers as services: files with their texts, and what systemd is told then."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from batchq.errors import BatchqError
from batchq.service import quoting
from batchq.service.manager import TARGET, TEMPLATE, Manager
from batchq.service.shipped import shipped

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Wanted:
    """How the workers are to run: the command, and what is said of the queue.

    `db` may hold a password, which only a service of the user's own keeps to itself.
    """

    workers: int
    command: Sequence[str]
    db: str | None = field(default=None, repr=False)
    file: Path | None = None
    directory: Path | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """Files to write and commands to run, in their order."""

    files: dict[Path, str] = field(repr=False)
    commands: list[list[str]]


def plan_installation(manager: Manager, wanted: Wanted) -> Plan:
    """Return what to write and to run so that just as many workers run as are wanted."""
    kind = "user/" if manager.user else ""
    texts = [shipped(kind + TEMPLATE), shipped(kind + TARGET), _drop_in(wanted)]
    if not manager.user:
        texts += [shipped("sysusers.conf"), shipped("tmpfiles.conf")]
    files = dict(zip(manager.files(), texts, strict=True))
    names = [f"batchq-worker@{number}.service" for number in range(1, wanted.workers + 1)]
    surplus = [name for name in manager.enabled_workers() if name not in names]
    commands = [] if manager.user else [["systemd-sysusers"], ["systemd-tmpfiles", "--create"]]
    for command, made in zip(commands, manager.files()[3:], strict=False):
        command.append(str(made))
    commands.append(manager.systemctl("daemon-reload"))
    if surplus:
        commands.append(manager.systemctl("disable", "--now", *surplus))
    commands.append(manager.systemctl("enable", "--now", TARGET, *names))
    return Plan(files, commands)


def install(manager: Manager, plan: Plan, tell: Tell) -> bool:
    """Carry it out; return whether a file was changed that was there before."""
    changed = False
    for path, text in plan.files.items():
        before = _read(path)
        if before == text:
            tell(f"{path} is as it should be")
            continue
        changed |= before is not None
        _write(path, text, for_all=not manager.user)
        tell(f"wrote {path}")
    for command in plan.commands:
        tell(" ".join(command))
        manager.run(command)
    return changed


def plan_removal(manager: Manager) -> Plan:
    """Return what to take away, and what to run before; the files have no texts."""
    files = {path: "" for path in manager.files() if path.exists()}
    names = manager.enabled_workers()
    if not files and not names:
        return Plan({}, [])
    stop = manager.systemctl("stop", TARGET, "batchq-worker@*.service")
    return Plan(files, [stop, manager.systemctl("disable", TARGET, *names)])


def uninstall(manager: Manager, plan: Plan, tell: Tell) -> None:
    """Stop the workers, which drains them, and take the files away; what others have put beside them stays."""
    for command in plan.commands:
        tell(" ".join(command))
        manager.run(command)
    for path in plan.files:
        _remove(path)
        tell(f"removed {path}")
    if plan.commands:
        with suppress(OSError):  # somebody's own drop-in is in it
            manager.drop_in.parent.rmdir()
        manager.run(manager.systemctl("daemon-reload"))
        with suppress(BatchqError):  # there is none that failed
            manager.run(manager.systemctl("reset-failed", "batchq-worker@*.service"))


def _drop_in(wanted: Wanted) -> str:
    lines = [
        "# Written by `batchq service install`, and anew by the next. Your own settings: systemctl edit batchq-worker@",
        "[Service]",
        "ExecStart=",
        f"ExecStart={quoting.command(wanted.command)}",
    ]
    if wanted.directory is not None:
        lines.append(f"WorkingDirectory={quoting.path(str(wanted.directory))}")
    if wanted.db is not None:
        lines.append(f"Environment={quoting.quoted(f'BATCHQ_DB={wanted.db}')}")
    if wanted.file is not None and wanted.directory is None:
        lines.append(f"ReadWritePaths={quoting.quoted(str(wanted.file.parent))}")
    return "\n".join(lines) + "\n"


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise BatchqError(f"can't read {path}: {getattr(error, 'strerror', None) or error}") from None


def _write(path: Path, text: str, *, for_all: bool) -> None:
    """Put a whole file into its place. A user's own is for nobody else: it may name a database with its password."""
    draft = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            draft.unlink()
        file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(file, "w", encoding="utf-8") as opened:  # noqa: PTH123 - a descriptor
            opened.write(text)
        if for_all:
            draft.chmod(0o644)
        draft.replace(path)
    except OSError as error:
        raise BatchqError(f"can't write {path}: {error.strerror or error}") from None


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise BatchqError(f"can't remove {path}: {error.strerror or error}") from None
