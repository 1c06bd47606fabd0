"""What OpenRouter says of a key: what is left on it, and until when it is good.

GET /key: openrouter.ai/docs/api-reference/limits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta

from batchq.doctor.finding import Finding, Level

_FEW_DOLLARS, _FEW_PART = 1.0, 0.05
_SOON = timedelta(days=7)
_WHERE = "openrouter.ai/settings/keys"
_CREDITS = "openrouter.ai/settings/credits"

_Said = tuple[Level, str, str]


def judge_key(told: str, data: Mapping[str, object], now: datetime | None = None) -> Finding:
    """Say what is left on a key. Its label is not told: it holds the beginning and the end of the key."""
    said = [*_kind(data), *_left(data), *_free(data), *_expiry(data, now or datetime.now(UTC))]
    worst = max(said, key=lambda each: _RANK[each[0]])
    what = "; ".join([told, *(text for _, text, _ in said)])
    advice = "; ".join(dict.fromkeys(to_do for level, _, to_do in said if level is worst[0] and to_do))
    return Finding("endpoint", worst[0], what, "" if worst[0] is Level.OK else advice)


_RANK = {Level.OK: 0, Level.WARNING: 1, Level.ERROR: 2}


def _kind(data: Mapping[str, object]) -> Iterator[_Said]:
    if data.get("is_management_key") is True or data.get("is_provisioning_key") is True:
        yield Level.ERROR, "it is a management key, which can't call models", f"make an API key at {_WHERE}"
    else:
        yield Level.OK, "the key is accepted", ""


def _left(data: Mapping[str, object]) -> Iterator[_Said]:
    used = _number(data.get("usage"))
    spent = "" if used is None else f", {_dollars(used)} used so far"
    limit, left, scope = _number(data.get("limit")), _number(data.get("limit_remaining")), "its limit"
    budget = data.get("effective_budget")
    of_budget = _number(budget.get("remaining_usd")) if isinstance(budget, Mapping) else None
    if isinstance(budget, Mapping) and of_budget is not None and (left is None or of_budget < left):
        limit, left, scope = _number(budget.get("limit_usd")), of_budget, "its budget"
    if left is None:
        yield Level.OK, f"it has no limit of its own{spent}", ""
        return
    resets = data.get("limit_reset")
    again = f", reset {resets}" if isinstance(resets, str) and resets.isalpha() else ""
    text = f"{_dollars(left)} of {scope}{'' if limit is None else f' of {_dollars(limit)}'} left{again}{spent}"
    if left <= 0:
        yield Level.ERROR, text, f"raise it at {_WHERE}, or see your credit at {_CREDITS}"
    elif left < _FEW_DOLLARS or (limit is not None and left < limit * _FEW_PART):
        yield Level.WARNING, text, f"raise it at {_WHERE} before it is used up: lanes halt then"
    else:
        yield Level.OK, text, ""


def _free(data: Mapping[str, object]) -> Iterator[_Said]:
    free = data.get("free_model_daily_requests")
    told = "free tier: no credit was ever bought" if data.get("is_free_tier") is True else ""
    if isinstance(free, Mapping):
        left, limit = _number(free.get("remaining")), _number(free.get("limit"))
        if left is not None and limit is not None:
            text = f"{left:,.0f} of {limit:,.0f} requests to :free models left today"
            used_up = left <= 0 and bool(told)
            yield (
                (Level.WARNING if used_up else Level.OK),
                text,
                f"they are back at 0:00 UTC; or buy credit at {_CREDITS}",
            )
    if told:
        yield Level.OK, told, ""


def _expiry(data: Mapping[str, object], now: datetime) -> Iterator[_Said]:
    said = data.get("expires_at")
    if not isinstance(said, str):
        return
    try:
        at = datetime.fromisoformat(said)
    except ValueError:
        return
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    day = f"{at:%Y-%m-%d}"
    if at <= now:
        yield Level.ERROR, f"it expired on {day}", f"make another at {_WHERE}"
    elif at <= now + _SOON:
        yield Level.WARNING, f"it expires on {day}", f"make another at {_WHERE}"
    else:
        yield Level.OK, f"good until {day}", ""


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _dollars(amount: float) -> str:
    return f"${amount:,.2f}"
