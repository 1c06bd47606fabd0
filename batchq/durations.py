"""Times as people write them: 90s, 15m, 2h, 30d."""

from __future__ import annotations

import re

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0, "": 1.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|)")
MAX_DURATION_DAYS = 3650


def parse_duration(text: str) -> float:
    """Return the seconds of a time like 90s or 2h; a bare number counts seconds. Raises ValueError."""
    match = _DURATION.fullmatch(text.strip().lower())
    if match is None:
        raise ValueError(f"{text!r} is not a duration; write 90s, 15m, 2h or 30d")
    seconds = float(match[1]) * _UNITS[match[2]]
    if seconds > MAX_DURATION_DAYS * _UNITS["d"]:
        raise ValueError(f"{text!r} is too long: at most {MAX_DURATION_DAYS}d")
    return seconds
