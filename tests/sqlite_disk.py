"""The disk under this process's SQLite, as it is seen from outside: each write, sync and deletion, and faults at any of them.

It stands in the place of SQLite's own way to the system (a VFS, sqlite.org/vfs.html) in the very library that
`sqlite3` uses, and hands everything on: locks, shared memory, the log and its checkpoints are the real ones.
"""

from __future__ import annotations

import _sqlite3
import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import CFUNCTYPE, POINTER, Structure, c_char_p, c_int, c_int64, c_void_p
from dataclasses import dataclass, field
from pathlib import Path

import pytest

_OPEN_CREATE = 0x4
# The lock of whoever folds in the log (wal.c), and how it is taken (sqlite3.h).
_CHECKPOINT_LOCK, _TAKE_EXCLUSIVE = 1, 2 | 8
# Where a journal is created, the first sync of it also syncs the directory (os_unix.c).
_JOURNALS = 0x800 | 0x80000


class _Methods(Structure):
    """sqlite3_io_methods."""

    _fields_ = [
        ("version", c_int),
        *((name, c_void_p) for name in (
            "close", "read", "write", "truncate", "sync", "file_size", "lock", "unlock", "check_reserved_lock",
            "file_control", "sector_size", "device_characteristics", "shm_map", "shm_lock", "shm_barrier", "shm_unmap",
            "fetch", "unfetch",
        )),
    ]  # fmt: skip


class _Vfs(Structure):
    """sqlite3_vfs."""

    _fields_ = [
        ("version", c_int), ("file_size", c_int), ("longest_path", c_int), ("next", c_void_p), ("name", c_char_p),
        ("app_data", c_void_p), ("open", c_void_p), ("delete", c_void_p),
        *((name, c_void_p) for name in (
            "access", "full_path", "dl_open", "dl_error", "dl_sym", "dl_close", "randomness", "sleep", "time",
            "last_error", "time_64", "set_call", "get_call", "next_call",
        )),
    ]  # fmt: skip


_OPEN = CFUNCTYPE(c_int, c_void_p, c_void_p, c_void_p, c_int, POINTER(c_int))
_DELETE = CFUNCTYPE(c_int, c_void_p, c_char_p, c_int)
_SIGNATURES = {
    "close": CFUNCTYPE(c_int, c_void_p),
    "read": CFUNCTYPE(c_int, c_void_p, c_void_p, c_int, c_int64),
    "write": CFUNCTYPE(c_int, c_void_p, c_void_p, c_int, c_int64),
    "truncate": CFUNCTYPE(c_int, c_void_p, c_int64),
    "sync": CFUNCTYPE(c_int, c_void_p, c_int),
    "shm_lock": CFUNCTYPE(c_int, c_void_p, c_int, c_int, c_int),
    "unfetch": CFUNCTYPE(c_int, c_void_p, c_int64, c_void_p),
}


@dataclass(frozen=True, slots=True)
class Event:
    """What was done to a file: `created`, `write`, `truncate`, `sync` (with its directory or not), `delete`."""

    kind: str
    name: str = ""
    offset: int = 0
    data: bytes = b""
    directory: bool = False
    said: object = None


@dataclass
class Disk:
    """What happened to the files of a directory, in order; `fault` may refuse what is about to happen.

    `fault(kind, name)` returns an SQLite error code, or 0. Of a write that is refused the first half is written. It is
    also told of a `checkpoint` that is about to begin, and of `unfetch`: that one has found the log changed since its
    connection looked, and has not acted upon it yet.
    """

    directory: Path
    events: list[Event] = field(default_factory=list)
    fault: Callable[[str, str], int] = lambda _kind, _name: 0
    # Files that somebody else has created are new to the disk when SQLite first opens them.
    known: set[str] = field(default_factory=set)

    def acknowledge(self, said: object) -> None:
        """Take down what was reported at this moment."""
        self.events.append(Event("acknowledged", said=said))

    def _ask(self, kind: str, name: str) -> int:
        return self.fault(kind, name) if name else 0


@contextmanager
def watched_disk(directory: Path) -> Iterator[Disk]:
    """Watch what SQLite does in `directory`; connections must be opened and closed within."""
    library = _library()
    disk = Disk(Path(os.path.realpath(directory)), known={file.name for file in directory.iterdir()})
    original = library.sqlite3_vfs_find(None)
    hooks = _Hooks(disk, original)
    library.sqlite3_vfs_register(ctypes.byref(hooks.vfs), 1)
    try:
        yield disk
    finally:
        library.sqlite3_vfs_register(original, 1)
        library.sqlite3_vfs_unregister(ctypes.byref(hooks.vfs))
        _kept.append(hooks)  # SQLite must never call what is no more


_kept: list[_Hooks] = []


