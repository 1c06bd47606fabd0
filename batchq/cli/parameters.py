"""Reads `--set KEY=VALUE`: request parameters as JSON values, dots nest."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from batchq.jobs import Json

_SHOWN = 80
_OWNED = {
    "model": "use --model",
    "messages": "the input holds the messages",
    "input": "the input file holds the input",
    "prompt": "the input file holds the prompt",
    "stream": "a queue has nobody to stream to",
}


def parse_params(_context: click.Context, _option: click.Parameter, pairs: Sequence[str]) -> dict[str, Json]:
    params: dict[str, Json] = {}
    for pair in pairs:
        refuse_undecoded("--set", pair)
        path, separator, text = pair.partition("=")
        names = path.strip().split(".")
        if not separator or not all(names):
            raise click.BadParameter(f"{pair!r} is not KEY=VALUE, e.g. temperature=0 or provider.sort=price")
        if names[0] in _OWNED:
            raise click.BadParameter(f"{names[0]!r} can't be set: {_OWNED[names[0]]}")
        _put(params, names, _parse_value(text, pair), pair)
    return params


def refuse_undecoded(option: str, text: str | None) -> None:
    """Raise a usage error for bytes of the command line that are not UTF-8: they would be sent as something else."""
    if text is not None and any("\udc80" <= character <= "\udcff" for character in text):
        raise click.BadParameter(f"{text[:_SHOWN]!r} is not UTF-8 text", param_hint=option)


def _put(params: dict[str, Json], names: Sequence[str], value: Json, pair: str) -> None:
    for name in names[:-1]:
        inner = params.setdefault(name, {})
        if not isinstance(inner, dict):
            raise click.BadParameter(f"{pair!r} goes into {name!r}, which another --set gave a value")
        params = inner
    if isinstance(params.get(names[-1]), dict) and not isinstance(value, dict):
        raise click.BadParameter(f"{pair!r} replaces what another --set put into it")
    params[names[-1]] = value


def _parse_value(text: str, pair: str) -> Json:
    """Read JSON; what is none is a string, unless it begins like JSON or can't be sent as JSON."""
    try:
        value: Json = json.loads(text)
    except json.JSONDecodeError as error:
        if text.lstrip().startswith(("[", "{", '"')):
            raise click.BadParameter(f"{pair!r} is not valid JSON: {error}") from None
        return text
    except (ValueError, RecursionError):
        raise click.BadParameter(f"{_short(pair)!r} is too long a number, or nested too deep") from None
    try:
        json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError):
        raise click.BadParameter(f"{_short(pair)!r} can't be sent: JSON has no NaN and no infinity") from None
    return value


def _short(pair: str) -> str:
    return pair if len(pair) <= _SHOWN else pair[:_SHOWN] + "…"
