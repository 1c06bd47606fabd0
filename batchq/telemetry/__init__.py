"""OpenTelemetry, where it is set up: each attempt is a span, its duration and its tokens are measured.

Never a prompt or an answer, nor the words of an error. Where it is not set up, nothing is imported and nothing made.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Protocol

from batchq.jobs import Claim, Outcome


class Observed(Protocol):
    """An attempt that is being observed."""

    def end(self, outcome: Outcome, seconds: float) -> None:
        """Note how it ended. Raises nothing."""


Observe = Callable[[Claim], Observed | None]


def find_observer(runner_id: str) -> Observe | None:
    """Return what observes a runner's attempts; None where nobody in this process has set OpenTelemetry up."""
    if "opentelemetry.trace" not in sys.modules:
        return None
    from opentelemetry import trace

    if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider | trace.NoOpTracerProvider):
        return None
    from batchq.telemetry.attempts import Observer

    return Observer(runner_id).observe
