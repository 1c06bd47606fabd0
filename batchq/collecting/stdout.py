"""Standard output as a file of bytes; on a terminal, as text that can't move its cursor."""

from __future__ import annotations

import sys

from batchq.errors import OutputFailed
from batchq.escapes import clean


class Stdout:
    """Standard output, whose failed writes say so, and whose readers wait for no buffer.

    A file or a pipe gets the bytes as they are; what a person sees has its control characters written out.
    """

    def __init__(self) -> None:
        """Look who reads it."""
        self._is_terminal = sys.stdout.isatty()

    def write(self, data: bytes, /) -> None:
        """Write all of it."""
        try:
            sys.stdout.flush()
            sys.stdout.buffer.write(clean(data.decode(errors="replace")).encode() if self._is_terminal else data)
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputFailed.to("to standard output", error) from error
