"""Tells file systems that several machines share: SQLite's log needs memory that all who have the file open share."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePath

_MOUNTS = Path("/proc/self/mounts")
# Served by another machine, or by all of a cluster.
_NETWORK = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "coda", "ncpfs", "davfs", "ceph", "lustre", "gpfs", "beegfs",
     "glusterfs", "gfs2", "ocfs2", "pvfs2", "orangefs", "acfs"}
)  # fmt: skip
_NETWORK_FUSE = frozenset(
    {"sshfs", "rclone", "s3fs", "gcsfuse", "goofys", "mount-s3", "blobfuse", "blobfuse2", "glusterfs", "ceph",
     "ceph-fuse", "davfs", "davfs2", "curlftpfs", "smbnetfs", "juicefs", "beegfs", "mfs", "moosefs", "seaweedfs"}
)  # fmt: skip
# Lent to a virtual machine or a container by its host: a process there may have the file open, and shares no memory.
_LENT = frozenset({"9p", "drvfs", "virtiofs", "vboxsf", "vmhgfs", "prl_fs", "fakeowner", "grpcfuse", "osxfs"})
_LENT_FUSE = frozenset({"vmhgfs-fuse", "grpcfuse", "osxfs"})


def network_file_system(path: Path) -> str | None:
    """Return the kind of the shared file system that a file is on or would be, None for any other."""
    if str(path).startswith("\\\\"):
        return "network share"
    # Another system is not asked.
    return None if (mounts := read_mounts()) is None else shared_kind(PurePath(os.path.realpath(path)), mounts)


def read_mounts() -> str | None:
    """Return the table of what is mounted; None where the system has none that can be read."""
    try:
        return _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return None


def shared_kind(path: PurePath, mounts: str) -> str | None:
    """Return the kind of the shared file system that holds an absolute path, by a table like /proc/self/mounts."""
    where, kind = mount_of(path, mounts)
    family, _, name = kind.partition(".")
    if kind in _NETWORK or (family == "fuse" and name in _NETWORK_FUSE):
        return kind
    # What a whole machine is built upon is its own, wherever it comes from.
    lent = kind in _LENT or (family == "fuse" and name in _LENT_FUSE)
    return kind if lent and where != "/" else None


def mount_of(path: PurePath, mounts: str) -> tuple[str, str]:
    """Return where the file system that holds an absolute path is mounted, and its kind; both empty if unknown."""
    where, kind = "", ""
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        point = _unescaped(fields[1])
        # Of two at the same place the later one hides the other.
        if len(point) >= len(where) and path.is_relative_to(point):
            where, kind = point, fields[2]
    return where, kind


def _unescaped(field: str) -> str:
    """Return a field of the table with its blanks: they are written as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), field)
