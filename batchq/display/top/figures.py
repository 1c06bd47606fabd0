"""Rates, money and bars as `top` writes them."""

from __future__ import annotations

from rich.text import Text

from batchq.jobs import NANO, Counts

_DONE, _FAILED, _LEFT = ("━", "╍", "─")
_SECONDS_PER_HOUR = 3_600


def rate(per_second: float | None) -> str:
    """Return jobs per second, or per minute where they are few; nothing where nothing moves."""
    if not per_second or per_second < 0:
        return ""
    return f"{per_second:,.1f}/s" if per_second >= 1 else f"{per_second * 60:,.1f}/min"


def dollars_per_hour(nano_per_second: float | None) -> str:
    """Return what a pace costs; nothing where that is nothing, or not known."""
    if not nano_per_second or nano_per_second < 0:
        return ""
    amount = nano_per_second * _SECONDS_PER_HOUR / NANO
    return f"${amount:,.2f}/h" if amount >= 1 else f"${amount:,.4f}/h"


def percent(counts: Counts) -> str:
    """Return how much of a batch has ended: 100% is all of it, and nothing less."""
    return f"{100 * counts.final // counts.total}%" if counts.total else "-"


def bar(counts: Counts, width: int) -> Text:
    """Return how much of a batch is done, and has failed, as a bar that can be read without colours."""
    total = max(counts.total, 1)
    ended = width * counts.final // total
    # A few failures among many jobs are seen, too.
    failed = min(ended, -(-width * counts.failed // total))
    return Text.assemble(
        (_DONE * (ended - failed), "green"), (_FAILED * failed, "red"), (_LEFT * (width - ended), "bright_black")
    )
