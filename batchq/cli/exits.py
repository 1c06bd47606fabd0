"""How a command ends: exceptions become a message on stderr and an exit code."""

from __future__ import annotations

import errno
import io
import os
import re
import sys
import traceback
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import TextIO, cast

import click

from batchq.concealing import without_keys
from batchq.display.messages import be_quiet, complain
from batchq.display.text import one_line
from batchq.errors import BadInput, BatchqError, OutputFailed, UsageError
from batchq.exit_codes import ExitCode

EXIT_FAILURE = ExitCode.FAILURE.value
EXIT_SOME_FAILED = ExitCode.SOME_FAILED.value
EXIT_INTERRUPTED = ExitCode.INTERRUPTED.value
DEBUG_VARIABLE = "BATCHQ_DEBUG"
# A shell asks by this what a word may become; see `completion`.
COMPLETE_VARIABLE = "_BATCHQ_COMPLETE"
# Of bad rows with one reason so many are told.
_SAME_REASONS = 3
_PLACE = re.compile(r"^.*?:\d+: ")
# What a system says of a name that no file can have.
_NO_NAMES = frozenset({errno.ENAMETOOLONG, errno.ELOOP})


def run_command(command: click.Command, arguments: Sequence[str]) -> int:
    """Run a command and return its exit code: what its callback returns, or what its exception says."""
    be_quiet(False)
    if COMPLETE_VARIABLE in os.environ:
        return _complete(command)
    try:
        code = command.main(args=list(arguments), prog_name="batchq", standalone_mode=False, color=_wants_color())
        sys.stdout.flush()
    except BaseException as error:
        if os.environ.get(DEBUG_VARIABLE) and not isinstance(error, click.ClickException | SystemExit):
            raise
        return _code_of(error)
    return code if isinstance(code, int) else 0


def _complete(command: click.Command) -> int:
    """Answer a shell that completes a word, as click does; what fails, fails without a word into the line."""
    sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
    try:
        command.main(args=[], prog_name="batchq", complete_var=COMPLETE_VARIABLE)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 0
    except Exception:  # noqa: BLE001 - whatever it is, it belongs on no command line
        return EXIT_FAILURE


def _wants_color() -> bool | None:
    """Whether colours go where nobody is known to see them; None where that is as usual."""
    if os.environ.get("NO_COLOR"):
        return False
    return True if os.environ.get("FORCE_COLOR") else None


def open_missing_streams() -> None:
    """Put something in the place of the standard streams that the caller has closed.

    Else the next file that is opened would take the place, and be written to as if it were the stream.
    What is missing on stderr or stdin is as nothing; data that can't be written to stdout is an error.
    """
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: PTH123, SIM115
    if sys.stdout is None:
        unwritable = os.open(os.devnull, os.O_RDONLY)
        sys.stdout = cast("TextIO", open(unwritable, "w", encoding="utf-8"))  # noqa: PTH123, SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115


def keep_keys_from_crashes() -> None:
    """Leave no key in what a crash leaves behind: a traceback, or the memory of the process in a core file."""
    sys.excepthook = _print_traceback
    with suppress(ImportError, OSError, ValueError):  # not on Windows
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def _print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    with suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(without_keys("".join(traceback.format_exception(kind, error, trace))))


def _code_of(error: BaseException) -> int:
    match error:
        case click.ClickException():
            told = io.StringIO()
            error.show(told)
            complain(told.getvalue().removesuffix("\n"))
            return error.exit_code
        case BatchqError():
            _explain(error)
            if isinstance(error, OutputFailed):
                _forget_stdout()
            return error.exit_code
        case KeyboardInterrupt() | click.Abort():
            complain("batchq: interrupted")
            return EXIT_INTERRUPTED
        case BrokenPipeError():
            _forget_stdout()
            return EXIT_FAILURE
        case SystemExit():
            return _code_of_exit(error)
        case OSError() if _is_of_stdout(error):
            return _code_of(OutputFailed.to("to standard output", error))
        case OSError() if error.errno in _NO_NAMES and error.filename is not None:
            return _code_of(UsageError(f"{one_line(str(error.filename), 80)} can't be a file: {error.strerror}"))
        case _:
            what = f"{type(error).__name__}: {one_line(without_keys(str(error)))}"
            complain(f"batchq: unexpected {what}; run with {DEBUG_VARIABLE}=1 for the traceback")
            return EXIT_FAILURE


def _code_of_exit(error: SystemExit) -> int:
    """Return the code of a `sys.exit`, as Python does: a text is what was wrong."""
    if error.code is None or isinstance(error.code, int):
        return error.code or 0
    complain(f"batchq: {one_line(without_keys(str(error.code)))}")
    return EXIT_FAILURE


def _explain(error: BatchqError) -> None:
    if isinstance(error, BadInput):
        shown = _different(error.examples)
        for example in shown:
            complain(example)
        if error.count > len(shown):
            complain(f"… and {error.count - len(shown):,} more")
    complain(f"batchq: {error}")


def _different(examples: Sequence[str]) -> list[str]:
    """Return examples without those that say the same of further lines: the whole file may have one mistake."""
    told = Counter[str]()
    shown = []
    for example in examples:
        reason = _PLACE.sub("", example)
        told[reason] += 1
        if told[reason] <= _SAME_REASONS:
            shown.append(example)
    return shown


def _is_of_stdout(error: OSError) -> bool:
    """Whether it was raised while data was printed: by `click.echo`, also for click's own --help, or above."""
    frames = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
    return click.echo.__code__ in frames or frames == [run_command.__code__]


def _forget_stdout() -> None:
    """Leave Python nothing to flush, at its end, into a stream that can't take it."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
