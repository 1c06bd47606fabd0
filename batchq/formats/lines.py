"""The lines of a text file, each of bounded length, and what shows that a file is no UTF-8 text."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import chain
from typing import BinaryIO, Final

from batchq.errors import UsageError
from batchq.formats.rows import RowError

# Room for a prompt of 100 MB. Each byte may become six characters of JSON, and SQLite holds a billion in a row.
MAX_LINE_BYTES: Final = 128 << 20
TOO_LONG: Final = f"the line has more than {MAX_LINE_BYTES >> 20} MiB: is this one prompt?"

_PIECE: Final = 1 << 20
_BOM: Final = b"\xef\xbb\xbf"
_UTF_16_OR_32: Final = "it looks like UTF-16 or UTF-32: save it as UTF-8 (`iconv -f UTF-16 -t UTF-8`)"
_COMPRESSED: Final = "it is compressed: unpack it first, or pipe it in (`zcat FILE | batchq enqueue - --batch NAME`)"
_OTHER_KINDS: Final = {
    b"\xff\xfe": _UTF_16_OR_32,
    b"\xfe\xff": _UTF_16_OR_32,
    b"\x00\x00\xfe\xff": _UTF_16_OR_32,
    b"\x1f\x8b": _COMPRESSED,
    b"BZh": _COMPRESSED,
    b"\x28\xb5\x2f\xfd": _COMPRESSED,
    b"\xfd7zXZ\x00": _COMPRESSED,
    b"PK\x03\x04": "it is a zip archive, as spreadsheets are: unpack it, or save the sheet as CSV (UTF-8)",
    b"PAR1": "it is Parquet: pass --input-format parquet",
}


def text_lines(file: BinaryIO, name: str) -> Iterator[bytes]:
    """Return the lines of a file without its byte order mark; one that is too long is cut behind MAX_LINE_BYTES.

    Raises UsageError, with what to do, for a file whose first bytes show that it is no UTF-8 text.
    """
    lines = _cut_lines(file)
    first = next(lines, b"")
    _refuse_other_kinds(first, name)
    return chain((first.removeprefix(_BOM),), lines) if first else lines


def bounded(raw: bytes) -> bytes:
    """Return a line. Raises RowError for one that was cut."""
    if len(raw) > MAX_LINE_BYTES:
        raise RowError(TOO_LONG)
    return raw


def _refuse_other_kinds(start: bytes, name: str) -> None:
    """Raise UsageError where a file begins as no UTF-8 text does."""
    for mark, problem in _OTHER_KINDS.items():
        if start.startswith(mark):
            raise UsageError(f"{name} is not UTF-8 text: {problem}")
    # Without a mark, every other byte of letters is NUL in UTF-16; in UTF-32 three of four.
    if len(start) >= 4 and (start[0] == start[2] == 0 != start[3] or start[1] == start[3] == 0 != start[0]):
        raise UsageError(f"{name} is not UTF-8 text: {_UTF_16_OR_32}")


def _cut_lines(file: BinaryIO) -> Iterator[bytes]:
    for raw in iter(partial(file.readline, MAX_LINE_BYTES + 1), b""):
        yield raw
        if len(raw) > MAX_LINE_BYTES and not raw.endswith(b"\n"):
            while (rest := file.readline(_PIECE)) and not rest.endswith(b"\n"):
                pass
