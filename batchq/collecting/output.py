"""What an output is to be: where, in which format, with what beside the results."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from batchq.errors import UsageError
from batchq.formats import OUTPUT_FORMATS, ReadOptions, output_format_of


@dataclass(frozen=True, slots=True)
class Output:
    """Where the results of a batch go, and what stands beside them.

    `path` None is standard output. The name of the file tells the `format` where that is None. `with_input` is
    the file that the batch was enqueued from, read as `read` says, whose rows stand before the results.
    `errors` takes the jobs that failed or were cancelled. `unique` leaves out those that follow another one, `most`
    those at that position and behind it; what is written while a batch runs has them all. `guard_formulas` puts an
    apostrophe before texts of CSV and TSV that a spreadsheet program would run.
    """

    path: Path | None = None
    format: str | None = None
    with_prompt: bool = False
    with_input: Path | None = None
    read: ReadOptions = field(default_factory=ReadOptions)
    errors: Path | None = None
    unique: bool = False
    most: int | None = None
    guard_formulas: bool = False

    @property
    def actual_format(self) -> str:
        """The format of the results."""
        return self.format or output_format_of(self.path)

    @property
    def errors_format(self) -> str:
        """The format of the jobs that failed: that of the results, but JSON Lines where those are only texts."""
        return "jsonl" if self.actual_format == "txt" else self.actual_format

    def check(self) -> None:
        """Raise UsageError where one part of it contradicts another."""
        chosen = self.actual_format
        if chosen not in OUTPUT_FORMATS:
            raise UsageError(f"there is no output format `{chosen}`: --format takes {', '.join(OUTPUT_FORMATS)}")
        if self.with_prompt and self.with_input is not None:
            raise UsageError("--with-input has the prompts already: leave out --with-prompt")
        if self.guard_formulas and chosen not in {"csv", "tsv"}:
            raise UsageError(f"the format {chosen} has no formulas: --guard-formulas goes with csv and tsv")
        for flag, given in (("--with-input", self.with_input is not None), ("--with-prompt", self.with_prompt)):
            if given and chosen in {"txt", "openai"}:
                raise UsageError(f"the format {chosen} has no place for {flag}: take jsonl, csv or parquet")
