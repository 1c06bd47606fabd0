"""How many calls one process makes beside each other in one lane: adaptive concurrency, for providers that limit it.

Additive increase, multiplicative decrease. It grows only while it is what holds the process back, and is
cut once per cool-down, by a 429 to a call that had more beside it than calls that were let through lately:
a 429 to a smaller number is the lane's rate's affair, or nobody's.
"""

from __future__ import annotations

CUT = 0.7
COOL_DOWN_SECONDS = 2.0
# A wide window comes back in good time: it grows by so much per call, and is full with this part of it.
_LEAST_GROWTH, _FULL = 0.05, 0.8
_LATELY_SECONDS = 10.0


class Window:
    """The concurrency of one lane in this process. Times are seconds of one steady clock."""

    def __init__(self, size: int) -> None:
        """Start as wide as the process is."""
        self.size = float(size)
        self.running = 0
        self._safe, self._safe_until = 0, 0.0
        self._cut_at = 0.0
        self._cool_until = 0.0

    @property
    def room(self) -> int:
        """How many more calls may start."""
        return max(0, int(self.size) - self.running)

    def begin(self) -> int:
        """Note that a call starts; return how many run with it."""
        self.running += 1
        return self.running

    def end(self) -> None:
        """Note that a call ended."""
        self.running -= 1

    def let_through(self, beside: int, began: float, now: float, most: int) -> None:
        """Note that a call was answered which began as one of `beside`; grow up to `most` if the window was full."""
        if beside >= self._safe or now > self._safe_until:
            self._safe, self._safe_until = beside, now + max(_LATELY_SECONDS, 2 * (now - began))
        if beside >= _FULL * int(self.size):
            known = self.size < self._safe  # so many at once were let through before: no need to feel the way
            self.size = min(float(most), self.size + (1.0 if known else max(_LEAST_GROWTH, 1 / self.size)))

    def refused(self, beside: int, began: float, now: float, after: float | None) -> None:
        """Note a 429 to a call that began as one of `beside`; `after` is what the provider asked for."""
        if began < self._cut_at or now < self._cool_until:
            return
        if beside <= self._safe and now <= self._safe_until:
            return
        self.size = max(1.0, self.size * CUT)
        self._cut_at = now
        self._cool_until = now + max(COOL_DOWN_SECONDS, after or 0.0)
