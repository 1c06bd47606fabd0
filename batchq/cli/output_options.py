"""The options that say what an output is to be: shared by `collect` and `run`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from batchq.collecting import Output
    from batchq.formats import ReadOptions

F = TypeVar("F", bound=Callable[..., Any])

# The same as formats.OUTPUT_FORMATS, which costs imports that --help can do without.
OUTPUT_FORMATS = ("jsonl", "csv", "tsv", "parquet", "txt", "openai")

_OUTPUT = (
    click.option(
        "--format", "output_format", type=click.Choice(OUTPUT_FORMATS), help="Else told by the name of FILE, or jsonl."
    ),
    click.option("--with-prompt", is_flag=True, help="Put each prompt beside its result."),
    click.option(
        "--with-input", type=click.Path(path_type=Path), metavar="INPUT",
        help="Put the columns of INPUT, which was enqueued, before the results.",
    ),
    click.option(
        "--guard-formulas", is_flag=True,
        help="Put ' before texts of CSV and TSV that a spreadsheet program would run, such as =1+1.",
    ),
    click.option(
        "--errors", type=click.Path(path_type=Path), metavar="FILE",
        help="Write failed and cancelled jobs there instead.",
    ),
)  # fmt: skip


def output_options(command: F) -> F:
    """Add the options that `output_of` takes, by their names."""
    for option in reversed(_OUTPUT):
        command = option(command)
    return command


def output_options_of(options: dict[str, Any]) -> dict[str, Any]:
    """Take what `output_of` wants out of a command's options."""
    names = ("output_format", "with_prompt", "with_input", "guard_formulas", "errors")
    return {name: options.pop(name) for name in names}


def output_of(
    out: Path | None,
    *,
    output_format: str | None,
    with_prompt: bool,
    with_input: Path | None,
    guard_formulas: bool,
    errors: Path | None,
    read: ReadOptions | None = None,
) -> Output:
    """Return the output that the options ask for; `out` is standard output where it is None or `-`.

    `read` says how the input is to be read.
    """
    from batchq.collecting import Output
    from batchq.formats import ReadOptions

    path = None if out == Path("-") else out
    return Output(
        path, output_format, with_prompt, with_input, read or ReadOptions(), errors, guard_formulas=guard_formulas
    )
