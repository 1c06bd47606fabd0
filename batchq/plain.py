"""What a worker returns as JSON: also dataclasses, Pydantic instances, numbers of numpy, times and sets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from uuid import UUID

from batchq.jobs import Json

_TEXTS = (date, time, Decimal, UUID, PurePath)


def plain(value: object) -> Json:
    """Return a value as JSON holds it. Raises TypeError for what has no such form, such as bytes."""
    if isinstance(value, Enum):
        return plain(value.value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, _TEXTS):
        return value.isoformat() if isinstance(value, date | time) else str(value)
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Mapping):
        found = {key if isinstance(key, str) else str(plain(key)): plain(item) for key, item in value.items()}
        if len(found) < len(value):
            raise ValueError("two keys of a mapping are the same text")
        return found
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in _in_order(value)]
    return _of_library(value)


def _in_order(value: Iterable[object]) -> Iterable[object]:
    return sorted(value, key=repr) if isinstance(value, set | frozenset) else value


def _of_library(value: object) -> Json:
    """Ask an instance of Pydantic, a scalar or an array of numpy, neither of which is imported for that."""
    dump = getattr(value, "model_dump", None)
    if dump is not None:
        dumped: Json = dump(mode="json", by_alias=True)
        return dumped
    listed = getattr(value, "tolist", None)  # a scalar of numpy has it, too
    if listed is not None:
        return plain(listed())
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")
