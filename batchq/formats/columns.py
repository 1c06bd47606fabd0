"""Which columns of a table hold the prompt, the id and the image: the same rules for CSV and Parquet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from batchq.errors import UsageError
from batchq.formats.rows import ID_COLUMN, PROMPT_COLUMN, ReadOptions, names


def check_columns(name: str, header: Sequence[str], options: ReadOptions) -> None:
    """Raise UsageError where two columns have one name, or one that was asked for is not there."""
    doubled = [column for column, count in Counter(header).items() if count > 1]
    if doubled:
        raise UsageError(f"{name} has more than one column {names(doubled)}: give each its own name")
    for flag, asked in (
        ("--prompt-field", options.prompt_field),
        ("--id-field", options.id_field),
        ("--image-field", options.image_field),
    ):
        if asked is not None and asked not in header:
            raise UsageError(f"{name} has no column `{asked}`, only {names(header)}: name one of them with {flag}")


def prompt_column(name: str, header: Sequence[str], options: ReadOptions) -> str:
    """Return the column of the prompt: the one asked for, `prompt`, or the only one; raise UsageError for none.

    Under a template it is only a name for what the template makes.
    """
    if options.prompt_field is not None:
        return options.prompt_field
    if PROMPT_COLUMN in header or options.template is not None:
        return PROMPT_COLUMN
    if len(header) == 1:
        return header[0]
    raise UsageError(f"{name} has no column `prompt`, only {names(header)}: name the prompt's with --prompt-field")


def id_column(header: Sequence[str], options: ReadOptions) -> str | None:
    """Return the column of the custom_id, if there is one."""
    wanted = options.id_field or ID_COLUMN
    return wanted if wanted in header else None
