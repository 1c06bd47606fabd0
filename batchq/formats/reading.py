"""Reads the prompts of a file, in the format that its name or the user tells."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import BinaryIO

from batchq.errors import UsageError
from batchq.formats.delimited import delimited_lines, read_delimited
from batchq.formats.jsonl import jsonl_lines, read_jsonl
from batchq.formats.lines import text_lines
from batchq.formats.parquet import parquet_lines, read_parquet
from batchq.formats.prompts import Prompts
from batchq.formats.rows import BadRow, ReadOptions, Row, Rows
from batchq.formats.text import read_text

FORMATS = ("jsonl", "txt", "csv", "tsv", "parquet")

_BY_EXTENSION = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".txt": "txt",
    ".text": "txt",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_UNPACK = {".gz": "gzip -dc", ".bz2": "bzip2 -dc", ".xz": "xz -dc", ".zst": "zstd -dc"}
_SHEETS = frozenset({".xlsx", ".xls", ".ods"})
_DELIMITERS = {"csv": ",", "tsv": "\t"}
_BUFFER = 1 << 20


def read_rows(path: Path, options: ReadOptions, *, name: str | None = None) -> Iterator[Row | BadRow]:
    """Yield the rows of an input file in order, the bad ones too; memory does not grow with their number.

    `name` is what messages call the file. Raises UsageError, at the first row or at the end, for a file
    that holds no prompts at all.
    """
    shown = name or str(path)
    input_format = format_of(path, options)
    with _opened(path, shown) as file:
        found = yield from _read(input_format, path, file, options, shown)
    if not found:
        raise UsageError(f"{shown} is empty: it needs at least one prompt")


def row_lines(path: Path, options: ReadOptions, *, name: str | None = None) -> Iterator[int]:
    """Yield the line on which each row of an input file starts, the bad ones too, without a look at what they say."""
    shown = name or str(path)
    input_format = format_of(path, options)
    with _opened(path, shown) as file:
        if input_format == "parquet":
            yield from parquet_lines(path, name=shown)
        elif input_format == "jsonl":
            yield from jsonl_lines(text_lines(file, shown))
        elif input_format == "txt":
            yield from (line for line, _ in enumerate(text_lines(file, shown), 1))
        else:
            yield from delimited_lines(text_lines(file, shown), name=shown, delimiter=_DELIMITERS[input_format])


def format_of(path: Path, options: ReadOptions) -> str:
    """Return the format of an input file; raise UsageError where it can't be told, or has no fields to name."""
    found = options.input_format or _format_by_name(path)
    if found not in FORMATS:
        raise UsageError(f"there is no input format `{found}`: --input-format takes {', '.join(FORMATS)}")
    if found == "txt":
        for flag, value in (
            ("--id-field", options.id_field),
            ("--prompt-field", options.prompt_field),
            ("--image-field", options.image_field),
        ):
            if value is not None:
                raise UsageError(f"{path} is plain text, which has no fields: leave out {flag}")
    return found


def _format_by_name(path: Path) -> str:
    extension = path.suffix.lower()
    if extension == ".json":
        raise UsageError(
            f"{path} is JSON, and batchq reads JSON Lines: one value per line. Convert it with"
            f" `jq -c '.[]'`, or pass --input-format jsonl if it is JSON Lines already"
        )
    if extension in _UNPACK:
        inner = _BY_EXTENSION.get(path.with_suffix("").suffix.lower(), "jsonl")
        command = f"{_UNPACK[extension]} {quote(str(path))} | batchq enqueue - --input-format {inner}"
        raise UsageError(f"{path} is compressed: unpack it, or `{command}`")
    if extension in _SHEETS:
        raise UsageError(f"{path} is a spreadsheet: save it as CSV")
    found = _BY_EXTENSION.get(extension)
    if found is None:
        raise UsageError(f"the name of {path} does not tell its format: pass --input-format ({', '.join(FORMATS)})")
    return found


def _read(input_format: str, path: Path, file: BinaryIO, options: ReadOptions, name: str) -> Rows:
    prompts = Prompts(options, path.parent)
    if input_format == "parquet":
        return read_parquet(path, options, prompts, name=name)
    lines = text_lines(file, name)
    if input_format == "jsonl":
        return read_jsonl(lines, options, prompts)
    if input_format == "txt":
        return read_text(lines, options, prompts)
    return read_delimited(lines, options, prompts, name=name, delimiter=_DELIMITERS[input_format])


@contextmanager
def _opened(path: Path, name: str) -> Iterator[BinaryIO]:
    """Open a file; raise UsageError where that can't be done, or where reading it fails."""
    try:
        with path.open("rb", buffering=_BUFFER) as file:
            yield file
    except FileNotFoundError:
        raise UsageError(f"{name} does not exist: check the name of the input file") from None
    except IsADirectoryError:
        raise UsageError(f"{name} is a directory: name a file in it") from None
    except PermissionError:
        raise UsageError(f"{name} can't be read: this user has no permission; check its mode") from None
    except OSError as error:
        raise UsageError(f"{name} can't be read: {error.strerror or error}") from error
