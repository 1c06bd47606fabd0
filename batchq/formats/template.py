"""Prompt templates: Jinja2 over the fields of a row, sandboxed and strict."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Self

from batchq.errors import UsageError
from batchq.formats.rows import RowError, fields_of, names

if TYPE_CHECKING:
    from batchq.formats.sandbox import PromptEnvironment

MAX_CHARACTERS = 50_000_000  # of a rendered prompt: beyond what any model reads
WHOLE_ROW = "row"
_SHOWN_REASON = 200


class PromptTemplate:
    """A prompt with places for a row's fields; a field that a row lacks, or that is null, is an error.

    The name `row` stands for all fields, for names that are no identifiers: `{{ row["Review Text"] }}`.
    """

    __slots__ = ("_passes", "_template", "fields", "is_constant", "name")

    def __init__(self, source: str, name: str = "--prompt") -> None:
        """Compile a template that messages call `name`; raise UsageError for one that can't be.

        `fields` are the names that it looks up.
        """
        from jinja2.exceptions import TemplateError, TemplateSyntaxError

        from batchq.formats.sandbox import PromptEnvironment

        environment = PromptEnvironment()
        self.name = name
        try:
            self.fields = _fields(source, name, environment)
            self._template = environment.from_string(source)
            self._passes = environment.passes
        except TemplateSyntaxError as error:
            place = name if name.startswith("-") and error.lineno == 1 else f"{name}:{error.lineno}"
            raise UsageError(f"{place}: the template is not valid Jinja2: {error.message}") from None
        except (TemplateError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise UsageError(f"{name}: the template can't be used: {_short(error)}") from None
        self.is_constant = self.fields <= environment.globals.keys()

    @classmethod
    def of_file(cls, path: Path) -> Self:
        """Read and compile a file; the line end that closes it is no part of the prompt."""
        try:
            return cls(path.read_text(encoding="utf-8-sig"), str(path))
        except UnicodeDecodeError:
            raise UsageError(f"the template {path} is not UTF-8 text: save it as UTF-8") from None
        except OSError as error:
            raise UsageError(f"can't read the template {path}: {error.strerror or error}") from None

    def render(self, row: Mapping[str, object]) -> str:
        """Fill in a row's fields. Raises RowError where that can't be done."""
        from jinja2.exceptions import SecurityError, UndefinedError

        from batchq.formats.sandbox import PrintedNull

        try:
            return self._rendered(row)
        except RowError:
            raise
        except UndefinedError as error:
            raise RowError(f"{_short(error)}; {fields_of(row)}") from None
        except PrintedNull:
            raise RowError(self._null(row)) from None
        except SecurityError as error:
            raise RowError(f"the template does what none may: {_short(error)}") from None
        except Exception as error:  # noqa: BLE001 -- an expression may fail with anything
            raise RowError(f"the template can't be rendered: {_short(error)}") from None

    def _rendered(self, row: Mapping[str, object]) -> str:
        if WHOLE_ROW in self.fields and WHOLE_ROW not in row:
            row = {**row, WHOLE_ROW: row}
        self._passes.start()
        parts: list[str] = []
        size = 0
        for part in self._template.generate(row):
            size += len(part)
            if size > MAX_CHARACTERS:
                raise RowError(f"the template makes a prompt of more than {MAX_CHARACTERS:,} characters")
            parts.append(part)
        return "".join(parts)

    def _null(self, row: Mapping[str, object]) -> str:
        nulls = [name for name in sorted(self.fields) if name in row and row[name] is None]
        if not nulls:
            return "the template prints a value that is null; `{{ value or '' }}` would leave it out"
        return f"{names(nulls)} is null; `{{{{ {nulls[0]} or '' }}}}` in the template would leave it out"


def _fields(source: str, name: str, environment: PromptEnvironment) -> frozenset[str]:
    from jinja2 import meta

    tree = environment.parse(source)
    if next(meta.find_referenced_templates(tree), "") != "":
        raise UsageError(f"{name}: a template can't include, import or extend another: put it all into one")
    return frozenset(meta.find_undeclared_variables(tree))


def _short(error: BaseException) -> str:
    """Return the reason in one short line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _SHOWN_REASON else text[:_SHOWN_REASON] + "…"
