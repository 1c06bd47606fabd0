"""An input that is read in two passes: a file, or a stream that is copied to one first."""

from __future__ import annotations

import heapq
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Self

from batchq.errors import BadInput, UsageError
from batchq.formats import BadRow, ReadOptions, Row, format_of, read_rows, row_lines


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rows of an input are wanted: the first `limit` good ones, or `sample` ones at random; else all.

    What lies behind the last good row of a limit is not read, and may be bad. A sample is drawn from all rows,
    the same for the same number of rows and the same `sample`, and a larger one holds the smaller; a bad row
    among them counts as one of them and is bad input, the others are not looked at.
    """

    limit: int | None = None
    sample: int | None = None

    def __post_init__(self) -> None:
        """Raise UsageError for what can't be selected."""
        if self.limit is not None and self.sample is not None:
            raise UsageError("--limit and --sample both say which rows are wanted: leave one out")
        for flag, count in (("--limit", self.limit), ("--sample", self.sample)):
            if count is not None and count < 1:
                raise UsageError(f"{flag} is the number of rows that are wanted, at least 1; it is {count}")


ALL_ROWS = Selection()


@dataclass(frozen=True, slots=True)
class Source:
    """An input that can be read more than once: `path` is it, or a copy of the stream that it was.

    `is_items` says that it came from a caller's own list, whose items messages count from 0. `last_line` is
    that of the last row that is wanted.
    """

    path: Path
    name: str
    options: ReadOptions
    is_copy: bool = False
    first_signature: tuple[int, ...] = ()
    is_items: bool = False
    last_line: int | None = None

    def place(self, line: int) -> str:
        """Return what messages call the place of a row: `file:line`, or `list[index]`."""
        return f"{self.name}[{line - 1}]" if self.is_items else f"{self.name}:{line}"

    @property
    def origin(self) -> str | None:
        """The absolute path of the file; None for a stream, which is gone when read, and where no text holds it."""
        path = str(self.path.absolute())
        storable = path.encode(errors="replace") == os.fsencode(path)  # a name on a disk may be any bytes
        return path if storable and not self.is_copy else None

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
        """Yield the wanted rows, from the first."""
        rows = read_rows(self.path, self.options, name=self.name)
        return rows if self.last_line is None else _up_to(self.last_line, rows)

    def row_lines(self) -> Iterator[int]:
        """Yield the line on which each row starts, wanted or not, good or bad."""
        return row_lines(self.path, self.options, name=self.name)

    def up_to(self, line: int) -> Self:
        """Return the source without the rows behind that line."""
        return replace(self, last_line=line)

    def sampled(self, count: int) -> Self:
        """Return the source with as many of its rows, drawn by lot."""
        only = frozenset(heapq.nsmallest(count, self.row_lines(), key=_lot))
        return replace(self, options=replace(self.options, only=only))

    def changed(self) -> BadInput:
        """Return the error for a file that is not what it was."""
        return BadInput(f"{self.name} changed while it was being read: let its writer finish, then run this again")


@contextmanager
def open_source(path: Path | None, options: ReadOptions, sample: int | None = None) -> Iterator[Source]:
    """Make an input, or a sample of its rows, readable twice.

    None is standard input, read as JSON Lines unless told otherwise. Images of a stream are looked for in the
    current directory.
    """
    with _readable_twice(path, options) as source:
        yield source if sample is None else source.sampled(sample)


@contextmanager
def _readable_twice(path: Path | None, options: ReadOptions) -> Iterator[Source]:
    if path is not None and not _is_stream(path):
        yield Source(path, str(path), options).signed()
        return
    options = replace(options, image_root=options.image_root or Path())
    if path is None and options.input_format is None:
        options = replace(options, input_format="jsonl")
    if path is not None:
        format_of(path, options)  # raises before the stream is read to its end for nothing
    name = "standard input" if path is None else str(path)
    with tempfile.TemporaryDirectory(prefix="batchq-") as directory:
        spool = Path(directory, "input" + (path.suffix if path else ""))
        try:
            _spool(path, spool)
        except OSError as error:
            reason = error.strerror or error
            raise UsageError(f"{name} can't be copied to {directory}, where it is read from: {reason}") from error
        yield Source(spool, name, options, is_copy=True).signed()


def _spool(path: Path | None, spool: Path) -> None:
    with spool.open("wb") as copy:
        if path is None:
            shutil.copyfileobj(sys.stdin.buffer, copy)
            return
        with path.open("rb") as stream:
            shutil.copyfileobj(stream, copy)


def _is_stream(path: Path) -> bool:
    """Whether a path can be read only once: a pipe, or what the shell makes of <(command)."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False  # the reader says what is wrong with it
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _up_to(last_line: int, rows: Iterator[Row | BadRow]) -> Iterator[Row | BadRow]:
    for row in rows:
        yield row
        if row.line == last_line:
            return


def _lot(line: int) -> bytes:
    """Return what decides which lines are drawn: evenly spread, and the same each time."""
    return blake2b(b"%d" % line, digest_size=8).digest()
