"""Standard output as a file of bytes."""

from __future__ import annotations

import sys

from batchq.errors import OutputFailed


class Stdout:
    """Standard output, whose failed writes say so, and whose readers wait for no buffer."""

    def write(self, data: bytes, /) -> None:
        """Write all of it."""
        try:
            sys.stdout.flush()
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputFailed.to("to standard output", error) from error
