"""A file that grows, and may be half-written already."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from batchq.errors import OutputFailed, UsageError
from batchq.formats import AtomicFile, is_stream
from batchq.formats.rendering import BinaryFile


@contextmanager
def growing_file(path: Path, name: str, *, start_over: bool) -> Iterator[BinaryFile]:
    """Open a file for the rows of the batch `name`, or a stream, which can't be gone on with."""
    if is_stream(path) or _is_special(path):
        with AtomicFile(path) as stream:
            yield _Stream(stream)
        return
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise UsageError(f"can't write {path}: {error.strerror or error}") from error
    with os.fdopen(descriptor, "r+b") as file:
        growing = _GrowingFile(file, path, name, start_over=start_over)
        try:
            yield growing
        except BaseException:
            with suppress(OSError):
                file.flush()
            raise
        growing.finish()


def _is_special(path: Path) -> bool:
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


class _Stream:
    """A pipe or terminal, whose readers wait for no buffer."""

    def __init__(self, file: io.TextIOWrapper) -> None:
        self._file = file

    def write(self, data: bytes, /) -> None:
        self._file.buffer.write(data)
        self._file.flush()


class _GrowingFile:
    """A regular file: what is there is compared with what should be, and what is missing is added.

    So a row that was torn when its writer died is completed, and nothing is written twice.
    """

    def __init__(self, file: io.BufferedRandom, path: Path, name: str, *, start_over: bool) -> None:
        self._file = file
        self._path = path
        self._name = name
        self._unread = 0 if start_over else os.fstat(file.fileno()).st_size
        self._lines = 0
        if start_over:
            file.truncate(0)

    def write(self, data: bytes, /) -> None:
        there = self._file.read(min(len(data), self._unread)) if self._unread else b""
        if not data.startswith(there):
            raise self._differs(data, there)
        self._unread -= len(there)
        self._lines += there.count(b"\n")
        missing = data[len(there) :]
        if missing:
            self._append(missing)

    def finish(self) -> None:
        """Bring it to the disk. Raises UsageError where it holds more than it should."""
        if self._unread:
            raise self._refusal(f"goes on after the last row of {self._name}, at line {self._lines + 1:,}")
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise OutputFailed.to(self._path, error) from error

    def _append(self, data: bytes) -> None:
        try:
            self._file.write(data)
            self._file.flush()
        except OSError as error:
            raise OutputFailed.to(self._path, error) from error

    def _differs(self, data: bytes, there: bytes) -> UsageError:
        place = next(index for index, (ours, theirs) in enumerate(zip(data, there, strict=False)) if ours != theirs)
        line = self._lines + data[:place].count(b"\n") + 1
        return self._refusal(f"differs from the results of {self._name} at line {line:,}")

    def _refusal(self, what: str) -> UsageError:
        return UsageError(
            f"{self._path} {what}: it holds something else, or jobs have run again since; name another file, or"
            " start over with --force"
        )
