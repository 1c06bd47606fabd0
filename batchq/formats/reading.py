"""Reads the prompts of a file, in the format that its name or the user tells."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from batchq.errors import UsageError
from batchq.formats.delimited import read_delimited
from batchq.formats.jsonl import read_jsonl
from batchq.formats.rows import BadRow, ReadOptions, Row, Rows
from batchq.formats.text import read_text

FORMATS = ("jsonl", "txt", "csv", "tsv")

_BY_EXTENSION = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".txt": "txt",
    ".text": "txt",
    ".csv": "csv",
    ".tsv": "tsv",
}
_BOM = b"\xef\xbb\xbf"
_BUFFER = 1 << 20


def read_rows(path: Path, options: ReadOptions, *, name: str | None = None) -> Iterator[Row | BadRow]:
    """Yield the rows of an input file in order, the bad ones too; memory does not grow with their number.

    `name` is what messages call the file. Raises UsageError, at the first row or at the end, for a file
    that holds no prompts at all.
    """
    shown = name or str(path)
    input_format = _format_of(path, options)
    try:
        with path.open("rb", buffering=_BUFFER) as file:
            found = yield from _read(input_format, _without_bom(file), options, shown)
    except FileNotFoundError:
        raise UsageError(f"{shown} does not exist: check the name of the input file") from None
    except IsADirectoryError:
        raise UsageError(f"{shown} is a directory: name a file in it") from None
    except PermissionError:
        raise UsageError(f"{shown} can't be read: this user has no permission; check its mode") from None
    except OSError as error:
        raise UsageError(f"{shown} can't be read: {error.strerror or error}") from error
    if not found:
        raise UsageError(f"{shown} is empty: it needs at least one prompt")


def _read(input_format: str, lines: Iterable[bytes], options: ReadOptions, name: str) -> Rows:
    if input_format == "jsonl":
        return read_jsonl(lines, options)
    if input_format == "txt":
        return read_text(lines)
    return read_delimited(lines, options, name=name, delimiter="," if input_format == "csv" else "\t")


def _without_bom(file: Iterable[bytes]) -> Iterator[bytes]:
    lines = iter(file)
    first = next(lines, None)
    return lines if first is None else chain((first.removeprefix(_BOM),), lines)


def _format_of(path: Path, options: ReadOptions) -> str:
    known = ", ".join(FORMATS)
    found = options.input_format
    if found is None:
        extension = path.suffix.lower()
        if extension == ".json":
            raise UsageError(
                f"{path} is JSON, and batchq reads JSON Lines: one value per line. Convert it with"
                f" `jq -c '.[]'`, or pass --input-format jsonl if it is JSON Lines already"
            )
        found = _BY_EXTENSION.get(extension)
        if found is None:
            raise UsageError(f"the name of {path} does not tell its format: pass --input-format ({known})")
    if found not in FORMATS:
        raise UsageError(f"there is no input format `{found}`: --input-format takes {known}")
    if found == "txt":
        for flag, value in (("--id-field", options.id_field), ("--prompt-field", options.prompt_field)):
            if value is not None:
                raise UsageError(f"{path} is plain text, which has no fields: leave out {flag}")
    return found
