"""Dollars as people write them, as the nano-dollars that batchq counts in."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation

from batchq.errors import UsageError

MOST_DOLLARS = 1_000_000_000


def nano_dollars(amount: Decimal | float | str) -> int:
    """Return an amount like 5, 0.50 or "$5" in nano-dollars. Raises UsageError for what is none."""
    from batchq.jobs import NANO

    try:
        dollars = Decimal(str(amount).strip().removeprefix("$"))
    except InvalidOperation:
        raise UsageError(f"{amount!r} is not an amount of dollars; write 5 or 0.50") from None
    if not dollars.is_finite() or not 0 < dollars <= MOST_DOLLARS:
        raise UsageError(f"{amount!r} is not an amount between 0 and {MOST_DOLLARS:,} dollars")
    nano = round(dollars * NANO)
    if not nano:
        raise UsageError(f"{amount!r} is less than a billionth of a dollar")
    return nano
