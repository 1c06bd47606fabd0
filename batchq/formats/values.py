"""What Python's, Arrow's and numpy's values are in JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from math import isfinite
from typing import Final, TypeAlias, cast
from uuid import UUID

from batchq.jobs import Json


class Unknown:
    """Stands for a value that JSON has nothing for, e.g. bytes."""


UNKNOWN: Final = Unknown()
Converted: TypeAlias = "Json | Unknown"


def json_row(row: Mapping[str, object]) -> dict[str, Json]:
    """Return a row, or any object, as JSON has it; what JSON can't hold (bytes, …) is left out."""
    converted = ((str(name), json_value(value)) for name, value in row.items())
    return {name: value for name, value in converted if not isinstance(value, Unknown)}


def json_value(value: object) -> Converted:
    """Return a value as JSON has it, or UNKNOWN.

    Dates and times become ISO 8601 text, decimals and UUIDs text, numpy's numbers Python's, and what stands for
    a missing value (NaN, NaT, NA, an infinity) null.
    """
    if value is None or type(value) in {str, bool, int}:
        return cast("Json", value)
    if isinstance(value, float):
        return float(value) if isfinite(value) else None
    if _is_missing(value):
        return None
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, date | time):  # a datetime is a date
        return value.isoformat()
    if isinstance(value, Decimal | UUID | timedelta):
        return str(value)
    if isinstance(value, Mapping):
        return cast("Json", json_row(value))
    if isinstance(value, list | tuple | set | frozenset):
        return _list(value)
    return _from_numpy(value)


def _list(values: Iterable[object]) -> Json:
    converted = map(json_value, values)
    return [None if isinstance(value, Unknown) else value for value in converted]


def _is_missing(value: object) -> bool:
    kind = type(value).__name__
    return kind in {"NaTType", "NAType"} or (isinstance(value, Decimal) and value.is_nan())


def _from_numpy(value: object) -> Converted:
    """Convert numpy's arrays and scalars, told by what they offer: numpy need not be installed."""
    to_list = getattr(value, "tolist", None)
    if isinstance(value, bytes) or to_list is None or not hasattr(value, "dtype"):
        return UNKNOWN
    if str(value.dtype).startswith(("datetime64", "timedelta64")):
        return _from_numpy_time(value)
    plain: object = to_list()
    return UNKNOWN if hasattr(plain, "dtype") else json_value(plain)


def _from_numpy_time(value: object) -> Converted:
    """Nanoseconds become bare integers by `tolist`, so that the text is taken."""
    if isinstance(value, Iterable):
        return _list(value)
    text = str(value)
    return None if text == "NaT" else text
