"""How long a provider asks to be left alone, from any of the places where it may say so."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime

from batchq_workers.error_body import ErrorBody
from batchq_workers.json_values import lower_names, number_of, object_of

# Statuses that are about a limit: elsewhere the reset of a limit is not what is waited for.
_LIMITED = frozenset({402, 429, 503, 529})

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"(\d+(?:\.\d+)?) ?(ms|s(?:ec(?:ond)?s?)?|m(?:in(?:ute)?s?)?|h(?:ours?)?|d(?:ays?)?)(?![a-z])")
_WHOLE = re.compile(rf"(?:{_PART.pattern} ?)+")
_SPOKEN = re.compile(rf"(?:try again|retry) (?:in|after) ((?:{_PART.pattern} ?)+)", re.IGNORECASE)
_SPOKEN_WITHIN = 4_000
_LONGEST = 1e9


def seconds_to_wait(status: int, headers: Mapping[str, str], error: ErrorBody) -> float | None:
    """Return the seconds to wait, from the most precise place that names them; None if none does.

    In this order: `retry-after-ms`, `retry-after` (seconds, a duration or a date), OpenRouter's
    `availability.retry_after`, `x-ratelimit-reset` (epoch milliseconds there), "try again in 240ms" in the
    message, OpenAI's `x-ratelimit-reset-requests` and `-tokens`. OpenRouter copies headers into
    `error.metadata.headers`.
    """
    known = lower_names(object_of(error.metadata.get("headers"))) | lower_names(headers)
    return next((seconds for seconds in _readings(status, known, error) if seconds is not None), None)


def _readings(status: int, headers: Mapping[str, str], error: ErrorBody) -> Iterator[float | None]:
    milliseconds = number_of(headers.get("retry-after-ms"))
    yield None if milliseconds is None else milliseconds / 1000
    yield _seconds_or_date(headers.get("retry-after", ""))
    yield number_of(error.availability.get("retry_after"))
    if status in _LIMITED:
        yield _until_reset(headers.get("x-ratelimit-reset", ""))
    spoken = _SPOKEN.search(error.message[:_SPOKEN_WITHIN])
    yield _duration(spoken.group(1)) if spoken else None
    if status == 429:
        yield _until_refilled(headers)


def _seconds_or_date(text: str) -> float | None:
    seconds = number_of(text)
    if seconds is None:
        seconds = _duration(text)
    return _until_date(text) if seconds is None else seconds


def _until_date(text: str) -> float | None:
    try:
        moment = parsedate_to_datetime(text)
        # A date in -0000 is read as one without a zone, which timestamp() would take for local time.
        seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() - time.time()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return max(0.0, seconds)


def _until_reset(text: str) -> float | None:
    """Read a reset time: epoch in ms (OpenRouter) or s, plain seconds (Azure), or a duration (OpenAI)."""
    number = number_of(text)
    if number is None:
        return _duration(text)
    if number > 1e9:
        return max(0.0, (number / 1000 if number > 1e12 else number) - time.time())
    return number


def _until_refilled(headers: Mapping[str, str]) -> float | None:
    """Return when what has run out is there again; if nothing says that it has, the sooner of the two.

    The headers give the time until a limit is quite unused, so this is more than need be.
    """
    known: list[float] = []
    spent: list[float] = []
    for unit in ("requests", "tokens"):
        seconds = _until_reset(headers.get(f"x-ratelimit-reset-{unit}", ""))
        if seconds is not None:
            known.append(seconds)
            if number_of(headers.get(f"x-ratelimit-remaining-{unit}")) == 0:
                spent.append(seconds)
    return max(spent) if spent else min(known, default=None)


def _duration(text: str) -> float | None:
    """Read a duration as Go writes it: `6m0s`, `12ms`, `1h2m3.5s`; also `6 seconds`, as Azure says."""
    text = text.strip().lower()
    if not _WHOLE.fullmatch(text):
        return None
    seconds = sum(float(number) * _UNITS[unit if unit == "ms" else unit[0]] for number, unit in _PART.findall(text))
    return seconds if seconds < _LONGEST else None
