"""The formats that results are written in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from batchq.formats.rendering.flat import flat_names
from batchq.formats.rendering.jsonl import JsonlRenderer, render_jsonl
from batchq.formats.rendering.layout import Column, Entry, Kind, Layout
from batchq.formats.rendering.openai import OpenAIRenderer
from batchq.formats.rendering.sheet import BinaryFile, RenderedSheet, Renderer, Sheet
from batchq.formats.rendering.table import TableRenderer
from batchq.formats.rendering.text import TextRenderer

__all__ = [
    "OUTPUT_FORMATS",
    "BinaryFile",
    "Column",
    "Entry",
    "Kind",
    "Layout",
    "Renderer",
    "Sheet",
    "flat_names",
    "output_format_of",
    "render_jsonl",
    "renderer_for",
    "sheet_for",
]

OUTPUT_FORMATS: Final = ("jsonl", "csv", "tsv", "parquet", "txt", "openai")

_BY_EXTENSION: Final[Mapping[str, str]] = {".csv": "csv", ".tsv": "tsv", ".parquet": "parquet", ".txt": "txt"}


def output_format_of(path: Path | None) -> str:
    """Return the format that a file's name tells: JSON Lines where it tells none."""
    return _BY_EXTENSION.get(path.suffix.lower(), "jsonl") if path is not None else "jsonl"


def renderer_for(output_format: str, layout: Layout) -> Renderer | None:
    """Return what renders a format's rows; None for Parquet, which is no sequence of rows."""
    match output_format:
        case "jsonl":
            return JsonlRenderer(layout)
        case "csv":
            return TableRenderer(layout, ",")
        case "tsv":
            return TableRenderer(layout, "\t")
        case "txt":
            return TextRenderer()
        case "openai":
            return OpenAIRenderer(layout)
        case _:
            return None


def sheet_for(output_format: str, file: BinaryFile, layout: Layout) -> Sheet:
    """Return what writes a format's rows into a file."""
    renderer = renderer_for(output_format, layout)
    if renderer is not None:
        return RenderedSheet(file, renderer)
    from batchq.formats.rendering.parquet import ParquetSheet

    return ParquetSheet(file, layout)
