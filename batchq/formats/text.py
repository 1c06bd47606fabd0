"""Reads plain text: a prompt per line, exactly as it stands."""

from __future__ import annotations

from collections.abc import Iterable

from batchq.formats.rows import BadRow, Row, RowError, Rows, bad_utf8, bare, checked_prompt


def read_text(lines: Iterable[bytes]) -> Rows:
    """Yield a row per line."""
    found = False
    for line, raw in enumerate(lines, 1):
        content = bare(raw)
        row: Row | BadRow
        try:
            row = Row(line, None, checked_prompt(content.decode(), "prompt"))
            found = True
        except UnicodeDecodeError as error:
            found = True
            row = BadRow(line, bad_utf8(error), content)
        except RowError as error:
            row = BadRow(line, str(error), content)
        yield row
    return found
