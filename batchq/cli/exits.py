"""How a command ends: exceptions become a message on stderr and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress

import click

from batchq.cli.text import clean, one_line
from batchq.errors import BadInput, BatchqError

EXIT_FAILURE = 1
EXIT_SOME_FAILED = 3
EXIT_INTERRUPTED = 130
DEBUG_VARIABLE = "BATCHQ_DEBUG"


def run_command(command: click.Command, arguments: Sequence[str]) -> int:
    """Run a command and return its exit code: what its callback returns, or what its exception says."""
    try:
        code = command.main(args=list(arguments), prog_name="batchq", standalone_mode=False)
        sys.stdout.flush()
    except BaseException as error:
        if os.environ.get(DEBUG_VARIABLE) and not isinstance(error, click.ClickException | SystemExit):
            raise
        return _code_of(error)
    return code if isinstance(code, int) else 0


def say(message: str) -> None:
    """Print a message for people on stderr, free of control characters."""
    with suppress(OSError):
        click.echo(clean(message), err=True)


def _code_of(error: BaseException) -> int:
    match error:
        case click.ClickException():
            error.show()
            return error.exit_code
        case BatchqError():
            _explain(error)
            return error.exit_code
        case KeyboardInterrupt() | click.Abort():
            say("batchq: interrupted")
            return EXIT_INTERRUPTED
        case BrokenPipeError():
            _forget_stdout()
            return EXIT_FAILURE
        case SystemExit():
            return error.code if isinstance(error.code, int) else EXIT_FAILURE
        case _:
            what = f"{type(error).__name__}: {one_line(str(error))}"
            say(f"batchq: unexpected {what}; run with {DEBUG_VARIABLE}=1 for the traceback")
            return EXIT_FAILURE


def _explain(error: BatchqError) -> None:
    if isinstance(error, BadInput):
        for example in error.examples:
            say(example)
        if error.count > len(error.examples):
            say(f"… and {error.count - len(error.examples):,} more")
    say(f"batchq: {error}")


def _forget_stdout() -> None:
    """Leave Python nothing to flush into the pipe that its reader has closed."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
