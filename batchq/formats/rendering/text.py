"""Plain text: line i answers prompt i."""

from __future__ import annotations

import re

from batchq.formats.rendering.layout import Entry
from batchq.formats.rendering.values import fit_for_utf8, plain
from batchq.jobs import JobState

_ESCAPES = {"\\": "\\\\", "\r": "\\r", "\n": "\\n"}
_ESCAPED = re.compile(r"[\\\r\n]")


class TextRenderer:
    """Writes each answer on a line of its own, and an empty line for a job that has none.

    In a string `\\`, CR and LF are escaped as `\\\\`, `\\r` and `\\n`; any other result is JSON as it is. Half
    surrogate pairs become U+FFFD.
    """

    def head(self) -> bytes:
        """Return nothing: the format has no header."""
        return b""

    def row(self, entry: Entry) -> bytes:
        """Return a line."""
        result = entry.result
        if result.state is not JobState.DONE or result.result is None:
            return b"\n"
        text = plain(result.result) or ""
        if result.result.startswith('"'):
            text = _ESCAPED.sub(lambda found: _ESCAPES[found[0]], fit_for_utf8(text))
        return f"{text}\n".encode()
