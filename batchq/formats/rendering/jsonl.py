"""JSON Lines: an object per job, in ASCII."""

from __future__ import annotations

import json
from math import isfinite

from batchq.formats.rendering.layout import Entry, Layout
from batchq.formats.rendering.values import encode, spliced, text_or_null, usage_json
from batchq.jobs import Json, Result


def render_jsonl(result: Result, *, with_prompt: bool) -> str:
    """Return a result as one line of ASCII JSON, without the line end; equal results give equal bytes."""
    return f'{{"custom_id":{text_or_null(result.custom_id)},{_fields_of(result, with_prompt=with_prompt)}}}'


class JsonlRenderer:
    """Writes each job as a JSON object, behind the fields of its row of the input where there are any."""

    def __init__(self, layout: Layout) -> None:
        """Know what rows hold."""
        self._with_prompt = layout.with_prompt
        self._adds_id = layout.adds_id
        self._suffix = layout.suffix()

    def head(self) -> bytes:
        """Return nothing: the format has no header."""
        return b""

    def row(self, entry: Entry) -> bytes:
        """Return a line."""
        result = entry.result
        if entry.fields is None:
            line = render_jsonl(result, with_prompt=self._with_prompt)
        else:
            line = self._behind(_finite(entry.fields), result)
        return f"{line}\n".encode("ascii")

    def _behind(self, fields: str, result: Result) -> str:
        own = _fields_of(result, with_prompt=False, suffix=self._suffix)
        if self._adds_id:
            own = f'"custom_id":{text_or_null(result.custom_id)},{own}'
        return f"{fields[:-1]}{'' if fields == '{}' else ','}{own}}}"


def _fields_of(result: Result, *, with_prompt: bool, suffix: str = "") -> str:
    parts = [f'"position{suffix}":{result.position}']
    if with_prompt:
        parts.append(f'"prompt":{"null" if result.payload is None else spliced(result.payload)}')
    parts.append(f'"state{suffix}":{encode(result.state)}')
    if result.result is not None:
        parts.append(f'"result{suffix}":{spliced(result.result)}')
    if result.error is not None or result.error_class is not None:
        parts.append(f'"error{suffix}":{_error(result)}')
    parts.append(f'"attempts{suffix}":{result.attempts},"usage{suffix}":{usage_json(result.usage, result.cost)}')
    if result.finish_reason is not None:
        parts.append(f'"finish_reason{suffix}":{encode(result.finish_reason)}')
    if result.response is not None:
        parts.append(f'"response{suffix}":{spliced(result.response)}')
    return ",".join(parts)


def _error(result: Result) -> str:
    status = "" if result.status is None else f',"status":{result.status}'
    return f'{{"class":{text_or_null(result.error_class)},"message":{text_or_null(result.error)}{status}}}'


def _finite(fields: str) -> str:
    """Return the fields with null for what is no number: Parquet has it, JSON has not."""
    if "NaN" not in fields and "Infinity" not in fields:
        return fields
    return encode(_without_nan(json.loads(fields)))


def _without_nan(value: Json) -> Json:
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    if isinstance(value, dict):
        return {name: _without_nan(item) for name, item in value.items()}
    return value
