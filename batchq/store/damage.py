"""Rows that something else than batchq has changed: what is wrong with them, before anybody counts on them.

SQLite keeps any value in any column, and no database looks into JSON that is kept as text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from types import NoneType
from typing import Any, Final

from sqlalchemy import RowMapping

from batchq.errors import DamagedRow
from batchq.jobs import DEFAULT_CALL_TIMEOUT_MS, DEFAULT_MAX_ATTEMPTS, Batch, Json

_SHOWN = 40
_TIME: Final[frozenset[object]] = frozenset({int, NoneType})
_CHANGED = "something else than batchq has changed the database"

# The columns of a batch that are counted with, and what stands in for a value that is no number.
_NUMBERS: Final[Mapping[str, int]] = {
    "priority": 0,
    "max_attempts": DEFAULT_MAX_ATTEMPTS,
    "call_timeout_ms": DEFAULT_CALL_TIMEOUT_MS,
    "size": 0,
    "created_at": 0,
    "enqueue_until": 0,
}
_NUMBERS_OR_NULL: Final = ("budget", "sealed_at")
_TEXTS: Final = ("name", "worker", "endpoint", "model")


@lru_cache(maxsize=1024)
def settings_of(text: str) -> tuple[dict[str, Json], str | None]:
    """Return the settings of a batch, or none and why they can't be read."""
    try:
        found: Json = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        return {}, f"its settings can't be read: {error}"
    if not isinstance(found, dict):
        return {}, "its settings are not a JSON object"
    for name in ("params", "schema"):
        if not isinstance(found.get(name, {}), dict):
            return {}, f"`{name}` of its settings is not a JSON object"
    return found, None


def sound_values(row: RowMapping) -> tuple[dict[str, Any], str | None]:
    """Return the columns of a batch that must be numbers or text, each as one, and which was none."""
    values = {name: row[name] for name in (*_NUMBERS, *_NUMBERS_OR_NULL, *_TEXTS)}
    odd = [name for name, default in _NUMBERS.items() if type(values[name]) is not type(default)]
    odd += [name for name in _NUMBERS_OR_NULL if values[name] is not None and not isinstance(values[name], int)]
    odd += [name for name in _TEXTS if not isinstance(values[name], str)]
    if not odd:
        return values, None
    fault = f"its {odd[0]} is {_shown(values[odd[0]])}"
    for name in odd:
        values[name] = as_text(values[name]) if name in _TEXTS else _NUMBERS.get(name)
    return values, fault


def object_of(text: object) -> dict[str, Any]:
    """Return the JSON object that a text is, or an empty one: what is only told has no say in what runs."""
    try:
        found = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def as_text(value: object) -> str:
    """Return a text; of what is none, how Python writes it."""
    return value if isinstance(value, str) else _shown(value)


def refuse_odd(place: str, values: Iterable[tuple[str, object, frozenset[object]]]) -> None:
    """Raise DamagedRow for the first value, given as (column, value, types), that is of none of its types."""
    for column, value, types in values:
        if type(value) not in types:
            raise DamagedRow(f"{place} can't be read: its {column} is {_shown(value)}; {_CHANGED}")


@contextmanager
def naming(batch: Batch) -> Iterator[None]:
    """Say which batch a damaged row is of."""
    try:
        yield
    except DamagedRow as error:
        raise DamagedRow(f"{batch.name}: {error}") from None


def refuse_odd_times(name: str, *times: object) -> None:
    """Raise DamagedRow where a job of the batch waits for a time that is none: it would wait for ever."""
    refuse_odd(f"{name}: a job", (("claimable_at", time, _TIME) for time in times))


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
