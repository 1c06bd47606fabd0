"""The files that batchq reads prompts from and writes results to."""

from batchq.formats.output import AtomicFile, is_stream, refuse_queue, render_jsonl, same_file
from batchq.formats.reading import FORMATS, read_rows
from batchq.formats.rows import BadRow, ReadOptions, Row

__all__ = [
    "FORMATS",
    "AtomicFile",
    "BadRow",
    "ReadOptions",
    "Row",
    "is_stream",
    "read_rows",
    "refuse_queue",
    "render_jsonl",
    "same_file",
]
