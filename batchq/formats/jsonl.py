"""Reads JSON Lines: bare strings, `prompt` rows, `messages` rows, or OpenAI Batch lines.

The first good row decides which of the four a file holds.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import NoReturn

from batchq.formats.lines import bounded
from batchq.formats.messages import checked_messages
from batchq.formats.prompts import Prompts
from batchq.formats.rows import (
    ID_COLUMN,
    PROMPT_COLUMN,
    BadRow,
    Ids,
    ReadOptions,
    Row,
    RowError,
    Rows,
    bad_utf8,
    bare,
    checked_prompt,
    fields_of,
    kind_name,
    names,
)
from batchq.jobs import Json
from batchq.request import CHAT, KNOWN_URLS

MAX_DEPTH = 200  # leaves room for the encoders that meet the value later, deeper in the stack
_JSON_SPACE = " \t\r\n"
_ONE_PER_LINE = "; JSON Lines have one whole value per line: `jq -c '.[]'` makes them of an array, `jq -c .` of objects"
_TOO_DEEP = f"JSON nested too deep: more than {MAX_DEPTH} levels"

# What a file's rows are. (An Enum's members cost more to look up than a row takes to read.)
_STRING, _PROMPT, _MESSAGES, _BATCH = range(4)
_THIS_LINE = ("is a bare string", "has `prompt`", "has `messages`", "is an OpenAI Batch line")
_LINES_BEFORE = ("are bare strings", "have `prompt`", "have `messages`", "are OpenAI Batch lines")


def read_jsonl(lines: Iterable[bytes], options: ReadOptions, prompts: Prompts) -> Rows:
    """Yield a row per line that is not blank."""
    take = _Reader(options, prompts).take
    only = options.only
    found = False
    for line, raw in enumerate(lines, 1):
        row: Row | BadRow
        try:
            if raw.isspace() or not raw:
                continue
            found = True
            if only is not None and line not in only:
                continue
            row = take(line, _parse(bounded(raw)))
        except UnicodeDecodeError as error:
            row = BadRow(line, bad_utf8(error), bare(raw))
        except RowError as error:
            row = BadRow(line, str(error), bare(raw))
        except RecursionError:
            row = BadRow(line, _TOO_DEEP, bare(raw))
        yield row
    return found


def jsonl_lines(lines: Iterable[bytes]) -> Iterator[int]:
    """Yield the line of each row, good or bad."""
    return (line for line, raw in enumerate(lines, 1) if raw and not raw.isspace())


class _Reader:
    """Turns the decoded lines of one file into rows."""

    def __init__(self, options: ReadOptions, prompts: Prompts) -> None:
        self._prompts = prompts
        self._template = options.template
        self._prompt_field = options.prompt_field or (None if prompts.is_plain else PROMPT_COLUMN)
        self._id_field = options.id_field
        self._ids = Ids(options.id_field)
        self._kind: int | None = None

    def take(self, line: int, value: Json) -> Row:
        """Return the row that a line's value stands for."""
        if self._prompt_field is not None:
            return self._take_field(line, value, self._prompt_field)
        kind = _kind_of(value)
        if kind != self._kind and self._kind is not None:
            raise RowError(f"this line {_THIS_LINE[kind]}, the lines before it {_LINES_BEFORE[self._kind]}")
        if isinstance(value, str):
            row = self._take_string(line, value)
        elif not isinstance(value, dict):
            _refuse(value)
        elif kind == _PROMPT:
            row = Row(line, self._ids.take(value), checked_prompt(value[PROMPT_COLUMN], PROMPT_COLUMN))
        elif kind == _MESSAGES:
            payload: Json = {"messages": checked_messages(value["messages"])}
            row = Row(line, self._ids.take(value), payload)
        else:
            row = self._take_batch_line(line, value)
        self._kind = kind
        return row

    def _take_field(self, line: int, value: Json, name: str) -> Row:
        if self._template is not None and isinstance(value, str):
            value = {PROMPT_COLUMN: self._checked_string(value)}
        elif not isinstance(value, dict):
            wanted = "" if self._template else f" with the field `{name}`"
            raise RowError(f"the line is {kind_name(value)}, not an object{wanted}")
        payload = self._prompts.payload(value, name)
        return Row(line, self._ids.take(value), payload)

    def _take_string(self, line: int, value: str) -> Row:
        return Row(line, None, self._checked_string(value))

    def _checked_string(self, value: str) -> str:
        if self._id_field is not None:
            raise RowError(f"the line is a bare string, which has no id field `{self._id_field}`")
        return checked_prompt(value, PROMPT_COLUMN)

    def _take_batch_line(self, line: int, value: dict[str, Json]) -> Row:
        if self._id_field is None and not isinstance(value.get(ID_COLUMN), str):
            problem = f"is {kind_name(value[ID_COLUMN])}" if ID_COLUMN in value else "is missing"
            raise RowError(f"`custom_id` {problem}; an OpenAI Batch line needs one, a string")
        if value.get("method") != "POST":
            raise RowError('`method` must be "POST"' if "method" in value else '`method` ("POST") is missing')
        url = value.get("url")
        if not isinstance(url, str) or url not in KNOWN_URLS:
            problem = "is none of" if "url" in value else "is missing; it is one of"
            raise RowError(f"`url` {problem} {', '.join(KNOWN_URLS)}")
        body = value.get("body")
        if not isinstance(body, dict):
            raise RowError(f"`body` is {kind_name(body)}, not an object" if "body" in value else "no `body`")
        if body.get("stream"):
            raise RowError('`body` asks for a stream; leave out `"stream": true`')
        model = body.pop("model", None)
        if model is not None and not (isinstance(model, str) and model.strip() and model.isprintable()):
            raise RowError("`model` in the body is not the name of a model")
        if url == CHAT:
            checked_messages(body.get("messages"))
        return Row(line, self._ids.take(value), {"body": body}, model, url)