def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(_sqlite3.__file__)
        library.sqlite3_vfs_find.restype = c_void_p
    except AttributeError:
        pytest.skip("this Python holds a SQLite of its own that nothing else may call: run it with one that links it")
    library.sqlite3_vfs_find.argtypes = [c_char_p]
    library.sqlite3_vfs_register.argtypes = [c_void_p, c_int]
    library.sqlite3_vfs_unregister.argtypes = [c_void_p]
    return library


class _Hooks:
    """A copy of the system's VFS that tells a disk of what it does."""

    def __init__(self, disk: Disk, original: int) -> None:
        self._disk = disk
        self._names: dict[int, str] = {}
        self._fresh: set[int] = set()
        self._patched: dict[int, _Methods] = {}
        self._real: dict[int, dict[str, Callable[..., int]]] = {}
        self._of: dict[int, int] = {}
        self.vfs = _Vfs.from_buffer_copy(ctypes.string_at(original, ctypes.sizeof(_Vfs)))
        self._real_open, self._real_delete = _OPEN(self.vfs.open), _DELETE(self.vfs.delete)
        self._kept = [_OPEN(self._open), _DELETE(self._delete)]
        self.vfs.name = b"watched"
        self.vfs.open, self.vfs.delete = (ctypes.cast(hook, c_void_p).value for hook in self._kept)
        self._hooks = {name: kind(getattr(self, f"_{name}")) for name, kind in _SIGNATURES.items()}

    def _open(self, vfs: int, name: int | None, file: int, flags: int, out: object) -> int:
        path = Path(os.fsdecode(ctypes.string_at(name))) if name else None
        ours = path is not None and path.parent == self._disk.directory
        if ours and (code := self._disk._ask("open", path.name)):
            ctypes.cast(file, POINTER(c_void_p))[0] = None  # no methods: nothing to close
            return code
        code = self._real_open(vfs, name, file, flags, out)
        methods = ctypes.cast(file, POINTER(c_void_p))
        if code == 0 and ours and methods[0]:
            if path.name not in self._disk.known:
                self._disk.known.add(path.name)
                self._disk.events.append(Event("created", path.name))
                if flags & _OPEN_CREATE and flags & _JOURNALS:
                    self._fresh.add(file)
            self._names[file], self._of[file] = path.name, methods[0]
            methods[0] = self._patch(methods[0])
        return code

    def _patch(self, address: int) -> int:
        if address not in self._patched:
            copy = _Methods.from_buffer_copy(ctypes.string_at(address, ctypes.sizeof(_Methods)))
            self._real[address] = {name: kind(getattr(copy, name)) for name, kind in _SIGNATURES.items()}
            for name, hook in self._hooks.items():
                setattr(copy, name, ctypes.cast(hook, c_void_p).value)
            self._patched[address] = copy
        return ctypes.addressof(self._patched[address])

    def _call(self, name: str, file: int, *arguments: object) -> int:
        return self._real[self._of[file]][name](file, *arguments)

    def _close(self, file: int) -> int:
        self._names[file], code = "", self._call("close", file)
        return code

    def _read(self, file: int, buffer: int, amount: int, offset: int) -> int:
        return self._disk._ask("read", self._names[file]) or self._call("read", file, buffer, amount, offset)

    def _write(self, file: int, buffer: int, amount: int, offset: int) -> int:
        name = self._names[file]
        refused = self._disk._ask("write", name)
        written = amount // 2 if refused else amount
        self._disk.events.append(Event("write", name, offset, ctypes.string_at(buffer, written)))
        return self._call("write", file, buffer, written, offset) or refused

    def _truncate(self, file: int, size: int) -> int:
        name = self._names[file]
        if refused := self._disk._ask("truncate", name):
            return refused
        self._disk.events.append(Event("truncate", name, size))
        return self._call("truncate", file, size)

    def _sync(self, file: int, flags: int) -> int:
        name = self._names[file]
        if refused := self._disk._ask("sync", name):
            return refused
        code = self._call("sync", file, flags)
        self._disk.events.append(Event("sync", name, directory=file in self._fresh))
        self._fresh.discard(file)
        return code

    def _shm_lock(self, file: int, offset: int, count: int, flags: int) -> int:
        if (offset, count, flags) == (_CHECKPOINT_LOCK, 1, _TAKE_EXCLUSIVE):
            self._disk._ask("checkpoint", self._names[file])
        return self._call("shm_lock", file, offset, count, flags)

    def _unfetch(self, file: int, offset: int, page: int | None) -> int:
        self._disk._ask("unfetch", self._names[file])
        return self._call("unfetch", file, offset, page)

    def _delete(self, vfs: int, name: bytes, directory: int) -> int:
        path = Path(os.fsdecode(name))
        if path.parent == self._disk.directory:
            if refused := self._disk._ask("delete", path.name):
                return refused
            if path.name in self._disk.known:
                self._disk.known.discard(path.name)
                self._disk.events.append(Event("delete", path.name, directory=bool(directory)))
        return self._real_delete(vfs, name, directory)
