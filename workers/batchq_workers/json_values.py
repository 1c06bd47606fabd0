"""Values out of JSON that a stranger wrote: each reader returns its own type, or nothing, and never raises."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import cast

from batchq.worker import Json

Object = dict[str, Json]

_LARGEST_NUMBER = 1e15
_LARGEST_COUNT = 10**9


def decode(text: bytes | str) -> Json:
    """Return the decoded JSON; None for what is no JSON, which then can't be told from `null`."""
    try:
        return cast("Json", json.loads(text))
    except (ValueError, RecursionError):
        return None


def object_of(value: Json) -> Object:
    """Return an object as it is, and an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def list_of(value: Json) -> list[Json]:
    """Return a list as it is, and an empty one for anything else."""
    return value if isinstance(value, list) else []


def text_of(value: Json) -> str:
    """Return a string as it is and a number as text; "" for anything else."""
    if isinstance(value, str):
        return value
    return "" if isinstance(value, bool | dict | list) or value is None else str(value)


def number_of(value: Json) -> float | None:
    """Return a number from 0 up to 10^15, also one given as text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if 0 <= number < _LARGEST_NUMBER else None


def count_of(value: Json) -> int | None:
    """Return a whole number from 0 up to 10^9, more than any call has tokens; None for anything else."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST_COUNT:
        return value
    return None


def lower_names(headers: Mapping[str, Json]) -> dict[str, str]:
    """Return headers, or an object that copies them, by their names in lower case."""
    return {name.lower(): text_of(value) for name, value in headers.items()}
