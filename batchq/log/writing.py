"""How events are written: structlog on stderr, lines for people on a terminal, JSON elsewhere."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Final, TextIO, cast

import structlog
from structlog.typing import EventDict, Processor

from batchq.concealing import conceal
from batchq.escapes import clean

Logger = structlog.typing.FilteringBoundLogger

OWN_LOGGER = "batchq"
_library = logging.getLogger(OWN_LOGGER)
_library.addHandler(logging.NullHandler())


def get_logger() -> Logger:
    """Return the logger of batchq: structlog's as the application has set it up, else `logging`'s, which is quiet."""
    if structlog.is_configured():
        return cast("Logger", structlog.get_logger(OWN_LOGGER))
    return cast(
        "Logger",
        structlog.wrap_logger(
            _library,
            processors=[
                structlog.stdlib.filter_by_level,
                _without_keys,
                structlog.processors.KeyValueRenderer(key_order=["event"]),
            ],
            wrapper_class=structlog.stdlib.BoundLogger,
        ),
    )


def get_answering_logger() -> Logger:
    """Return a logger for what somebody has asked for: it writes however little is logged."""
    if not structlog.is_configured():
        return get_logger()
    wrapper = structlog.make_filtering_bound_logger(logging.NOTSET)
    return cast("Logger", structlog.wrap_logger(structlog.PrintLogger(file=_STDERR), wrapper_class=wrapper))


def write_events(level: str, *, as_json: bool, alike: Processor) -> None:
    """Have events of a level and above written to stderr, as JSON or as lines for people.

    `alike` makes of a foreign event one like all others.
    """
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            alike,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
            _without_keys,
            *([_in_order, structlog.processors.JSONRenderer()] if as_json else [_cleaned, _stack_below, _for_people()]),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(file=_STDERR),
        cache_logger_on_first_use=False,
    )


def _for_people() -> Processor:
    colours = shown_to_a_person() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return structlog.dev.ConsoleRenderer(
        colors=colours, timestamp_key="ts", sort_keys=False, exception_formatter=structlog.dev.plain_traceback
    )


def shown_to_a_person() -> bool:
    """Whether stderr is a terminal."""
    try:
        return sys.stderr is not None and sys.stderr.isatty()
    except ValueError:  # closed
        return False


def _without_keys(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Take the keys of this process out of an event, whoever has put them in."""
    return {name: _each_text(value, conceal) for name, value in event.items()}


def _cleaned(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Write out what would move a terminal's cursor; JSON has escapes of its own."""
    return {name: _each_text(value, clean) for name, value in event.items()}


def _stack_below(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Write a stack as lines below its event."""
    stack = event.pop("stack", None)
    if stack is None:
        return event
    places = stack if isinstance(stack, list) else [stack]
    return {**event, "stack": "\n".join(f"    {place}" for place in places)}


def _in_order(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Put first what every event has."""
    return {"ts": event.pop("ts"), "level": event.pop("level"), "event": event.pop("event"), **event}


def _each_text(value: object, change: Callable[[str], str]) -> object:
    match value:
        case None | int() | float():
            return value
        case str():
            return change(value)
        case list() | tuple():
            return [_each_text(item, change) for item in value]
        case dict():
            return {change(str(name)): _each_text(item, change) for name, item in value.items()}
        case _:  # as it would be written
            return change(repr(value))


class Stderr:
    """Whatever stderr is at the moment; a full disk or a reader that left costs log lines, not calls."""

    def write(self, text: str) -> int:
        """Write what can be written."""
        with suppress(OSError, ValueError, AttributeError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush what can be flushed."""
        with suppress(OSError, ValueError, AttributeError):
            sys.stderr.flush()


_STDERR: Final = cast("TextIO", Stderr())
