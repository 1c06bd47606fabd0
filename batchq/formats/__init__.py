"""The files that batchq reads prompts from and writes results to."""

from batchq.formats.atomic import AtomicFile, is_stream
from batchq.formats.reading import FORMATS, format_of, read_rows, row_lines
from batchq.formats.rendering import OUTPUT_FORMATS, Column, output_format_of, render_jsonl
from batchq.formats.rows import BadRow, ReadOptions, Row
from batchq.formats.same_file import refuse_queue, same_file
from batchq.formats.set_aside import BadLines
from batchq.formats.tables import rows_of_table
from batchq.formats.template import PromptTemplate

__all__ = [
    "FORMATS",
    "OUTPUT_FORMATS",
    "AtomicFile",
    "BadLines",
    "BadRow",
    "Column",
    "PromptTemplate",
    "ReadOptions",
    "Row",
    "format_of",
    "is_stream",
    "output_format_of",
    "read_rows",
    "refuse_queue",
    "render_jsonl",
    "row_lines",
    "rows_of_table",
    "same_file",
]
