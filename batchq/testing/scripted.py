"""A worker that answers from a script, and remembers what it was asked."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

from batchq.worker import Answer, Json, Reject, Request

UNSCRIPTED = "unscripted"

Script: TypeAlias = Mapping[str, object] | Sequence[object] | Callable[..., object]


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a scripted worker. `attempt` counts from 1."""

    prompt: str | dict[str, Json]
    attempt: int
    custom_id: str | None
    position: int
    batch: str
    model: str


class _Steps:
    """What is done at one call after the other."""

    def __init__(self, steps: Iterable[object]) -> None:
        self._left = iter(steps)

    def next(self, request: Request) -> object:
        try:
            return next(self._left)
        except StopIteration:
            raise _unscripted(request) from None


class ScriptedWorker:
    """An async worker for tests.

    `answers` by prompt is a mapping: from the prompt, its custom_id, or the text of its last message, to what is
    done at every call, or to a list of what is done at one after the other. `answers` by call order is a list.
    `answers` that is a function is given every prompt. What is done is to return a value or an `Answer`, to raise
    an exception, or to call a function with the prompt. A list as an answer is written `Answer([…])`.

    A call that the script has nothing for fails its job, and `drain` says so.
    """

    def __init__(self, answers: Script) -> None:
        """Start with no calls."""
        self.calls: list[Call] = []
        self._by_prompt: dict[str, object] = {}
        self._by_call: _Steps | None = None
        self._function: Callable[..., object] | None = None
        if isinstance(answers, Mapping):
            for prompt, step in answers.items():
                self._by_prompt[prompt] = _Steps(step) if isinstance(step, list) else step
        elif callable(answers):
            self._function = answers
        else:
            self._by_call = _Steps(answers)

    async def __call__(self, request: Request) -> Json | Answer:
        """Do what the script says."""
        self.calls.append(
            Call(request.prompt, request.attempt, request.custom_id, request.position, request.batch, request.model)
        )
        step = self._step(request)
        if isinstance(step, BaseException):
            raise step.with_traceback(None)
        if isinstance(step, type) and issubclass(step, BaseException):
            raise step
        answer = step(request.prompt) if callable(step) else step
        return cast("Json | Answer", await answer if inspect.isawaitable(answer) else answer)

    @property
    def prompts(self) -> list[str | dict[str, Json]]:
        """What it was asked, in order."""
        return [call.prompt for call in self.calls]

    def _step(self, request: Request) -> object:
        if self._function is not None:
            return self._function
        if self._by_call is not None:
            return self._by_call.next(request)
        for name in _names(request):
            if name in self._by_prompt:
                step = self._by_prompt[name]
                return step.next(request) if isinstance(step, _Steps) else step
        raise _unscripted(request)


def _names(request: Request) -> Iterator[str]:
    """Yield by what a script may mean a request."""
    if isinstance(request.prompt, str):
        yield request.prompt
    if request.custom_id is not None:
        yield request.custom_id
    messages = request.body.get("messages")
    if isinstance(messages, list) and messages and isinstance(messages[-1], dict):
        content = messages[-1].get("content")
        if isinstance(content, str):
            yield content


def _unscripted(request: Request) -> Reject:
    asked = f"{request.prompt!r} (position {request.position} of {request.batch}, attempt {request.attempt})"
    return Reject(f"the script has no answer for {asked}", error_class=UNSCRIPTED)
