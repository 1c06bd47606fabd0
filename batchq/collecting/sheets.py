"""Sends each job to the file that takes it: the results, or those that failed."""

from __future__ import annotations

from collections import Counter
from types import TracebackType
from typing import Self

from batchq.collecting.joining import InputRows
from batchq.collecting.output import Output
from batchq.collecting.whole import PAGE_ROWS
from batchq.formats.rendering import BinaryFile, Entry, Layout, sheet_for
from batchq.jobs import Counts, JobState, Result
from batchq.store.damage import naming

_FAILED = frozenset({JobState.FAILED, JobState.CANCELLED})


class Sheets:
    """The output of a batch in the making; use as a context manager, which abandons it where an exception ends it."""

    def __init__(
        self, output: Output, layout: Layout, rows: InputRows | None, results: BinaryFile, errors: BinaryFile | None
    ) -> None:
        """Start the files, of which `errors` may be missing."""
        self._rows = rows
        self._batch = layout.batch
        self._results = sheet_for(output.actual_format, results, layout)
        self._errors = None if errors is None else sheet_for(output.errors_format, errors, layout)
        # Line i of a text answers prompt i, so that a job that failed has an empty one there.
        self._keeps_place = output.actual_format == "txt"
        self._page: list[Entry] = []
        self._states: Counter[str] = Counter()
        self.written = 0
        self.set_aside = 0

    @property
    def counts(self) -> Counts:
        """How many jobs were taken, by state."""
        return Counts(**self._states)

    def __enter__(self) -> Self:
        """Return the sheets."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Abandon what was not closed."""
        if kind is not None:
            for sheet in filter(None, (self._results, self._errors)):
                sheet.abandon()

    def put(self, result: Result) -> None:
        """Take the next job."""
        self._states[result.state.value] += 1
        self._page.append(Entry(result, None if self._rows is None else self._rows.of(result)))
        if len(self._page) == PAGE_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write the jobs that were taken. Raises DamagedRow, naming it, for one that can't be read."""
        with naming(self._batch):
            try:
                self._write(self._page)
            except (ValueError, TypeError, RecursionError):
                for entry in self._page:
                    entry.result.refuse_damaged()
                raise
        self._page = []

    def _write(self, page: list[Entry]) -> None:
        if self._errors is not None:
            self.set_aside += self._errors.write([entry for entry in page if entry.result.state in _FAILED])
            if not self._keeps_place:
                page = [entry for entry in page if entry.result.state not in _FAILED]
        self.written += self._results.write(page)

    def close(self) -> None:
        """Write what makes the files whole."""
        self.flush()
        for sheet in filter(None, (self._results, self._errors)):
            sheet.close()
