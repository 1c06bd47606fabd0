"""The calls that a Pydantic AI run makes on our own client, each judged as the openrouter worker judges its own.

Pydantic AI may ask a model several times, and reads only what it needs of an answer. So each response is
classified before it gets to see it: an error inside an HTTP 200, a cut-off answer, the cost.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from batchq.worker import Answer, Steer
from batchq_workers.classify import classify
from batchq_workers.endpoint_client import redacted_body

if TYPE_CHECKING:
    import httpx2

CHAT = "/v1/chat/completions"


@dataclass(slots=True)
class Calls:
    """What the calls of one run brought: answers, and the decision that ended it, if one did; the key is in neither."""

    key: str | None = field(default=None, repr=False)
    answers: list[Answer] = field(default_factory=list)
    decision: Steer | None = None


_calls: ContextVar[Calls] = ContextVar("calls")


@contextmanager
def recorded_calls(key: str | None) -> Iterator[Calls]:
    """Record the calls that are made with `key` within this block."""
    calls = Calls(key)
    token = _calls.set(calls)
    try:
        yield calls
    finally:
        _calls.reset(token)


async def judge(response: httpx2.Response) -> None:
    """Record a response. Raises the decision on one that is no good answer, which ends the run."""
    calls = _calls.get()
    body = redacted_body(await response.aread(), calls.key)
    verdict = classify(response.status_code, response.headers, body, CHAT)
    if isinstance(verdict, Steer):
        calls.decision = verdict
        raise verdict
    calls.answers.append(verdict)
