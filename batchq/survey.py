"""Pass one over an input file: every bad row, and the model and url that all rows share.

Nothing is written until all of it is read. What has to be remembered per row (custom_ids, bad lines)
goes to a temporary SQLite file, so that memory does not grow with the input.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from batchq.database.scratch import Scratch
from batchq.errors import BadInput, UsageError
from batchq.formats import BadLines, BadRow, ReadOptions, Row, format_of, refuse_queue, same_file
from batchq.source import ALL_ROWS, Selection, Source, open_source

SHOWN_EXAMPLES = 20
_FLUSH_ROWS = 5_000
_SHOWN_ID = 80

_DUPLICATES = """
    SELECT line, custom_id, first
    FROM (SELECT line, custom_id, min(line) OVER (PARTITION BY custom_id) AS first FROM seen)
    WHERE line > first
"""


@dataclass(frozen=True, slots=True)
class Survey:
    """What pass one learned about an input, and the way to read its good rows again.

    `model` and `url` are what the file names. `file_model` is a model of the file that the caller's
    own choice replaces.
    """

    source: Source
    ledger: _Ledger
    rows: int
    bad: int
    has_ids: bool
    model: str | None
    url: str | None
    file_model: str | None

    @property
    def name(self) -> str:
        """What messages call the input."""
        return self.source.name

    def good_rows(self) -> Iterator[Row]:
        """Yield the rows that can be enqueued. Raises BadInput if the file has changed meanwhile."""
        bad_lines = self.ledger.bad_lines()
        next_bad = next(bad_lines, None)
        for row in self.source.read():
            if row.line == next_bad:
                next_bad = next(bad_lines, None)
            elif isinstance(row, BadRow):
                raise self.source.changed()
            else:
                yield row

    def check_unchanged(self) -> None:
        """Raise BadInput if the file is not the one that pass one read."""
        if self.source.signature() != self.source.first_signature:
            raise self.source.changed()


@contextmanager
def survey_input(
    path: Path | None,
    options: ReadOptions,
    *,
    model: str | None = None,
    skip_bad: Path | None = None,
    database: Path | None = None,
    selection: Selection = ALL_ROWS,
) -> Iterator[Survey]:
    """Read a file, or standard input, or as much of it as the selection asks for, and say what is in it.

    `model` is the user's own choice, which stands above the file's. Raises BadInput when there are
    bad rows, unless `skip_bad` names a file: then they are written there, but never over the input,
    the queue's `database`, or anything else that is not those bad rows already.
    """
    with ExitStack() as stack:
        if skip_bad is not None and path is not None and same_file(path, skip_bad):
            raise UsageError(f"{skip_bad} is the input itself: choose another file for the bad rows")
        if skip_bad is not None and database is not None:
            refuse_queue(skip_bad, database)
        source = stack.enter_context(open_source(path, options, selection.sample))
        if skip_bad is not None:
            _refuse_parquet(source)
        ledger = stack.enter_context(closing(_Ledger()))
        survey = _inspect(source, ledger, model, selection.limit)
        if survey.bad and (skip_bad is None or not survey.rows):
            raise _bad_input(survey)
        if skip_bad is not None:
            BadLines(source.path, source.name, source.row_lines, ledger.bad_lines).write(skip_bad)
        yield survey


@contextmanager
def survey_source(source: Source, *, model: str | None = None) -> Iterator[Survey]:
    """Read all of a source that is open already, and say what is in it. Raises BadInput when there are bad rows."""
    with closing(_Ledger()) as ledger:
        survey = _inspect(source, ledger, model)
        if survey.bad:
            raise _bad_input(survey)
        yield survey


def _refuse_parquet(source: Source) -> None:
    if format_of(source.path, source.options) == "parquet":
        raise UsageError(
            f"{source.name} is Parquet, whose bad rows can't be set aside as they stand:"
            " leave out --skip-bad and mend the rows, or convert the file to JSON Lines"
        )


def _inspect(source: Source, ledger: _Ledger, forced_model: str | None, limit: int | None = None) -> Survey:
    shared = _Shared(forced_model)
    rows = 0
    has_ids = False
    for row in source.read():
        if isinstance(row, BadRow):
            ledger.reject(row.line, row.reason)
            continue
        if (row.url is not None or row.model is not None) and (reason := shared.objection(row)):
            ledger.reject(row.line, reason)
            continue
        rows += 1
        if row.custom_id is not None:
            has_ids = True
            ledger.saw(row.line, row.custom_id)
        if rows == limit:
            source = source.up_to(row.line)
            break
    duplicates = ledger.reject_duplicates() if has_ids else 0
    return Survey(
        source,
        ledger,
        rows - duplicates,
        ledger.count(),
        has_ids,
        shared.model,
        shared.url,
        shared.file_model,
    )


class _Shared:
    """The model and url that all rows of a file must agree on."""

    def __init__(self, forced_model: str | None) -> None:
        self._forced = forced_model
        self._model_line = 0
        self._url_line = 0
        self.model = forced_model
        self.url: str | None = None
        self.file_model: str | None = None

    def objection(self, row: Row) -> str | None:
        """Say why a row can't be in one batch with those before it."""
        if row.url is not None and self.url is None:
            self.url, self._url_line = row.url, row.line
        elif row.url is not None and row.url != self.url:
            return f"url {row.url} where line {self._url_line} has {self.url}; a batch calls one: split the file"
        if row.model is None:
            return None
        if self._forced is not None:
            if row.model != self._forced:
                self.file_model = self.file_model or row.model
        elif self.model is None:
            self.model, self._model_line = row.model, row.line
        elif row.model != self.model:
            return (
                f"model {row.model!r} where line {self._model_line} has {self.model!r}; a batch has one:"
                " split the file, or choose one for all rows with --model"
            )
        return None


