"""Runs of a model that a batch names, through Pydantic AI on a client of our own."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import aiohttp
from pydantic_ai import Agent, NativeOutput, StructuredDict
from pydantic_ai.exceptions import UserError
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.models.openrouter import OpenRouterModel
from pydantic_ai.profiles import ModelProfile
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.providers.openrouter import OpenRouterProvider
from pydantic_ai.settings import ModelSettings

from batchq.worker import Answer, Endpoint, Halt, Prices, Reject, Request, Steer, is_openrouter
from batchq_workers.agent_accounting import leave_account, summed
from batchq_workers.agent_conversation import conversation
from batchq_workers.agent_errors import decide, undecided
from batchq_workers.endpoint_client import redacted
from batchq_workers.json_values import Object
from batchq_workers.judged_calls import CHAT, Calls, recorded_calls
from batchq_workers.openrouter import body_for, priced
from batchq_workers.unreached import not_http

if TYPE_CHECKING:
    import openai

    from batchq.worker import Json

_AGENTS = 256

# What a run can't do justice to, unless it has the value that is the default anyway.
_NOT_FOR_RUNS: dict[str, tuple[Json, ...]] = {
    "n": (None, 1),
    "stream": (None, False),
    "tools": (None, []),
    "tool_choice": (None,),
    "functions": (None, []),
    "function_call": (None,),
}


class ModelRuns:
    """Answers requests for any model of one endpoint."""

    def __init__(self, endpoint: Endpoint, client: openai.AsyncOpenAI) -> None:
        """Ask `endpoint` with `client`, whose responses `judged_calls.judge` sees."""
        self._endpoint = endpoint
        self._client = client
        self._prices = Prices(endpoint.base_url, endpoint.prices)
        self._agent = lru_cache(_AGENTS)(self._new_agent)

    async def answer(self, request: Request) -> Answer:
        """Answer one request with one run. All parameters of its body are sent as they stand."""
        body = body_for(self._endpoint, request)
        parameters = _parameters(request, body)
        asked = conversation(body.get("messages"))
        schema = request.settings.get("schema")
        agent = self._agent(str(body.get("model")), json.dumps(schema) if isinstance(schema, dict) else None)
        with recorded_calls(self._endpoint.api_key) as calls:
            try:
                run = await agent.run(
                    asked.prompt,
                    message_history=asked.history,
                    instructions=list(asked.instructions),
                    model_settings=ModelSettings(extra_body=parameters),
                    infer_name=False,
                )
            except Exception as error:
                # What aiohttp's transport does not translate, the SDK lets through.
                garbled = not_http(error) if isinstance(error, aiohttp.ClientError) else None
                decision = calls.decision or decide(error) or garbled or undecided(error)
                raise self._told(decision, calls, request.model) from error
            except BaseException as ended:  # a cancellation: it has to stay one
                leave_account(ended, self._so_far(calls, request.model))
                raise
        return self._sum(run.output, calls.answers, request.model)

    def _new_agent(self, model: str, schema: str | None) -> Agent[None, Any]:
        output_type = _output_type(schema)
        # The request asks for the schema by itself, whatever Pydantic AI knows of the model.
        profile = ModelProfile(supports_json_schema_output=True)
        if not is_openrouter(self._endpoint.base_url):
            openai_model = OpenAIChatModel(model, provider=OpenAIProvider(openai_client=self._client), profile=profile)
            return Agent(openai_model, output_type=output_type)
        provider = OpenRouterProvider(openai_client=self._client)
        try:
            return Agent(OpenRouterModel(model, provider=provider, profile=profile), output_type=output_type)
        except UserError as error:  # a name without a slash
            raise Halt(error.message, error_class="unknown_model") from error

    def _told(self, decision: Steer, calls: Calls, model: str) -> Steer:
        """Return a decision that carries all that the run has cost, and the answer that came last."""
        decision.answer = self._so_far(calls, model, *([decision.answer] if decision.answer else []))
        decision.args = (redacted(str(decision), self._endpoint.api_key),)
        return decision

    def _so_far(self, calls: Calls, model: str, *ended_by: Answer) -> Answer | None:
        answers = [*calls.answers, *ended_by]
        return self._sum(answers[-1].result, answers, model) if answers else None

    def _sum(self, result: Json, answers: list[Answer], model: str) -> Answer:
        return summed(result, [priced(answer, self._prices, model) for answer in answers])


def _output_type(schema: str | None) -> Any:  # noqa: ANN401 - Pydantic AI's specification of an output is no type
    if schema is None:
        return str
    try:
        return NativeOutput(StructuredDict(json.loads(schema)))
    except UserError:  # of a schema that refers to itself; what comes is held to it anyway
        return str


def _parameters(request: Request, body: Object) -> Object:
    if request.url != CHAT:
        raise Reject(f"the pydantic_ai worker asks {CHAT} only, not {request.url}", error_class="bad_request")
    for name, harmless in _NOT_FOR_RUNS.items():
        if body.get(name) not in harmless:
            reason = f"a Pydantic AI run can't take {name!r}; the openrouter worker sends it as it is"
            raise Reject(reason, error_class="bad_request")
    return {name: value for name, value in body.items() if name not in {"model", "messages"}}
