"""What others say in this process: the libraries beneath, a worker's own code, Python itself."""

from __future__ import annotations

import logging
import re
import sys
import threading
import warnings
from typing import TextIO

from structlog.typing import EventDict

from batchq.concealing import without_keys
from batchq.log import events
from batchq.log.attempts import call_fields
from batchq.log.writing import OWN_LOGGER, get_logger
from batchq.stacks import class_of, stack_of

# What these tell below a warning is for who works on them, and holds requests and answers.
LIBRARIES = (
    "aiohttp", "aiosqlite", "alembic", "anyio", "asyncio", "asyncpg", "genai_prices", "grpc", "httpcore", "httpcore2",
    "httpx", "httpx2", "openai", "opentelemetry", "psycopg", "pydantic_ai", "requests", "sqlalchemy", "urllib3",
)  # fmt: skip
_LONGEST = 2_000
# A key is taken out whole before anything is cut; of more than this nobody would see the beginning.
_LOOKED_AT = 10 * _LONGEST
_QUOTED = re.compile(
    r"""(?:(?<!\w)|(?<=\b[bru])|(?<=\br[b]))(["'])(?:\\.|(?!\1).)*(?:\1|$)""", re.DOTALL | re.IGNORECASE
)


def write_what_others_say(level: str) -> None:
    """Make events of what is logged by others, of warnings, and of what ends a thread.

    What is below info is left out, whatever `level` is: it is where libraries tell what they send and get.
    """
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _Handler)]:
        root.removeHandler(handler)
    root.addHandler(_Handler())
    root.setLevel(max(logging.INFO, logging.getLevelNamesMapping()[level.upper()]))
    for name in LIBRARIES:
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.showwarning = _tell_warning
    threading.excepthook = _tell_end_of_thread
    sys.unraisablehook = _tell_unraisable


def make_alike(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Make of what a worker's own code logs with structlog an event like all others.

    It gets the call that it belongs to, and for an exception its places instead of its words. Of an event of
    batchq's, fields without a value are left out.
    """
    if isinstance(event["event"], str) and event["event"] in events.EVENTS:
        return {name: value for name, value in event.items() if value is not None}
    told = event.pop("exc_info", None)
    raised = told if isinstance(told, BaseException) else sys.exc_info()[1] if told else None
    return {**call_fields(), **({} if raised is None else _error_fields(raised)), **event}


class _Handler(logging.Handler):
    """Writes records as events of the log, in its format."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one; what is batchq's own comes here only where somebody has undone the set-up of structlog."""
        if record.name == OWN_LOGGER:
            return
        # Whatever somebody has set its level to meanwhile, as OPENAI_LOG does.
        if _of_a_library(record.name) and record.levelno < logging.WARNING:
            return
        try:
            message = record.getMessage()
        except Exception as error:  # noqa: BLE001 - its arguments don't fit it, and may be anything
            message = f"a record that can't be read: {type(error).__name__} at {record.pathname}:{record.lineno}"
        if _of_a_library(record.name):
            message = _without_quotes(message)
        fields: dict[str, object] = {"logger": record.name, "message": _shown(message)}
        raised = record.exc_info[1] if record.exc_info else None
        if raised is not None:
            fields |= _error_fields(raised)
        level = max(logging.DEBUG, min(record.levelno // 10 * 10, logging.CRITICAL))  # levels may have been made up
        get_logger().log(level, events.PYTHON_LOGGED, **call_fields(), **fields)


def _shown(message: str) -> str:
    return without_keys(message[:_LOOKED_AT])[:_LONGEST]


def _of_a_library(name: str) -> bool:
    return name.partition(".")[0] in LIBRARIES


def _without_quotes(message: str) -> str:
    """Leave out of a library's message what it quotes: asyncio, say, tells of a task with the words of its error."""
    return _QUOTED.sub("'…'", message.partition("\n")[0])


def _error_fields(error: BaseException) -> dict[str, object]:
    return {"error": class_of(error), "stack": stack_of(error)}


def _tell_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,  # noqa: ARG001 - the signature is Python's
    line: str | None = None,  # noqa: ARG001
) -> None:
    text = _shown(_without_quotes(str(message)))
    place = f"{filename}:{lineno}"
    get_logger().warning(events.PYTHON_WARNED, **call_fields(), category=category.__name__, place=place, message=text)


def _tell_end_of_thread(ended: threading.ExceptHookArgs) -> None:
    if ended.exc_value is not None and not isinstance(ended.exc_value, SystemExit):
        name = "" if ended.thread is None else ended.thread.name
        get_logger().error(events.PYTHON_RAISED, thread=name, **_error_fields(ended.exc_value))


def _tell_unraisable(raised: sys.UnraisableHookArgs) -> None:
    if raised.exc_value is not None:
        get_logger().error(
            events.PYTHON_RAISED, thread=threading.current_thread().name, **_error_fields(raised.exc_value)
        )
