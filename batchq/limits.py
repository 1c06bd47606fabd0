"""Changes to the limits of a lane: what is asked for, over what it has."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchq.errors import UsageError

if TYPE_CHECKING:
    from batchq.jobs import Lane
    from batchq.pacing import Limits
    from batchq.store import Store

NO_LIMIT = 0.0
LEAST = 0.001  # a call in 17 hours
MOST = 2**31 - 1


@dataclass(frozen=True, slots=True)
class LimitChanges:
    """Limits per minute, calls at once and in a burst; None stays as it is, NO_LIMIT lifts one."""

    rpm: float | None = None
    tpm: float | None = None
    max_inflight: float | None = None
    burst: float | None = None

    def __bool__(self) -> bool:
        """Whether anything is asked for."""
        return any(value is not None for value in (self.rpm, self.tpm, self.max_inflight, self.burst))

    def over(self, lane: Lane) -> Limits:
        """Return the limits of a lane that has others, with these in their places."""
        from batchq.pacing import Limits

        def chosen(asked: float | None, present: float | None) -> float | None:
            return (present if asked is None else asked) or None

        in_flight = chosen(self.max_inflight, lane.max_inflight)
        return Limits(
            chosen(self.rpm, lane.rpm),
            chosen(self.tpm, lane.tpm),
            None if in_flight is None else max(1, int(in_flight)),
            chosen(self.burst, lane.asked_burst),
        )


async def change_limits(
    store: Store, worker: str, base_url: str, model: str, changes: LimitChanges, *, forget: bool = False
) -> Lane:
    """Give a lane the limits that are asked for, and return it; without any, only look it up."""
    from batchq.jobs import Lane

    key = (worker, base_url, model)
    known = {(lane.worker, lane.base_url, lane.model): lane for lane in await store.lanes()}
    present = known.get(key) or Lane(worker, base_url, model, None, None, None, None)
    if not changes and not forget:
        return present
    return await store.set_limits(worker, base_url, model, changes.over(present), forget=forget)


def limits_given(**given: float | None) -> LimitChanges:
    """Return the changes that a caller asks for; infinity lifts a limit. Raises UsageError for what can't be one."""
    for name, value in given.items():
        if value is not None and value != math.inf and not LEAST <= value <= MOST:
            raise UsageError(
                f"{name} is {value!r}: it must be between {LEAST:g} and {MOST:,}, or math.inf for no limit"
            )
    changes = LimitChanges(**{name: NO_LIMIT if value == math.inf else value for name, value in given.items()})
    check_limits(changes)
    return changes


def check_limits(changes: LimitChanges) -> None:
    """Raise UsageError for numbers that are none of calls."""
    if changes.max_inflight is not None and changes.max_inflight % 1:
        raise UsageError("max_inflight counts calls: a whole number")
    if changes.burst is not None and 0 < changes.burst < 1:
        raise UsageError("burst must let one call start at least")
