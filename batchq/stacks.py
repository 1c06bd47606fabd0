"""Where code is, as places in it: a stack without the values in it, an exception without its words."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from traceback import walk_tb
from types import CodeType, FrameType

_DEEPEST = 20
_LONGEST_NAME = 100
_LONGEST_CHAIN = 8


def class_of(error: BaseException) -> str:
    """Return the name of an exception's class, as far as it is of use: it may have been made up."""
    return type(error).__name__[:_LONGEST_NAME]


def stack_of(error: BaseException) -> list[str]:
    """Return the places that an exception passed, and those of its causes, the outermost first.

    Its message is left out, and so are the lines of code: the one may quote a prompt, the other may hold one.
    """
    told: list[str] = []
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen and len(seen) < _LONGEST_CHAIN:
        seen.add(id(cause))
        if told:
            told.append(f"after {class_of(cause)}")
        told += [_place(frame.f_code, line) for frame, line in walk_tb(cause.__traceback__)][-_DEEPEST:]
        if isinstance(cause, BaseExceptionGroup):
            told.append(f"holds {', '.join(sorted({class_of(part) for part in cause.exceptions}))}")
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return told


def stacks_of_tasks() -> list[tuple[tuple[str, ...], int]]:
    """Return where the tasks of this event loop wait, and how many wait there, the most first."""
    current = asyncio.current_task()
    waiting = (task for task in asyncio.all_tasks() if task is not current)
    return Counter(tuple(_places(task.get_coro())) for task in waiting).most_common()


def _places(awaited: object) -> Iterator[str]:
    """Yield the places of a coroutine and of what it awaits, down to what is no code of Python's."""
    for _ in range(_DEEPEST):
        frame, inner = _inside(awaited)
        if frame is None:
            return
        yield _place(frame.f_code, frame.f_lineno)
        awaited = inner


def _inside(awaited: object) -> tuple[FrameType | None, object]:
    for kind, inner in (("cr", "await"), ("ag", "await"), ("gi", "yieldfrom")):
        with suppress(Exception):  # somebody's awaitable, which may make up its attributes
            frame = getattr(awaited, f"{kind}_frame", None)
            if isinstance(frame, FrameType):
                return frame, getattr(awaited, f"{kind}_{inner}", None)
    return None, None


def _place(code: CodeType, line: int | None) -> str:
    return f"{code.co_filename}:{line} {code.co_qualname}"
