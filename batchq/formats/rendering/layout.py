"""What the rows of an output hold, whatever its format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from batchq.jobs import Batch, Result

CUSTOM_ID = "custom_id"
PROMPT = "prompt"

# What batchq adds to the rows of an input, in every format that takes them.
_ADDED = frozenset({
    "position", "state", "result", "error", "error_class", "attempts", "usage", "input_tokens", "output_tokens",
    "cost", "finish_reason", "response",
})  # fmt: skip

Kind = Literal["text", "integer", "number", "boolean", "json", "typed"]


@dataclass(frozen=True, slots=True)
class Column:
    """A field that rows of the input have: its name, and what its values have in common.

    `arrow_type` is its type where the input is Parquet; values that are `typed` are just what that says.
    """

    name: str
    kind: Kind
    arrow_type: object | None = None


@dataclass(frozen=True, slots=True)
class Layout:
    """What each row of an output holds; `columns` are those of the input, where its rows stand before the results.

    `guard_formulas` keeps spreadsheet programs from running what stands in CSV and TSV.
    """

    batch: Batch
    has_ids: bool = False
    with_prompt: bool = False
    columns: tuple[Column, ...] | None = None
    guard_formulas: bool = False

    @property
    def adds_id(self) -> bool:
        """Whether batchq's own fields have a custom_id among them."""
        return self.has_ids and CUSTOM_ID not in self._taken()

    def suffix(self) -> str:
        """Return what tells batchq's fields from equally named ones of the input: nothing, or `_2`, `_3` and so on."""
        taken = self._taken()
        suffix, number = "", 1
        while any(name + suffix in taken for name in _ADDED):
            number += 1
            suffix = f"_{number}"
        return suffix

    def _taken(self) -> set[str]:
        return {column.name for column in self.columns or ()}


class Entry(NamedTuple):
    """A job on its way into an output, and the fields of its row of the input as the text of a JSON object."""

    result: Result
    fields: str | None = None
