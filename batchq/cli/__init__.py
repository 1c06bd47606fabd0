"""The command line: commands parse, call, print. Each is imported only when it is asked for."""

from __future__ import annotations

import sys

from batchq.cli.exits import keep_keys_from_crashes, open_missing_streams, run_command


def main() -> None:
    """Run `batchq` with the arguments of this process, and exit."""
    open_missing_streams()
    keep_keys_from_crashes()
    from batchq.cli.commands import batchq

    sys.exit(run_command(batchq, sys.argv[1:]))