def _kind_of(value: Json) -> int:
    if isinstance(value, str):
        return _STRING
    if not isinstance(value, dict):
        _refuse(value)
    if PROMPT_COLUMN in value:
        if "messages" not in value and "body" not in value:
            return _PROMPT
    elif "messages" in value and "body" not in value:
        return _MESSAGES
    named = [
        kind
        for kind, here in (
            (_PROMPT, value.get(PROMPT_COLUMN) is not None),
            (_MESSAGES, value.get("messages") is not None),
            (_BATCH, isinstance(value.get("body"), dict)),
        )
        if here
    ]
    if len(named) > 1:
        both = " and ".join(_THIS_LINE[kind] for kind in named)
        raise RowError(f"ambiguous: this line {both}; keep one, or name the prompt with --prompt-field")
    return named[0] if named else _kind_by_name(value)


def _kind_by_name(row: Mapping[str, Json]) -> int:
    if PROMPT_COLUMN in row:
        return _PROMPT
    if "messages" in row:
        return _MESSAGES
    if "method" in row and "url" in row:
        return _BATCH
    raise RowError(f"no `prompt`, `messages` or `body`; {fields_of(row)}; name the prompt's field with --prompt-field")


def _refuse(value: Json) -> NoReturn:
    hint = _ONE_PER_LINE if isinstance(value, list) else ""
    raise RowError(f"the line is {kind_name(value)}, not an object or a string{hint}")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise RowError("not valid JSON for a request: a number is too large")
    return value


def _not_json(name: str) -> NoReturn:
    raise RowError(f"not valid JSON: {name} is not a JSON value")


def _without_doubles(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    """Return an object. Raises RowError where two members have one name: nobody knows which is meant."""
    found = dict(pairs)
    if len(found) < len(pairs):
        doubled = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise RowError(f"{names([doubled])} stands in one object more than once: keep one")
    return found


_decoder = json.JSONDecoder(parse_constant=_not_json, parse_float=_finite, object_pairs_hook=_without_doubles)
_decode_at = _decoder.raw_decode


def _parse(raw: bytes) -> Json:
    text = raw.decode()
    value: Json
    try:
        value, end = _decode_at(text)
        tail = text[end:]
        if tail != "\n" and tail.strip(_JSON_SPACE):
            value = _parse_anyhow(text)
    except ValueError:
        value = _parse_anyhow(text)
    if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH and too_deep(value):
        raise RowError(_TOO_DEEP)
    return value


def _parse_anyhow(text: str) -> Json:
    """Decode a line that has space before its value, or say what is wrong with it."""
    try:
        value: Json = _decoder.decode(text.rstrip(_JSON_SPACE))
    except json.JSONDecodeError as error:
        hint = _ONE_PER_LINE if text.strip() in {"[", "{"} else ""
        raise RowError(f"not valid JSON: {error.msg} (column {error.pos + 1}){hint}") from None
    except ValueError as error:  # an integer of more digits than Python converts
        raise RowError("not valid JSON for a request: a number has too many digits") from error
    return value


def too_deep(value: Json) -> bool:
    """Whether a value is nested deeper than MAX_DEPTH."""
    level: list[Json] = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            child
            for node in level
            if isinstance(node, list | dict)
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, list | dict)
        ]
        if not level:
            return False
    return True