class _Ledger:
    """The custom_ids and the bad lines of a file, in a temporary database on disk."""

    def __init__(self) -> None:
        self._scratch = Scratch(
            "CREATE TABLE seen (line INTEGER PRIMARY KEY, custom_id TEXT NOT NULL)",
            "CREATE TABLE bad (line INTEGER PRIMARY KEY, reason TEXT NOT NULL)",
        )
        self._seen: list[tuple[int, str]] = []
        self._bad: list[tuple[int, str]] = []

    def close(self) -> None:
        """Remove the file."""
        self._scratch.close()

    def saw(self, line: int, custom_id: str) -> None:
        """Remember whose custom_id a line has."""
        self._seen.append((line, custom_id))
        if len(self._seen) == _FLUSH_ROWS:
            self._flush()

    def reject(self, line: int, reason: str) -> None:
        """Remember a bad line."""
        # A reason may name what the line or the command line has in it, which need not be text.
        self._bad.append((line, reason.encode(errors="backslashreplace").decode()))
        if len(self._bad) == _FLUSH_ROWS:
            self._flush()

    def reject_duplicates(self) -> int:
        """Call every further row of a custom_id bad; return how many there are."""
        self._flush()
        before = self.count()
        for line, custom_id, first in self._scratch.rows(_DUPLICATES):
            shown = custom_id if len(custom_id) <= _SHOWN_ID else custom_id[:_SHOWN_ID] + "…"
            self.reject(line, f"duplicate custom_id {shown!r}, first on line {first}")
        return self.count() - before

    def count(self) -> int:
        """Return how many lines are bad."""
        self._flush()
        return int(next(self._scratch.rows("SELECT count(*) FROM bad"))[0])

    def examples(self) -> list[tuple[int, str]]:
        """Return the first bad lines with their reasons."""
        return list(self._scratch.rows("SELECT line, reason FROM bad ORDER BY line LIMIT ?", SHOWN_EXAMPLES))

    def bad_lines(self) -> Iterator[int]:
        """Yield the numbers of the bad lines in order."""
        return (line for (line,) in self._scratch.rows("SELECT line FROM bad ORDER BY line"))

    def _flush(self) -> None:
        self._scratch.add("INSERT INTO seen VALUES (?, ?)", self._seen)
        self._scratch.add("INSERT INTO bad VALUES (?, ?)", self._bad)
        self._seen.clear()
        self._bad.clear()


def _bad_input(survey: Survey) -> BadInput:
    rows = "1 bad row" if survey.bad == 1 else f"{survey.bad:,} bad rows"
    what_to_do = "mend it" if survey.bad == 1 else "mend them"
    good = f"{survey.rows:,} good" if survey.rows else "no good one"
    return BadInput(
        f"{survey.name} has {rows} and {good}; nothing was enqueued: {what_to_do}, or leave out what is bad"
        " with --skip-bad FILE",
        [f"{survey.source.place(line)}: {reason}" for line, reason in survey.ledger.examples()],
        survey.bad,
    )
