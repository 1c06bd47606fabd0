"""Writes the bad rows of an input into a file of their own, as they stand in it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, pairwise, zip_longest
from pathlib import Path

from batchq.errors import UsageError
from batchq.formats.atomic import AtomicFile, is_stream

_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class BadLines:
    """The bad rows of the input at `path`, which messages call `name`.

    `starts` yields the line on which each row starts, `bad` those of the bad ones, both in order.
    """

    path: Path
    name: str
    starts: Callable[[], Iterator[int]]
    bad: Callable[[], Iterator[int]]

    def write(self, target: Path) -> None:
        """Write them to `target`, behind the input's header if it has one; replace nothing but the same rows."""
        if target.is_file() and target.stat().st_size and not is_stream(target):
            if not self._are_in(target):
                raise UsageError(
                    f"{target} exists, and holds something else than the bad rows of {self.name}:"
                    " remove it, or name another file for them"
                )
            return
        with AtomicFile(target) as file:
            for line in self._lines():
                file.buffer.write(line)

    def _are_in(self, target: Path) -> bool:
        """Whether an earlier run has written just this."""
        try:
            with target.open("rb") as file:
                return all(ours == theirs for ours, theirs in zip_longest(self._lines(), file))
        except OSError as error:
            raise UsageError(f"can't read {target}: {error.strerror or error}") from error

    def _lines(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            number = 0
            for start, end in self._spans():
                for raw in file:
                    number += 1
                    if number >= start and not (start == 1 and raw.isspace()):
                        line = raw.removeprefix(_BOM) if number == 1 else raw
                        yield line if line.endswith(b"\n") else line + b"\n"
                    if number + 1 == end:
                        break

    def _spans(self) -> Iterator[tuple[int, int]]:
        """Yield the first line of each bad row and the line behind its last; first those of the header."""
        bad = self.bad()
        next_bad = next(bad, None)
        for index, (start, end) in enumerate(pairwise(chain(self.starts(), (sys.maxsize,)))):
            if next_bad is None:
                return
            if index == 0 and start > 1:
                yield 1, start
            if start == next_bad:
                next_bad = next(bad, None)
                yield start, end
