"""Arrow's record batches as rows of Python values, a few megabytes at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Protocol, Self, TypeAlias

from batchq.formats.arrow import import_arrow

if TYPE_CHECKING:
    from typing import Any

    ArrowType: TypeAlias = Any  # pyarrow has no types

_MOST_ROWS = 1_000
_MOST_BYTES = 4 << 20


class Field(Protocol):
    """What is used of a pyarrow.Field."""

    name: str
    type: ArrowType

    def with_type(self, new_type: ArrowType) -> Self:
        """Return the field with another type."""


class RecordBatch(Protocol):
    """What is used of a pyarrow.RecordBatch."""

    num_rows: int
    nbytes: int
    schema: Iterable[Field]

    def cast(self, target_schema: object, *, safe: bool) -> Self:
        """Return the batch with other types."""

    def slice(self, offset: int, length: int) -> Self:
        """Return some of the rows."""

    def to_pylist(self) -> list[dict[str, object]]:
        """Return the rows as Python values."""


def rows_at_once(rows: int, size: int) -> int:
    """Return how many of `rows`, which have `size` bytes together, may be in memory as Python values."""
    return max(1, min(_MOST_ROWS, _MOST_BYTES * rows // max(size, 1)))


def python_rows(batch: RecordBatch) -> Iterator[dict[str, object]]:
    """Yield the rows of a batch; times have the precision of Python's, whether pandas is installed or not."""
    pa = import_arrow()

    fields = list(batch.schema)
    coarse = [field.with_type(_coarser(field.type)) for field in fields]
    if coarse != fields:
        batch = batch.cast(pa.schema(coarse), safe=False)
    count = rows_at_once(batch.num_rows, batch.nbytes)
    for start in range(0, batch.num_rows, count):
        yield from batch.slice(start, count).to_pylist()


def _coarser(kind: ArrowType) -> ArrowType:
    pa = import_arrow()

    if pa.types.is_timestamp(kind) and kind.unit == "ns":
        return pa.timestamp("us", kind.tz)
    return pa.duration("us") if pa.types.is_duration(kind) and kind.unit == "ns" else kind
