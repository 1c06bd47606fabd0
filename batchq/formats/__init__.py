"""The files that batchq reads prompts from and writes results to."""

from batchq.formats.output import AtomicFile, render_jsonl
from batchq.formats.reading import FORMATS, read_rows
from batchq.formats.rows import BadRow, ReadOptions, Row

__all__ = ["FORMATS", "AtomicFile", "BadRow", "ReadOptions", "Row", "read_rows", "render_jsonl"]
