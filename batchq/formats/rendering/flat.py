"""The columns that formats of rows and columns give a job."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from batchq.formats.rendering.layout import CUSTOM_ID, PROMPT, Layout
from batchq.formats.rendering.values import plain
from batchq.jobs import Result

FlatKind = Literal["text", "integer", "money"]


class FlatColumn(NamedTuple):
    """A column of batchq's own; money is in nano-dollars."""

    name: str
    kind: FlatKind
    value: Callable[[Result], str | int | None]


_CUSTOM_ID = FlatColumn(CUSTOM_ID, "text", lambda result: result.custom_id)
_POSITION = FlatColumn("position", "integer", lambda result: result.position)
_PROMPT = FlatColumn(PROMPT, "text", lambda result: plain(result.payload))
_ANSWER = (
    FlatColumn("state", "text", lambda result: result.state.value),
    FlatColumn("result", "text", lambda result: plain(result.result)),
    FlatColumn("error_class", "text", lambda result: result.error_class),
    FlatColumn("error", "text", lambda result: result.error),
    FlatColumn("attempts", "integer", lambda result: result.attempts),
    FlatColumn("input_tokens", "integer", lambda result: result.usage.input_tokens),
    FlatColumn("output_tokens", "integer", lambda result: result.usage.output_tokens),
    FlatColumn("cost", "money", lambda result: result.cost),
    FlatColumn("finish_reason", "text", lambda result: result.finish_reason),
)


def flat_columns(layout: Layout) -> tuple[FlatColumn, ...]:
    """Return batchq's columns in order, under names that no column of the input has."""
    columns = (_POSITION, *((_PROMPT,) if layout.with_prompt else ()), *_ANSWER)
    suffix = layout.suffix()
    renamed = tuple(column._replace(name=column.name + suffix) for column in columns)
    return ((_CUSTOM_ID,) if layout.adds_id else ()) + renamed


def flat_names() -> tuple[str, ...]:
    """Return the names of the columns that every output has."""
    return tuple(column.name for column in (_POSITION, *_ANSWER))
