"""What takes the rows of an output, and writes them into a file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from batchq.formats.rendering.layout import Entry


class BinaryFile(Protocol):
    """What bytes can be written to."""

    def write(self, data: bytes, /) -> object:
        """Write them all."""
        ...


class Renderer(Protocol):
    """A format whose rows follow each other in the file, so that it can grow."""

    def head(self) -> bytes:
        """Return what stands before the first row."""
        ...

    def row(self, entry: Entry) -> bytes:
        """Return a job's row with its line end; nothing where the format has none for it."""
        ...


class Sheet(Protocol):
    """An output in the making."""

    def write(self, entries: Sequence[Entry]) -> int:
        """Write rows; return how many the format has for them."""
        ...

    def close(self) -> None:
        """Write what makes the file whole; the file itself stays open."""
        ...

    def abandon(self) -> None:
        """Write nothing any more."""
        ...


class RenderedSheet:
    """An output whose rows are written as they come."""

    def __init__(self, file: BinaryFile, renderer: Renderer) -> None:
        """Write the header."""
        self._file = file
        self._renderer = renderer
        if head := renderer.head():
            file.write(head)

    def write(self, entries: Sequence[Entry]) -> int:
        """Write rows; return how many the format has for them."""
        rows = [row for row in map(self._renderer.row, entries) if row]
        if rows:
            self._file.write(b"".join(rows))
        return len(rows)

    def close(self) -> None:
        """Do nothing: all is written."""

    def abandon(self) -> None:
        """Do nothing: nothing is kept back."""
