"""Files that appear whole under their names, or not at all."""

from __future__ import annotations

import io
import os
import re
import stat
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from batchq.errors import OutputFailed, UsageError

if TYPE_CHECKING:
    from typing_extensions import Buffer

_BUFFER = 1 << 18
_NAME_SHOWN = 48  # at four bytes each the temporary name stays below 255
_OPEN_STREAM = re.compile(r"/(?:dev|proc/self)/fd/(\d{1,6})")


def is_stream(path: Path) -> bool:
    """Whether a path names a stream that this process has open, like /dev/stdout."""
    return _open_stream(path) is not None


class AtomicFile:
    """A file that appears whole under its name when the `with` block ends well, and else not at all.

    Pipes, terminals and standard output are written directly.
    """

    def __init__(self, path: Path) -> None:
        """Name the target; nothing is opened before the `with` block."""
        self._path = path
        self._target = Path(os.path.realpath(path))
        self._temporary: Path | None = None
        self._writer: io.TextIOWrapper | None = None

    def check(self) -> None:
        """Raise UsageError if the file can't be written; leaves nothing behind."""
        if not is_stream(self._path) and (self._target.is_file() or not self._target.exists()):
            self.__enter__()
            self._discard()

    def __enter__(self) -> io.TextIOWrapper:
        """Open the temporary file; write text to what this returns, or bytes to its `buffer`."""
        try:
            descriptor = self._open()
        except OSError as error:
            raise UsageError(f"can't write {self._path}: {self._why(error)}") from error
        except BaseException:
            self._discard()
            raise
        raw = _Descriptor(descriptor, self._path)
        self._writer = io.TextIOWrapper(
            io.BufferedWriter(raw, _BUFFER), encoding="utf-8", newline="\n", write_through=True
        )
        return self._writer

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put the file in place, or remove what there is of it."""
        if kind is not None:
            self._discard()
            return
        try:
            self._commit()
        except BaseException:
            self._discard()
            raise

    def _open(self) -> int:
        stream = _open_stream(self._path)
        if stream is not None:
            # A duplicate keeps the offset, and the append mode of `>>`.
            return os.dup(stream)
        try:
            mode = self._target.stat().st_mode
        except FileNotFoundError:
            return self._open_temporary(0o666)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError
        if not stat.S_ISREG(mode):
            return os.open(self._target, os.O_WRONLY | os.O_CLOEXEC)
        if not os.access(self._target, os.W_OK):
            raise UsageError(f"can't write {self._path}: the file is read-only; choose another name")
        descriptor = self._open_temporary(mode & 0o700)
        with suppress(OSError):  # some file systems have no modes
            os.fchmod(descriptor, stat.S_IMODE(mode))
        return descriptor

    def _open_temporary(self, mode: int) -> int:
        name = f".{self._target.name[:_NAME_SHOWN]}.{os.urandom(6).hex()}.tmp"
        self._temporary = self._target.with_name(name)
        return os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)

    def _why(self, error: OSError) -> str:
        directory = self._target.parent
        if isinstance(error, IsADirectoryError):
            return "it is a directory; name a file in it"
        if isinstance(error, NotADirectoryError):
            return f"{directory} is not a directory"
        if isinstance(error, FileNotFoundError):
            if directory.is_dir():  # /proc has no room for files of ours
                return f"no file can be made in {directory}; name one elsewhere"
            return f"the directory {directory} does not exist; create it first"
        if isinstance(error, PermissionError):
            return f"this user may not create files in {directory}"
        return error.strerror or str(error)

    def prepare(self) -> None:
        """Bring all that was written to the disk, so that what is left to do can hardly fail."""
        if self._writer is None or self._writer.closed:
            return
        self._writer.flush()
        try:
            if self._temporary is not None:
                os.fsync(self._writer.fileno())
            self._writer.close()
        except OSError as error:
            raise OutputFailed.to(self._path, error) from error

    def _commit(self) -> None:
        self.prepare()
        if self._temporary is None:
            return
        try:
            self._temporary.replace(self._target)
        except OSError as error:
            raise OutputFailed.to(self._path, error) from error
        self._temporary = None
        with suppress(OSError):  # some file systems can't sync a directory
            _sync_directory(self._target.parent)

    def _discard(self) -> None:
        if self._writer is not None:
            with suppress(OSError, OutputFailed):
                self._writer.close()
        if self._temporary is not None:
            with suppress(OSError):
                self._temporary.unlink()


class _Descriptor(io.FileIO):
    """An open file whose failed writes name it."""

    def __init__(self, descriptor: int, path: Path) -> None:
        super().__init__(descriptor, "wb")
        self._path = path

    def write(self, data: Buffer, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputFailed.to(self._path, error) from error


def _open_stream(path: Path) -> int | None:
    name = str(path)
    if name in {"/dev/stdout", "/dev/stderr"}:
        return 1 if name.endswith("out") else 2
    match = _OPEN_STREAM.fullmatch(name)
    return int(match[1]) if match else None


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
