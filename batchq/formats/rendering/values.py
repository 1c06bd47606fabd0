"""How results are spelled: the pieces that formats share."""

from __future__ import annotations

import json
import re
from typing import NoReturn

from batchq.jobs import NANO, Json, Usage

# One encoder for all: `json.dumps` with separators makes a new one at every call.
encode = json.JSONEncoder(ensure_ascii=True, separators=(",", ":")).encode

_HALF_PAIR = re.compile("[\ud800-\udfff]")


def text_or_null(value: str | None) -> str:
    """Return a text as JSON."""
    return "null" if value is None else encode(value)


def number_or_null(value: int | None) -> str:
    """Return a number as JSON."""
    return "null" if value is None else str(value)


def dollars(nano: int | None) -> str:
    """Return nano-dollars as dollars; always with a fraction, so that a reader that infers types sees one type."""
    if nano is None:
        return "null"
    whole, fraction = divmod(abs(nano), NANO)
    digits = f"{fraction:09d}".rstrip("0") or "0"
    return f"{'-' if nano < 0 else ''}{whole}.{digits}"


def usage_json(usage: Usage, cost: int | None) -> str:
    """Return what a job used, and its cost, as JSON."""
    return (
        f'{{"input_tokens":{number_or_null(usage.input_tokens)},"output_tokens":{number_or_null(usage.output_tokens)}'
        f',"cached_tokens":{number_or_null(usage.cached_tokens)}'
        f',"reasoning_tokens":{number_or_null(usage.reasoning_tokens)},"cost":{dollars(cost)}}}'
    )


def spliced(text: str) -> str:
    """Return JSON text as it is stored, made fit for one ASCII line if something else stored it.

    Raises ValueError for text that is no JSON: it would make the whole line unreadable.
    """
    try:
        value: Json = _decode(text)
    except RecursionError:  # it was deep enough for those who have stored it
        return text
    return text if text.isascii() and "\n" not in text and "\r" not in text else encode(value)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"JSON has no {name}")


_decode = json.JSONDecoder(parse_constant=_refuse_constant).decode


def plain(text: str | None) -> str | None:
    """Return what JSON text says: the string that it holds, else the JSON itself."""
    if text is None:
        return None
    if text.startswith('"'):
        value: Json = json.loads(text)
        if isinstance(value, str):
            return value
    return spliced(text)


def fit_for_utf8(text: str) -> str:
    """Return a text with U+FFFD in the place of half surrogate pairs, which UTF-8 can't hold."""
    return text if text.isascii() else _HALF_PAIR.sub("\ufffd", text)
