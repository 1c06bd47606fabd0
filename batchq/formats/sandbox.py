"""Jinja2 as prompts may use it; imported only where there is a template, since it takes its time."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from functools import wraps
from typing import Any

from jinja2 import StrictUndefined, nodes, pass_eval_context
from jinja2.exceptions import SecurityError, TemplateRuntimeError
from jinja2.filters import do_format, do_join, do_replace
from jinja2.nodes import EvalContext
from jinja2.runtime import Context, LoopContext, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import missing

from batchq.formats.bounds import (
    JOIN,
    LOOP,
    MAX_REPEATED,
    WIDENING_FILTERS,
    Passes,
    count_loops,
    joined,
    refuse_growth,
    refuse_joined,
    refuse_long,
    refuse_replaced,
    refuse_wide,
)
from batchq.formats.rows import names

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

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        """Leave out what is random: an input is read more than once, and again by whoever resumes it."""
        super().__init__(undefined=MissingField, autoescape=False, finalize=_printed)
        del self.globals["lipsum"], self.filters["random"]
        self.filters["tojson"] = _to_json
        self.filters["format"] = _format
        self.passes = Passes()
        self.filters |= {LOOP: self.passes.over, JOIN: joined, "replace": _replace, "join": _join}
        for name in WIDENING_FILTERS:
            self.filters[name] = _not_too_wide(self.filters[name])

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return count_loops(super()._parse(source, name, filename))

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - jinja2's
        """Refuse calls that make much of little; a recursive loop counts what it is called with."""
        self.passes.take(1 + (len(args[0]) if isinstance(obj, LoopContext) and isinstance(args[0], Sized) else 0))
        refuse_growth(obj, args)
        return super().call(context, obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: object, right: object) -> object:
        """Refuse the operators where they make much of little."""
        number, other = (left, right) if isinstance(left, int) else (right, left)
        if operator == "*" and isinstance(other, str | list | tuple) and isinstance(number, int):
            if number * len(other) > MAX_REPEATED:
                raise SecurityError(f"a repetition of more than {MAX_REPEATED:,} parts")
        elif operator == "**" and isinstance(right, int | float) and right > _MAX_EXPONENT:
            raise SecurityError(f"an exponent of more than {_MAX_EXPONENT:,}")
        elif operator == "%" and isinstance(left, str):
            _refuse_wide(left, right if isinstance(right, tuple) else (right,))
        elif operator == "+" and isinstance(left, Sized) and isinstance(right, Sized):
            refuse_long(len(left) + len(right))
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


def _not_too_wide(function: Callable[..., object]) -> Callable[..., object]:
    @wraps(function)
    def bounded(*args: object, **named: object) -> object:
        refuse_wide([*args[1:], *named.values()])
        return function(*args, **named)

    return bounded


@pass_eval_context
def _replace(context: EvalContext, text: str, old: str, new: str, count: int | None = None) -> str:
    refuse_replaced(str(text), str(old), str(new))
    return do_replace(context, text, old, new, count)


@pass_eval_context
def _join(context: EvalContext, value: Iterable[object], d: str = "", attribute: str | int | None = None) -> str:
    parts = list(value)
    refuse_joined(str(d), parts)
    return str(do_join(context, parts, d, attribute))


def _format(value: str, *args: object, **fields: object) -> str:
    _refuse_wide(value, args or fields.values())
    return do_format(value, *args, **fields)


def _refuse_wide(text: str, values: Iterable[object]) -> None:
    """Refuse a width or precision that makes an endless text; `*` takes it from the values."""
    for number in (number for found in _CONVERSION.findall(text) for number in found if number):
        widths = (value for value in values if isinstance(value, int)) if number == "*" else (int(number[:20]),)
        if any(abs(width) > MAX_REPEATED for width in widths):
            raise SecurityError(f"a text of more than {MAX_REPEATED:,} characters")


def _to_json(value: object, indent: int | None = None) -> str:
    """Jinja2's own `tojson` is made for HTML and escapes quotes and brackets."""
    return json.dumps(value, ensure_ascii=False, indent=indent, default=str)
