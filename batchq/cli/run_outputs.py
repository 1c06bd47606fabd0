"""Where `run` writes: a file for each model, none of them one that is still needed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batchq.cli.output_options import output_of

if TYPE_CHECKING:
    from batchq.cli.request_options import Asked
    from batchq.collecting import Output

_MODEL = "{model}"
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")


def outputs_of(out: Path, asked: Asked, shape: dict[str, Any]) -> list[Output]:
    """Return the output of each model's answers."""
    from batchq.formats import ReadOptions

    if shape["with_input"] is not None and (asked.limit is not None or asked.sample is not None):
        raise click.UsageError("--with-input joins all rows of the input: leave out --limit and --sample")
    read = ReadOptions(asked.input_format, id_field=asked.id_field)
    errors = shape.pop("errors")
    outs = _for_models(out, asked.models, "-o")
    aside = [None] * len(outs) if errors is None else _for_models(errors, asked.models, "--errors")
    return [output_of(target, errors=failed, read=read, **shape) for target, failed in zip(outs, aside, strict=True)]


def _for_models(out: Path, models: tuple[str, ...], flag: str) -> list[Path]:
    """Return the file for each model: {model} in the name stands for it."""
    chosen = list(dict.fromkeys(models))
    if len(chosen) > 1 and _MODEL not in out.name:
        raise click.UsageError(
            f"several models need several files: put {_MODEL} into the name,"
            f" e.g. {flag} {out.stem}-{_MODEL}{out.suffix}"
        )
    if _MODEL in out.name and not chosen:
        raise click.UsageError(f"{_MODEL} in the name of the file stands for --model, which is not given")
    names = [_NOT_IN_NAMES.sub("_", model) for model in chosen]
    found = [out.with_name(out.name.replace(_MODEL, name)) for name in names] or [out]
    if len(set(found)) < len(found):
        raise click.UsageError(f"two of the models have the same name in {out}: run them one by one")
    return found


def spare_input(output: Output, source: Path | None, skip_bad: Path | None) -> None:
    """Raise a usage error where the results would replace the input, or the bad rows that were set aside."""
    from batchq.formats import same_file

    for out, flag in ((output.path, "-o"), (output.errors, "--errors")):
        if out is not None and source is not None and same_file(out, source):
            raise click.UsageError(f"{out} is the input itself: name another file with {flag}")
        if out is not None and skip_bad is not None and same_file(out, skip_bad):
            raise click.UsageError(f"{out} can't hold both the results ({flag}) and the bad rows (--skip-bad)")
