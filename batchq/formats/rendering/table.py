"""CSV and TSV: a header, then a record per job, quoted as RFC 4180 says, with `\\n` as the line end."""

from __future__ import annotations

import json
import re

from batchq.formats.rendering.flat import flat_columns
from batchq.formats.rendering.layout import Entry, Layout
from batchq.formats.rendering.values import dollars, encode, fit_for_utf8
from batchq.jobs import Json

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
_NUMBER = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")


class TableRenderer:
    """Writes each job as a record; half surrogate pairs become U+FFFD.

    An empty text is `""`, what is not there is nothing at all.
    """

    def __init__(self, layout: Layout, delimiter: str) -> None:
        """Know which columns there are."""
        self._delimiter = delimiter
        self._guards = layout.guard_formulas
        self._special = re.compile(f'["\r\n{delimiter}]')
        self._own = flat_columns(layout)
        self._given = tuple(column.name for column in layout.columns or ())

    def head(self) -> bytes:
        """Return the header."""
        return self._record([*self._given, *(column.name for column in self._own)])

    def row(self, entry: Entry) -> bytes:
        """Return a record."""
        given: list[str | None] = []
        if entry.fields is not None:
            fields: dict[str, Json] = json.loads(entry.fields)
            given = [_cell(fields.get(name)) for name in self._given]
        own = [
            dollars(value) if column.kind == "money" and isinstance(value, int) else _cell(value)
            for column in self._own
            for value in (column.value(entry.result),)
        ]
        return self._record(given + own)

    def _record(self, cells: list[str | None]) -> bytes:
        if self._guards:
            cells = [None if cell is None else _guarded(cell) for cell in cells]
        text = self._delimiter.join(map(self._quoted, cells))
        return f"{fit_for_utf8(text)}\n".encode()

    def _quoted(self, cell: str | None) -> str:
        if cell is None:
            return ""
        if cell and self._special.search(cell) is None:
            return cell
        return '"' + cell.replace('"', '""') + '"'


def _guarded(cell: str) -> str:
    """Return a cell with an apostrophe before what a spreadsheet program would take for a formula.

    Which beginnings those are: owasp.org/www-community/attacks/CSV_Injection. Numbers stay numbers.
    """
    return f"'{cell}" if cell.startswith(_FORMULA) and _NUMBER.fullmatch(cell) is None else cell


def _cell(value: Json) -> str | None:
    """Return a text as it is, and any other value as JSON."""
    return value if value is None or isinstance(value, str) else encode(value)
