"""A part of the screen: a line of titles, and blocks of lines that are shown whole or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

Block = Sequence[Text]


@dataclass(frozen=True, slots=True)
class Section:
    """What there is to show of one kind; `left_out` says what is not even among the blocks."""

    header: Text
    blocks: Sequence[Block]
    left_out: str = ""

    @property
    def wanted(self) -> int:
        """How many lines it would take."""
        return 1 + sum(len(block) for block in self.blocks) + bool(self.left_out)

    def lines(self, height: int, first: int = 0) -> list[Text]:
        """Return up to so many lines, from the block `first` on; the last one tells what is not shown."""
        if height < 2:
            return []
        shown: list[Text] = []
        blocks = self.blocks[first:]
        for index, block in enumerate(blocks):
            is_last = index == len(blocks) - 1 and not self.left_out
            room = height - 1 - len(shown) - (not is_last)
            if len(block) > room:
                shown += block[: room if not shown else 0]
                return [self.header, *shown, self._rest(len(blocks) - index - (not index and room > 0))]
            shown += block
        return [self.header, *shown, *([Text(self.left_out, style="dim")] if self.left_out else [])]

    def _rest(self, count: int) -> Text:
        told = f"… and {count:,} more" if count else "…"
        return Text(f"{told}; {self.left_out}" if self.left_out else told, style="dim")
