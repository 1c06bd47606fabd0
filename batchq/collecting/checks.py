"""What an output may replace: only results of its own format, and never what it is made from."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from batchq.collecting.output import Output
from batchq.errors import UsageError
from batchq.formats import AtomicFile, refuse_queue, same_file
from batchq.formats.arrow import import_arrow
from batchq.formats.rendering import flat_names
from batchq.jobs import Batch

_WAY_OUT: Final = "choose another file, or overwrite with --force"
_START: Final = 1 << 20
_STATES = rb"pending|inflight|done|failed|cancelled"
_RESULT_LINE: Final = re.compile(rb'\{"custom_id":(?:null|"(?:[^"\\]|\\.)*"),"position":\d+,')
# A quote inside a string of JSON has a backslash before it, so that this can only be fields.
_JOINED_LINE: Final = re.compile(rb'\{.*[{,]"position((?:_\d+)?)":\d+,"state\1":"(?:' + _STATES + rb')"[,}]')
_OPENAI_LINE: Final = re.compile(rb'\{"id":"batch_req_')


def check_output(
    output: Output, *, overwrite: bool = False, database: Path | None = None, way_out: str = _WAY_OUT
) -> None:
    """Raise UsageError, before anybody waits, if results should not or could not be written to an output.

    A file that is there is replaced only if it holds results of the format: an input is not lost to a slip of
    the hand. `overwrite` lifts that, but nothing lets results replace the queue's `database` or the input.
    `way_out` says what to do about a file that is in the way.
    """
    check_places(output, database=database)
    for path, chosen in _targets(output):
        if path.is_file() and not overwrite:
            _check_holds_results(path, chosen, way_out)
        AtomicFile(path).check()


def check_places(output: Output, *, database: Path | None = None) -> None:
    """Raise UsageError where an output contradicts itself, or names files that it can't have."""
    output.check()
    if output.errors == Path("-"):
        raise UsageError("--errors needs a file: standard output is for the results")
    if output.path is not None and output.errors is not None and same_file(output.path, output.errors):
        raise UsageError(f"{output.path} can't hold both the results (-o) and the failed jobs (--errors)")
    for path, chosen in _targets(output):
        if database is not None:
            refuse_queue(path, database)
        if output.with_input is not None and same_file(path, output.with_input):
            raise UsageError(f"{path} is the input itself: name another file for what is made of it")
        if not path.parent.is_dir():
            raise UsageError(f"can't write {path}: the directory {path.parent} does not exist; create it first")
        if path.is_dir():
            raise UsageError(f"can't write {path}: it is a directory; name a file in it")
        if chosen == "parquet":
            import_arrow()


def check_not_source(output: Output, batch: Batch) -> None:
    """Raise UsageError if an output would replace the file that the batch's rows were read from."""
    for path, _ in _targets(output):
        if batch.source is not None and same_file(path, Path(batch.source)):
            raise UsageError(f"{path} is the input of {batch.name} itself: name another file")


def _targets(output: Output) -> list[tuple[Path, str]]:
    """Return the files that are written, each with its format."""
    targets = ((output.path, output.actual_format), (output.errors, output.errors_format))
    return [(path, chosen) for path, chosen in targets if path is not None]


def _check_holds_results(path: Path, chosen: str, way_out: str) -> None:
    try:
        with path.open("rb") as file:
            start = file.read(_START)
        holds = not start or (chosen in _HOLDS and _HOLDS[chosen](path, start))
    except OSError as error:
        raise UsageError(f"can't write {path}: {error.strerror or error}") from error
    if not holds:
        kind = "results" if chosen == "jsonl" else f"results as {chosen}"
        tell = ", and plain text never tells" if chosen == "txt" else ""
        raise UsageError(f"{path} exists and does not hold {kind}{tell}: {way_out}")


def _holds_jsonl(_path: Path, start: bytes) -> bool:
    line = start.partition(b"\n")[0]
    return bool(_RESULT_LINE.match(line) or _JOINED_LINE.match(line))


def _holds_openai(_path: Path, start: bytes) -> bool:
    return _OPENAI_LINE.match(start) is not None


def _holds_table(delimiter: str) -> Callable[[Path, bytes], bool]:
    def holds(_path: Path, start: bytes) -> bool:
        try:
            header = next(csv.reader(start.decode(errors="replace").splitlines(keepends=True), delimiter=delimiter))
        except (csv.Error, StopIteration):
            return False
        suffix = re.sub(r"^.*?(_\d+)?$", r"\1", header[-1]) if header else ""
        names = [name + suffix for name in flat_names()]
        return [name for name in header if name in names] == names

    return holds


def _holds_parquet(path: Path, _start: bytes) -> bool:
    from batchq.formats.rendering.parquet import MARK

    arrow, parquet = import_arrow(), import_arrow("pyarrow.parquet")
    try:
        found: Mapping[bytes, bytes] | None = parquet.read_schema(path).metadata
    except (arrow.ArrowException, OSError):
        return False
    return MARK.items() <= (found or {}).items()


_HOLDS: Final[Mapping[str, Callable[[Path, bytes], bool]]] = {
    "jsonl": _holds_jsonl,
    "csv": _holds_table(","),
    "tsv": _holds_table("\t"),
    "openai": _holds_openai,
    "parquet": _holds_parquet,
}
