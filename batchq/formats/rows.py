"""What every input format turns its lines into, and the checks they share."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from batchq.errors import UsageError
from batchq.jobs import Json

if TYPE_CHECKING:
    from batchq.formats.template import PromptTemplate

ID_COLUMN = "custom_id"
PROMPT_COLUMN = "prompt"
MAX_ID_BYTES = 2000  # PostgreSQL indexes no value above about 2,700 bytes
_SHOWN_NAMES = 12
_SHOWN_LENGTH = 40


@dataclass(frozen=True, slots=True)
class Row:
    """One prompt of an input file, and the 1-based line on which it starts."""

    line: int
    custom_id: str | None
    payload: Json = field(repr=False)
    model: str | None = None
    url: str | None = None


@dataclass(frozen=True, slots=True)
class BadRow:
    """A line that can't become a job: why, and its bytes without the line end (none of a Parquet file)."""

    line: int
    reason: str
    raw: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """What the user said about the input file; None means find out, or that there is none.

    `image_root` is where the paths of images start, if not at the file's own directory. `only` holds the lines
    of the rows to take, where not all are wanted.
    """

    input_format: str | None = None
    prompt_field: str | None = None
    id_field: str | None = None
    template: PromptTemplate | None = None
    image_field: str | None = None
    image_root: Path | None = None
    only: frozenset[int] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Raise UsageError where the prompt would come from two places."""
        if self.template is not None and self.prompt_field is not None:
            raise UsageError(
                f"both --prompt-field {self.prompt_field} and the template {self.template.name} say what the prompt is:"
                " leave one out; a template names its fields itself"
            )

    def wants(self, line: int) -> bool:
        """Whether the row on that line is among those to take."""
        return self.only is None or line in self.only


# A reader returns whether the file held anything at all but blank lines.
Rows = Generator[Row | BadRow, None, bool]


class RowError(Exception):
    """The reason why one line is a bad row."""


class Ids:
    """Takes the custom_id of each row, and holds all rows to what the first one did."""

    __slots__ = ("_field", "_present", "_required")

    def __init__(self, id_field: str | None) -> None:
        """Read ids from `id_field`, which then every row must have, else from `custom_id`."""
        self._field = id_field or ID_COLUMN
        self._required = id_field is not None
        self._present: bool | None = None

    def take(self, row: Mapping[str, object]) -> str | None:
        """Return the id of an otherwise good row."""
        value = row.get(self._field)
        if value is None and self._required:
            problem = "is null" if self._field in row else f"is missing; {fields_of(row)}"
            raise RowError(f"the id field `{self._field}` {problem}")
        present = value is not None
        custom_id = self._checked(value) if present else None
        if self._present is None:
            self._present = present
        elif present is not self._present:
            raise RowError(
                f"this line has a `{self._field}`, the lines before it have none"
                if present
                else f"this line has no `{self._field}`, the lines before it have one"
            )
        return custom_id

    def _checked(self, value: object) -> str:
        if type(value) is int:
            value = str(value)
        if not isinstance(value, str):
            raise RowError(f"`{self._field}` is {kind_name(value)}, not a string")
        if not value:
            raise RowError(f"`{self._field}` is empty")
        if "\0" in value:
            raise RowError(f"`{self._field}` contains a NUL character")
        if len(value) <= MAX_ID_BYTES and value.isascii():
            return value
        try:
            size = len(value.encode())
        except UnicodeEncodeError:
            raise RowError(f"`{self._field}` contains half of a surrogate pair") from None
        if size > MAX_ID_BYTES:
            raise RowError(f"`{self._field}` has {size:,} bytes; at most {MAX_ID_BYTES:,} are possible")
        return value


def checked_prompt(value: object, name: str) -> str:
    """Return a prompt that says something, or raise RowError."""
    if not isinstance(value, str):
        raise RowError(f"`{name}` is {kind_name(value)}, not a string")
    if not value or value.isspace():
        raise RowError("empty prompt")
    return value


def bare(raw: bytes) -> bytes:
    """Return a line without its line end."""
    return raw.removesuffix(b"\n").removesuffix(b"\r")


def bad_utf8(error: UnicodeDecodeError) -> str:
    """Say where a line stops being UTF-8."""
    return f"invalid UTF-8 at byte {error.start + 1} of the line"


def kind_name(value: object) -> str:
    """Return what JSON calls a value, with its article; a type's own name for what JSON does not know."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "a string"
    if isinstance(value, list | tuple):
        return "a list"
    return "an object" if isinstance(value, dict) else f"a value of type {type(value).__name__}"


def fields_of(row: Mapping[str, object]) -> str:
    """Say which fields a line has."""
    return f"the line has {names(row)}" if row else "the line has no fields"


def names(fields: Iterable[str]) -> str:
    """Return the first names for a message, each short and free of control characters."""
    shown: list[str] = []
    for name in fields:
        if len(shown) == _SHOWN_NAMES:
            shown.append("…")
            break
        short = name if len(name) <= _SHOWN_LENGTH else name[:_SHOWN_LENGTH] + "…"
        shown.append(f"`{''.join(c if c.isprintable() else '�' for c in short)}`")
    return ", ".join(shown)
