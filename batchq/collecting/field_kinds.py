"""Which fields the rows of an input have, and what the values of each have in common."""

from __future__ import annotations

from typing import Final

from batchq.formats import Column
from batchq.formats.rendering import Kind
from batchq.jobs import Json

_EXACT: Final = 1 << 53  # a double holds every integer up to here
_INT64: Final = 1 << 63

# What a field may hold, each a bit; None is none of them.
_TEXT, _BOOLEAN, _SMALL, _LARGE, _FLOAT, _OTHER = (1 << bit for bit in range(6))
_KINDS: Final[dict[int, Kind]] = {
    0: "text",
    _TEXT: "text",
    _BOOLEAN: "boolean",
    _SMALL: "integer",
    _LARGE: "integer",
    _SMALL | _LARGE: "integer",
    _FLOAT: "number",
    _SMALL | _FLOAT: "number",
}


class FieldKinds:
    """Learns the fields of rows as they pass."""

    def __init__(self) -> None:
        """Start with nothing seen."""
        self._declared: tuple[Column, ...] | None = None
        self._seen: dict[str, int] = {}

    def declare(self, columns: tuple[Column, ...]) -> None:
        """Take the word of a file that says itself which columns it has."""
        self._declared = columns

    def saw(self, fields: dict[str, Json]) -> None:
        """Take note of a row."""
        if self._declared is None:
            seen = self._seen
            for name, value in fields.items():
                seen[name] = seen.get(name, 0) | _bit(value)

    def columns(self) -> tuple[Column, ...]:
        """Return the fields in the order in which they first came; mixed ones are JSON."""
        if self._declared is not None:
            return self._declared
        return tuple(Column(name, _KINDS.get(bits, "json")) for name, bits in self._seen.items())


def _bit(value: Json) -> int:
    if value is None:
        return 0
    if isinstance(value, str):
        return _TEXT
    if isinstance(value, bool):
        return _BOOLEAN
    if isinstance(value, float):
        return _FLOAT
    if isinstance(value, int):
        if -_EXACT <= value <= _EXACT:
            return _SMALL
        return _LARGE if -_INT64 <= value < _INT64 else _OTHER
    return _OTHER
