"""Jinja2 as prompts may use it; imported only where there is a template, since it takes its time."""

from __future__ import annotations

import json
from collections.abc import Mapping

from jinja2 import StrictUndefined
from jinja2.exceptions import SecurityError, TemplateRuntimeError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import missing

from batchq.formats.rows import names

_MAX_REPEATED = 10_000_000
_MAX_EXPONENT = 1_000


class PrintedNull(TemplateRuntimeError):
    """The template prints null, which would read `None`."""


class MissingField(StrictUndefined):
    """A name that a row has no field for: any use of it but `is defined` is an error."""

    __slots__ = ()

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

    intercepted_binops = frozenset({"*", "**"})

    def __init__(self) -> None:
        """Leave out what is random: an input is read more than once, and again by whoever resumes it."""
        super().__init__(undefined=MissingField, autoescape=False, finalize=_not_null)
        del self.globals["lipsum"], self.filters["random"]
        self.filters["tojson"] = _to_json

    def call_binop(self, context: Context, operator: str, left: object, right: object) -> object:
        """Refuse the two operators that make much of little."""
        number, other = (left, right) if isinstance(left, int) else (right, left)
        if operator == "*" and isinstance(other, str | list | tuple) and isinstance(number, int):
            if number * len(other) > _MAX_REPEATED:
                raise SecurityError(f"a repetition of more than {_MAX_REPEATED:,} parts")
        elif operator == "**" and isinstance(right, int | float) and right > _MAX_EXPONENT:
            raise SecurityError(f"an exponent of more than {_MAX_EXPONENT:,}")
        return super().call_binop(context, operator, left, right)


def _not_null(value: object) -> object:
    if value is None:
        raise PrintedNull
    return value


def _to_json(value: object, indent: int | None = None) -> str:
    """Jinja2's own `tojson` is made for HTML and escapes quotes and brackets."""
    return json.dumps(value, ensure_ascii=False, indent=indent, default=str)
