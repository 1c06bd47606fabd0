"""An input that is read in two passes: a file, or a stream that is copied to one first."""

from __future__ import annotations

import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from batchq.errors import BadInput
from batchq.formats import BadRow, ReadOptions, Row, read_rows


@dataclass(frozen=True, slots=True)
class Source:
    """An input that can be read more than once: `path` is it, or a copy of the stream that it was.

    `is_items` says that it came from a caller's own list, whose items messages count from 0.
    """

    path: Path
    name: str
    options: ReadOptions
    is_copy: bool = False
    first_signature: tuple[int, ...] = ()
    is_items: bool = False

    def place(self, line: int) -> str:
        """Return what messages call the place of a row: `file:line`, or `list[index]`."""
        return f"{self.name}[{line - 1}]" if self.is_items else f"{self.name}:{line}"

    @property
    def origin(self) -> str | None:
        """The absolute path of the file; None for a stream, which is gone when it is read."""
        return None if self.is_copy else str(self.path.absolute())

    def signed(self) -> Self:
        """Return the source with the file's state of now, to notice a change."""
        return replace(self, first_signature=self.signature())

    def signature(self) -> tuple[int, ...]:
        """Return what changes when somebody writes to the file."""
        try:
            found = self.path.stat()
        except OSError:
            return ()
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns

    def read(self) -> Iterator[Row | BadRow]:
        """Yield all rows, from the first."""
        return read_rows(self.path, self.options, name=self.name)

    def changed(self) -> BadInput:
        """Return the error for a file that is not what it was."""
        return BadInput(f"{self.name} changed while it was being read: let its writer finish, then run this again")


@contextmanager
def open_source(path: Path | None, options: ReadOptions) -> Iterator[Source]:
    """Make an input readable twice; None is standard input, read as JSON Lines unless told otherwise."""
    if path is not None and not _is_stream(path):
        yield Source(path, str(path), options).signed()
        return
    if path is None and options.input_format is None:
        options = replace(options, input_format="jsonl")
    name = "standard input" if path is None else str(path)
    with tempfile.TemporaryDirectory(prefix="batchq-") as directory:
        spool = Path(directory, "input" + (path.suffix if path else ""))
        with spool.open("wb") as copy:
            if path is None:
                shutil.copyfileobj(sys.stdin.buffer, copy)
            else:
                with path.open("rb") as stream:
                    shutil.copyfileobj(stream, copy)
        yield Source(spool, name, options, is_copy=True).signed()


def _is_stream(path: Path) -> bool:
    """Whether a path can be read only once: a pipe, or what the shell makes of <(command)."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False  # the reader says what is wrong with it
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
