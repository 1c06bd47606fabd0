"""Jinja2 as prompts may use it; imported only where there is a template, since it takes its time."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping

from jinja2 import StrictUndefined
from jinja2.exceptions import SecurityError, TemplateRuntimeError
from jinja2.filters import do_format
from jinja2.runtime import Context, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import missing

from batchq.formats.rows import names

_MAX_REPEATED = 10_000_000
_MAX_EXPONENT = 1_000
# A conversion of `%`: its width and precision.
_CONVERSION = re.compile(r"%(?:%|(?:\([^)]*\))?[-+ #0]*(\*|\d*)(?:\.(\*|\d*))?)")


class PrintedNull(TemplateRuntimeError):
    """The template prints null, which would read `None`."""


class MissingField(StrictUndefined):
    """A name that a row has no field for: any use of it but `is defined` is an error."""

    __slots__ = ()
    __repr__ = StrictUndefined.__str__  # a list that is printed prints the `repr` of what is in it

    @property
    def _undefined_message(self) -> str:
        if self._undefined_hint:
            return self._undefined_hint
        if self._undefined_obj is missing:
            return f"no field `{self._undefined_name}`"
        if isinstance(self._undefined_obj, Mapping):
            return f"no `{self._undefined_name}` in an object that has {names(map(str, self._undefined_obj))}"
        return super()._undefined_message


class PromptEnvironment(ImmutableSandboxedEnvironment):
    """A sandbox that changes nothing, loads nothing, and renders the same text each time."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def __init__(self) -> None:
        """Leave out what is random: an input is read more than once, and again by whoever resumes it."""
        super().__init__(undefined=MissingField, autoescape=False, finalize=_printed)
        del self.globals["lipsum"], self.filters["random"]
        self.filters["tojson"] = _to_json
        self.filters["format"] = _format

    def call_binop(self, context: Context, operator: str, left: object, right: object) -> object:
        """Refuse the operators where they make much of little."""
        number, other = (left, right) if isinstance(left, int) else (right, left)
        if operator == "*" and isinstance(other, str | list | tuple) and isinstance(number, int):
            if number * len(other) > _MAX_REPEATED:
                raise SecurityError(f"a repetition of more than {_MAX_REPEATED:,} parts")
        elif operator == "**" and isinstance(right, int | float) and right > _MAX_EXPONENT:
            raise SecurityError(f"an exponent of more than {_MAX_EXPONENT:,}")
        elif operator == "%" and isinstance(left, str):
            _refuse_wide(left, right if isinstance(right, tuple) else (right,))
        return super().call_binop(context, operator, left, right)


def _printed(value: object) -> object:
    """Return what is to be printed. Raises where that is nothing, or an address: another text each time."""
    if value is None:
        raise PrintedNull
    if not _has_text(value):
        hint = ": `| list` makes one" if isinstance(value, Iterator) else ""
        raise TemplateRuntimeError(f"it prints a {type(value).__name__}, which has no text{hint}")
    return value


def _has_text(value: object) -> bool:
    """Whether a value is printed as what it holds; what is undefined says so itself."""
    if isinstance(value, str | int | float | Undefined):
        return True
    if isinstance(value, dict):
        return all(map(_has_text, value.keys())) and all(map(_has_text, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_has_text, value))
    bare = type(value).__str__ is object.__str__ and type(value).__repr__ is object.__repr__
    return not (bare or callable(value) or isinstance(value, Iterator))


def _format(value: str, *args: object, **fields: object) -> str:
    _refuse_wide(value, args or fields.values())
    return do_format(value, *args, **fields)


def _refuse_wide(text: str, values: Iterable[object]) -> None:
    """Refuse a width or precision that makes an endless text; `*` takes it from the values."""
    for number in (number for found in _CONVERSION.findall(text) for number in found if number):
        widths = (value for value in values if isinstance(value, int)) if number == "*" else (int(number[:20]),)
        if any(abs(width) > _MAX_REPEATED for width in widths):
            raise SecurityError(f"a text of more than {_MAX_REPEATED:,} characters")


def _to_json(value: object, indent: int | None = None) -> str:
    """Jinja2's own `tojson` is made for HTML and escapes quotes and brackets."""
    return json.dumps(value, ensure_ascii=False, indent=indent, default=str)
