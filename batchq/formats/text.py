"""Reads plain text: a prompt per line, exactly as it stands."""

from __future__ import annotations

from collections.abc import Iterable

from batchq.formats.lines import bounded
from batchq.formats.prompts import Prompts
from batchq.formats.rows import PROMPT_COLUMN, BadRow, ReadOptions, Row, RowError, Rows, bad_utf8, bare, checked_prompt


def read_text(lines: Iterable[bytes], options: ReadOptions, prompts: Prompts) -> Rows:
    """Yield a row per line; under a template its one field is `prompt`."""
    found = False
    for line, raw in enumerate(lines, 1):
        content = bare(raw)
        if not options.wants(line):
            found = found or bool(content.strip())
            continue
        row: Row | BadRow
        try:
            bounded(raw)
            prompt = checked_prompt(content.decode(), PROMPT_COLUMN)
            found = True
            payload = prompt if prompts.is_plain else prompts.payload({PROMPT_COLUMN: prompt}, PROMPT_COLUMN)
            row = Row(line, None, payload)
        except UnicodeDecodeError as error:
            found = True
            row = BadRow(line, bad_utf8(error), content)
        except RowError as error:
            found = found or bool(content.strip())
            row = BadRow(line, str(error), content)
        yield row
    return found
