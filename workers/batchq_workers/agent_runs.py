"""Runs of an agent that a user has made, with the model, the client and the tools that it has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Generic, TypeVar, cast

from pydantic import TypeAdapter
from pydantic_ai import capture_run_messages
from pydantic_ai.agent import AbstractAgent
from pydantic_ai.capabilities import ReinjectSystemPrompt
from pydantic_ai.models import Model
from pydantic_ai.settings import ModelSettings
from pydantic_ai.usage import RunUsage
from pydantic_core import PydanticSerializationError

from batchq.worker import Answer, Json, Reject, Request, Steer
from batchq_workers.agent_accounting import account_of_failed_run, account_of_run, leave_account
from batchq_workers.agent_conversation import Conversation, conversation
from batchq_workers.agent_errors import decide, undecided
from batchq_workers.answer_body import broken_off, cut_off, withheld

DepsT = TypeVar("DepsT")
OutputT = TypeVar("OutputT")

_any_value: TypeAdapter[object] = TypeAdapter(Any)


class AgentRuns(Generic[DepsT, OutputT]):
    """Answers requests with runs of one agent."""

    def __init__(self, agent: AbstractAgent[DepsT, OutputT], deps: DepsT | None) -> None:
        """Run `agent`, each time with `deps`."""
        self._agent = agent
        self._deps = deps

    async def answer(self, request: Request) -> Answer:
        """Answer one request with one run. What it used up is told however it ends."""
        asked = _asked(request)
        usage = RunUsage()
        with capture_run_messages() as messages:
            try:
                run = await self._agent.run(
                    asked.prompt,
                    message_history=asked.history,
                    # A history would else stand in for the agent's own system prompt.
                    capabilities=[ReinjectSystemPrompt()] if asked.history else None,
                    deps=cast("DepsT", self._deps),
                    model_settings=without_retries(self._agent.model),
                    usage=usage,
                    infer_name=False,
                )
            except Steer as steer:
                steer.answer = steer.answer or account_of_failed_run(messages, usage)
                raise
            except Exception as error:
                decision = decide(error) or undecided(error)
                decision.answer = account_of_failed_run(messages, usage)
                raise decision from error
            except BaseException as ended:  # a cancellation: it has to stay one
                leave_account(ended, account_of_failed_run(messages, usage))
                raise
        return _checked(run.output, account_of_run(None, messages, usage))


def without_retries(model: object) -> ModelSettings | None:
    """Return the settings that keep a model's SDK from trying again by itself, for this run and no other.

    The agent and its client stay as they are. A model whose SDK has no such setting would warn of it.
    """
    if isinstance(model, Model) and all("max_retries" in leaf.unsupported_settings for leaf in _leaves(model)):
        return None
    return ModelSettings(max_retries=0)


def _leaves(model: Model) -> Iterator[Model]:
    inner = getattr(model, "models", None) or [getattr(model, "wrapped", None)]
    for one in inner:
        if isinstance(one, Model):
            yield from _leaves(one)
        else:
            yield model


def _asked(request: Request) -> Conversation:
    """Read what the run is started with. Raises Reject for what is the agent's own to say, or can't be said."""
    own = [name for name in ("params", "system") if request.settings.get(name)]
    if isinstance(request.prompt, str):
        asked = Conversation((), (), request.prompt)
    else:
        own += sorted(request.prompt.keys() - {"messages"})
        asked = conversation(request.prompt.get("messages"))
    if asked.instructions:
        own.append("system message")
    if own:
        raise Reject(f"an agent has its own; set it there instead: {', '.join(own)}", error_class="bad_request")
    return asked


def _checked(output: object, answer: Answer) -> Answer:
    """Return the output as JSON, by the names that its schema has.

    Raises the decision on one that the model did not end as it should.
    """
    try:
        result = cast("Json", _any_value.dump_python(output, mode="json", by_alias=True))
    except PydanticSerializationError as error:
        reason = f"the agent's output can't be written as JSON: {error}"
        raise Reject(reason, error_class="bad_result", answer=answer) from error
    answer = replace(answer, result=result)
    if answer.finish_reason == "error":
        raise broken_off(answer)
    if answer.finish_reason == "content_filter":
        raise withheld(answer, "")
    # Of structured output, Pydantic AI has seen that it is whole.
    if answer.finish_reason == "length" and isinstance(output, str):
        raise cut_off(answer)
    return answer
