"""Where a SQLite file is, and who may use it. Looks at names and modes only: nothing is opened.

A process that opens and closes a database's file past SQLite drops the locks that SQLite holds for it.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path, PurePath

from batchq.database import mount_of, network_file_system, read_mounts
from batchq.doctor.finding import Finding, error, ok, warning

_MEMORY = {"tmpfs", "ramfs"}
_OF_A_CONTAINER = {"overlay", "aufs"}
_LEAST_BYTES, _FEW_BYTES = 64 * 1024**2, 1024**3
_FEW_FILES = 100
_MB = 1024**2


def check_place(path: Path, *, network_allowed: bool) -> Iterator[Finding]:
    """Look at the file system that holds a file, and at the room in it."""
    directory = _directory(path)
    kind = network_file_system(path)
    if kind is not None:
        told = f"{directory} is on {kind}, a file system that machines share, which SQLite does not work on"
        advice = "use a local disk, or PostgreSQL"
        yield (
            warning("place", f"{told}; allowed by --allow-network-fs", advice)
            if network_allowed
            else error("place", told, advice)
        )
    else:
        yield _judge_kind(directory)
    yield from _judge_room(directory)


def check_permissions(path: Path) -> Iterator[Finding]:
    """Look whether this user may use a file and what belongs to it, and whether others may who should not."""
    if os.name != "posix":
        return
    real = Path(os.path.realpath(path))
    wrong = [*_shut_to_us(real), *_open_to_others(real)]
    yield from wrong
    if not wrong:
        found = real.stat()
        yield ok("permissions", f"{path} has mode {stat.S_IMODE(found.st_mode):04o}, and this user may write it")


def _judge_kind(directory: Path) -> Finding:
    mounts = read_mounts()
    where, kind = ("", "") if mounts is None else mount_of(PurePath(os.path.realpath(directory)), mounts)
    if kind in _MEMORY:
        told = f"{directory} is on {kind}: the queue is in memory, and gone when this machine restarts"
        return warning("place", told, "name a file on a disk with --db")
    if kind in _OF_A_CONTAINER and where == "/":
        told = f"{directory} is in a container's own layer: the queue goes away with the container"
        return warning("place", told, "put it on a volume that all its workers share")
    return ok("place", f"{directory} is on a local file system" + (f" ({kind})" if kind else ""))


def _judge_room(directory: Path) -> Iterator[Finding]:
    free = shutil.disk_usage(directory).free
    told = f"{free / _MB:,.0f} MB are free in {directory}"
    advice = "make room: `batchq purge --older-than 30d` deletes old batches, whose space new ones then use"
    if free < _LEAST_BYTES:
        yield error("disk", told, advice)
    elif free < _FEW_BYTES:
        yield warning("disk", told, advice)
    else:
        yield ok("disk", told)
    if hasattr(os, "statvfs"):
        files = os.statvfs(directory)
        if files.f_files and files.f_favail < _FEW_FILES:
            yield warning("disk", f"{directory} has room for {files.f_favail:,} more files only", "delete some files")


def _shut_to_us(path: Path) -> Iterator[Finding]:
    directory = path.parent
    if not _may(directory, os.W_OK | os.X_OK):
        yield error(
            "permissions",
            f"this user can't write to {directory}, where SQLite makes -wal and -shm",
            f"{_owner(directory)}: add this user to its group, and let that write (chmod g+w)",
        )
    for file in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
        if file.exists() and not _may(file, os.R_OK | os.W_OK):
            yield error(
                "permissions",
                f"this user can't {'write' if _may(file, os.R_OK) else 'read'} {file}",
                f"{_owner(file)}: run as its owner, or let its group in (chmod 660; BATCHQ_DB_MODE=0660 for new ones)",
            )


def _open_to_others(path: Path) -> Iterator[Finding]:
    for file in (path, Path(f"{path}-wal")):
        if file.exists() and (mode := file.stat().st_mode) & stat.S_IRWXO:
            right = "change" if mode & stat.S_IWOTH else "read"
            yield warning(
                "permissions", f"every user of this machine can {right} the prompts and answers in {file}",
                f"chmod o-rwx {file}",
            )  # fmt: skip
    mode = path.parent.stat().st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        yield warning(
            "permissions", f"every user of this machine can replace the files in {path.parent}",
            f"chmod o-w {path.parent}",
        )  # fmt: skip


def _may(path: Path, rights: int) -> bool:
    return os.access(path, rights, effective_ids=os.access in os.supports_effective_ids)


def _owner(path: Path) -> str:
    found = path.stat()
    try:
        import grp
        import pwd

        names = pwd.getpwuid(found.st_uid).pw_name, grp.getgrgid(found.st_gid).gr_name
    except (ImportError, KeyError):
        names = str(found.st_uid), str(found.st_gid)
    return f"it belongs to {names[0]}:{names[1]}, mode {stat.S_IMODE(found.st_mode):04o}"


def _directory(path: Path) -> Path:
    return Path(os.path.realpath(path)).parent
