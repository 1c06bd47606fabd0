"""The options that say how to read an input: its format, its prompts, and which of its rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from batchq.cli.options import MAX_INTEGER

if TYPE_CHECKING:
    from batchq.cli.request_options import Asked
    from batchq.formats import PromptTemplate, ReadOptions
    from batchq.source import Selection

# The same as formats.FORMATS, which costs imports that --help can do without.
INPUT_FORMATS = ("jsonl", "txt", "csv", "tsv", "parquet")

READING = (
    click.option(
        "--prompt", metavar="TEXT",
        help='A prompt in which the row\'s fields stand, e.g. "Classify: {{ text }}" (Jinja2).',
    ),
    click.option(
        "--template", type=click.Path(path_type=Path), metavar="FILE", help="The same from a file, e.g. prompt.j2."
    ),
    click.option("--id-field", metavar="NAME", help="The field or column of each row's custom_id."),
    click.option("--prompt-field", metavar="NAME", help="The field or column of the prompt."),
    click.option(
        "--image-field", metavar="NAME", help="The field or column of an image beside the prompt: a path or a URL."
    ),
    click.option(
        "--input-format", type=click.Choice(INPUT_FORMATS), help="Else told by the file's name."
    ),
    click.option(
        "--limit", type=click.IntRange(1, MAX_INTEGER), metavar="INTEGER", help="Take only the first good rows."
    ),
    click.option(
        "--sample", type=click.IntRange(1, MAX_INTEGER), metavar="INTEGER",
        help="Take only so many rows, at random; the same ones each time.",
    ),
)  # fmt: skip


def read_options(asked: Asked) -> ReadOptions:
    """Return how the input is to be read; raise UsageError for a template that can't be used."""
    from batchq.formats import ReadOptions

    template = _template(asked)
    if template is not None and template.is_constant and asked.image_field is None:
        raise click.UsageError(
            f"{template.name} has no field of a row in it, so that all rows would ask the same:"
            " write the name of a field in double braces, e.g. {{ text }}"
        )
    return ReadOptions(asked.input_format, asked.prompt_field, asked.id_field, template, asked.image_field)


def selection_of(asked: Asked) -> Selection:
    """Return which rows are wanted."""
    from batchq.source import Selection

    return Selection(asked.limit, asked.sample)


def _template(asked: Asked) -> PromptTemplate | None:
    from batchq.formats import PromptTemplate

    if asked.prompt is not None and asked.template is not None:
        raise click.UsageError("--prompt and --template both say what the prompt is: leave one out")
    if asked.template is not None:
        return PromptTemplate.of_file(asked.template)
    return None if asked.prompt is None else PromptTemplate(asked.prompt)
