"""Pydantic AI as a worker: its own test models, and over HTTP against the fake provider's ledger."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import importlib
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fake_provider import Provider, running_provider
from openai import AsyncOpenAI
from processes import bench
from pydantic import BaseModel, Field
from pydantic_ai import Agent, ModelRetry, NativeOutput, RunContext, Tool, exceptions
from pydantic_ai.capabilities import NativeTool, Thinking
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.models.openrouter import OpenRouterModel
from pydantic_ai.models.test import TestModel
from pydantic_ai.native_tools import MCPServerTool
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.providers.openrouter import OpenRouterProvider
from pydantic_ai.toolsets import FunctionToolset

from batchq import open_queue, prompt_map
from batchq.discovery import find_worker, wrap_worker
from batchq.errors import ConfigurationError
from batchq.jobs import Json
from batchq.process import gather_workers
from batchq.request import RequestKeys, canonical, encode, merge_body, prompt_of
from batchq.worker import Answer, Endpoint, Halt, Plugin, Reject, Request, RetryLater, Steer, Throttled, Usage
from batchq_workers import judged_calls, openrouter
from batchq_workers import pydantic_ai as room
from batchq_workers.agent_fingerprint import SUPPORTED
from batchq_workers.pydantic_ai import agent_worker

FIXTURES = Path(__file__).parent / "fixtures" / "llm"
MODEL = "openai/gpt-4o-mini"
NOWHERE = Endpoint("default", "http://127.0.0.1:1/v1")
SCHEMA: dict[str, Json] = {
    "type": "object",
    "properties": {"echo": {"type": "string"}},
    "required": ["echo"],
    "additionalProperties": False,
}

TestModel.__test__ = False  # type: ignore[attr-defined] - pytest would collect it


class Review(BaseModel):
    score: int
    tags: list[str] = []


@dataclasses.dataclass
class Point:
    x: int


CLIENTS: list[AsyncOpenAI] = []


@asynccontextmanager
async def closing_clients() -> AsyncIterator[None]:
    """Close what a test has made, as its script would: an agent closes only what it opened itself."""
    yield
    while CLIENTS:
        await CLIENTS.pop().close()


def request_of(payload: Json, model: str = MODEL, **settings: Json) -> Request:
    url = str(settings.get("url") or "/v1/chat/completions")
    body = merge_body(model, settings, payload)
    return Request(prompt_of(payload), body, url, model, settings, "b", 0, None, 1)


def answers(plugin: Plugin, *payloads: Json, at: Endpoint = NOWHERE, **settings: Json) -> list[Answer | Exception]:
    """Ask a worker, as a process would; what it raised stands in place of its answer."""

    async def main() -> list[Any]:
        async with wrap_worker(plugin, "w").open(at) as handler, closing_clients():
            asked = [handler(request_of(payload, **settings)) for payload in payloads]
            return await asyncio.gather(*asked, return_exceptions=True)

    return asyncio.run(main())


def answer(plugin: Plugin, payload: Json = "hi", *, at: Endpoint = NOWHERE, **settings: Json) -> Any:
    return answers(plugin, payload, at=at, **settings)[0]


def saying(*texts: str, seen: list[list[ModelMessage]] | None = None) -> FunctionModel:
    """A model that says these one after the other, and the last again and again."""
    said = iter(texts)
    last = [""]

    def say(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        if seen is not None:
            seen.append(list(messages))
        last[0] = next(said, last[0])
        return ModelResponse([TextPart(last[0])])

    return FunctionModel(say)


def failing(error: Exception) -> FunctionModel:
    def fail(_messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        raise error

    return FunctionModel(fail)


# An agent's output as JSON


@pytest.mark.parametrize(
    ("output_type", "expected"),
    [
        (str, "success (no tool calls)"),
        (bool, False),
        (list[int], [0]),
        (Review, {"score": 0, "tags": []}),
        (list[Review], [{"score": 0, "tags": []}]),
        (Point, {"x": 0}),
    ],
)
def test_an_output_is_json_of_its_type(output_type, expected):
    found = answer(agent_worker(Agent(TestModel(), output_type=output_type)))
    assert found.result == expected
    assert json.loads(json.dumps(found.result)) == expected


def test_what_a_run_used_up_is_the_sum_of_its_calls():
    agent = Agent(TestModel(), output_type=Review)

    @agent.tool_plain
    def look() -> str:
        return "seen"

    found = answer(agent_worker(agent))
    assert found.usage.input_tokens > 50
    assert found.usage.output_tokens > 0
    assert (found.meta["model"], found.finish_reason, found.cost) == ("test", None, None)


def test_an_output_that_json_can_not_hold_is_said():
    def make(_text: str) -> object:
        return object()

    from pydantic_ai import TextOutput

    found = answer(agent_worker(Agent(TestModel(), output_type=TextOutput(make))))
    assert isinstance(found, Reject)
    assert "can't be written as JSON" in str(found)
    assert found.answer.usage.output_tokens


class Aliased(BaseModel):
    city: str = Field(alias="City")


class Renamed(BaseModel):
    places: list[Aliased] = Field(alias="Places")


def test_an_output_has_the_names_that_its_schema_has():
    agent = Agent(TestModel(custom_output_args={"Places": [{"City": "Bonn"}]}), output_type=Renamed)
    found = answer(agent_worker(agent))
    assert found.result == {"Places": [{"City": "Bonn"}]}
    assert found.result.keys() == agent.output_json_schema()["properties"].keys()
    assert Renamed.model_validate(found.result)


def test_text_that_was_cut_off_is_no_answer():
    def cut(_messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        return ModelResponse([TextPart("half a")], finish_reason="length")

    found = answer(agent_worker(Agent(FunctionModel(cut))))
    assert (type(found), found.error_class, found.answer.result) == (Reject, "truncated", "half a")


def test_dependencies_are_given_to_each_run():
    agent = Agent(TestModel(call_tools=["whose"]), deps_type=str)

    @agent.tool
    def whose(ctx: RunContext[str]) -> str:
        return f"of {ctx.deps}"

    assert answer(agent_worker(agent, deps="Ada")).result == '{"whose":"of Ada"}'


# Messages in place of a prompt


def test_messages_become_a_history_and_keep_the_agents_own_prompts():
    seen: list[list[ModelMessage]] = []
    agent = Agent(saying("fine", seen=seen), system_prompt="be brief", instructions="in Latin")
    messages = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": [{"type": "text", "text": "three"}]},
    ]
    assert answer(agent_worker(agent), {"messages": messages}).result == "fine"
    (sent,) = seen
    kinds = [[part.part_kind for part in message.parts] for message in sent]
    assert kinds == [["system-prompt", "user-prompt"], ["text"], ["user-prompt"]]
    assert isinstance(sent[-1], ModelRequest)
    assert sent[-1].instructions == "in Latin"


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        ({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]}, "its own.*system"),
        ({"messages": [{"role": "user", "content": "u"}], "temperature": 0}, "its own.*temperature"),
        ({"messages": [{"role": "user", "content": "u"}, {"role": "tool", "content": "u"}]}, "not the user's"),
        ({"messages": [{"role": "tool", "content": "t"}, {"role": "user", "content": "u"}]}, "role 'tool'"),
        ({"messages": [{"role": "user", "content": "u", "name": "Bob"}]}, "a message has name"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "input_audio"),
        ({"messages": [{"role": "user", "content": ""}]}, "is empty"),
        ({"messages": []}, "not the user's"),
        ({"body": {"input": "x"}}, "not the user's"),
    ],
)
def test_messages_that_a_run_can_not_take_are_refused_with_the_reason(payload, words):
    found = answer(agent_worker(Agent(TestModel())), payload)
    assert isinstance(found, Reject)
    assert re.search(words, str(found))


@pytest.mark.parametrize("settings", [{"system": "be brief"}, {"params": {"temperature": 0}}])
def test_what_the_agent_has_to_say_is_not_taken_from_the_batch(settings):
    found = answer(agent_worker(Agent(TestModel())), "hi", **settings)
    assert isinstance(found, Reject)
    assert str(found).endswith(next(iter(settings)))


# What makes its answers others


def make(**changes: Any) -> Agent[Any, Any]:
    tools = changes.pop("tools", [])
    made: dict[str, Any] = {
        "model": TestModel(model_name="one"),
        "instructions": "be brief",
        "system_prompt": "you are kind",
        "output_type": Review,
        "model_settings": {"temperature": 0.5, "stop_sequences": ["a", "b"]},
    }
    return Agent(tools=tools, **made | changes)


def dynamic() -> str:
    return "today"


def another() -> str:
    return "today"


def tool(x: int) -> str:
    """Look."""
    return str(x)


def wider_tool(x: int, y: int) -> str:
    """Look."""
    return str(x + y)


wider_tool.__name__ = wider_tool.__qualname__ = "tool"


class Longer(BaseModel):
    score: int
    why: str


VARIANTS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "model": {"model": TestModel(model_name="two")},
    "instructions": {"instructions": "be long"},
    "two instructions": {"instructions": ["be brief", "be brief"]},
    "instructions by a function": {"instructions": dynamic},
    "by another function": {"instructions": another},
    "system prompt": {"system_prompt": "you are rude"},
    "output type": {"output_type": Longer},
    "output mode": {"output_type": NativeOutput(Review)},
    "temperature": {"model_settings": {"temperature": 0.6, "stop_sequences": ["a", "b"]}},
    "settings of the model": {"model": TestModel(model_name="one", settings={"top_p": 0.5})},
    "a tool": {"tools": [tool]},
    "a tool of another schema": {"tools": [wider_tool]},
    "a toolset with instructions": {"toolsets": [FunctionToolset([tool], instructions="use it")]},
    "a toolset with a prefix": {"toolsets": [FunctionToolset([tool]).prefixed("my")]},
    "a capability": {"capabilities": [Thinking(effort="high")]},
    "another capability": {"capabilities": [Thinking(effort="low")]},
    "retries": {"retries": 4},
    "several models": {"model": FallbackModel(TestModel(model_name="one"), TestModel(model_name="two"))},
}


def key_of(agent: Agent[Any, Any]) -> str:
    worker = agent_worker(agent)
    settings = dict(worker.settings)
    assert json.loads(canonical(settings)) == settings
    return canonical([worker.model, settings])


def test_an_agent_that_would_answer_otherwise_has_another_key():
    keys = {name: key_of(make(**changes)) for name, changes in VARIANTS.items()}
    assert len(set(keys.values())) == len(VARIANTS)
    assert {name: key_of(make(**changes)) for name, changes in VARIANTS.items()} == keys


def test_what_is_registered_by_decorators_counts():
    def with_prompt() -> Agent[Any, Any]:
        agent = make()
        agent.system_prompt(dynamic)
        return agent

    def with_instructions() -> Agent[Any, Any]:
        agent = make()
        agent.instructions(dynamic)
        return agent

    def with_validator() -> Agent[Any, Any]:
        agent = make()
        agent.output_validator(tool)
        return agent

    keys = {key_of(one) for one in (make(), with_prompt(), with_instructions(), with_validator())}
    assert len(keys) == 4


def test_a_batch_of_an_edited_agent_has_other_keys_for_the_same_prompts():
    workers = [agent_worker(make(instructions=text)) for text in ("be brief", "be long", "be brief")]
    keys = [RequestKeys("w", "default", one.model, one.settings).key("hi", encode("hi")) for one in workers]
    assert keys[0] == keys[2] != keys[1]


def told_of(**changes: Any) -> str:
    return canonical(dict(agent_worker(make(**changes)).settings))


def searching(secret: str, query: str) -> str:
    """Search."""
    return secret + query


def search_with(secret: str) -> Tool[Any]:
    schema = {"type": "object", "properties": {"query": {"type": "string", "default": secret}}}
    return Tool.from_schema(functools.partial(searching, secret), "search", "Search.", schema)


@pytest.mark.parametrize("kind", ["cookie", "session_id", "bearer", "passphrase", "api_key", "client_secret", "auth"])
def test_a_credential_is_no_part_of_it(kind):
    first, second = (told_of(model_settings={"extra_body": {kind: value}}) for value in ("one-secret", "two-secret"))
    assert first == second
    assert kind in first


def test_nothing_that_may_hold_a_secret_can_be_read_in_it():
    server = MCPServerTool(id="s", url="https://example.com/?secret-token", authorization_token="secret-token")
    body = {"user": "secret-token", "nested": [{"x": "secret-token"}]}
    settings = {"extra_headers": {"Authorization": "Bearer secret-token"}, "extra_body": body, "max_tokens": 5}
    told = told_of(
        model_settings=settings,
        capabilities=[NativeTool(server)],
        tools=[search_with("secret-token")],
        instructions="secret-token",
    )
    assert "secret-token" not in told
    assert all(word in told for word in ("Authorization", "search", '"max_tokens":5'))


@pytest.mark.parametrize(
    "change",
    [
        lambda text: {"tools": [search_with(text)]},
        lambda text: {"model_settings": {"extra_body": {"user": text}}},
        lambda text: {"model_settings": {"extra_body": {"user": text.encode()}}},
        lambda text: {"capabilities": [NativeTool(MCPServerTool(id="s", url=f"https://{text}.com"))]},
    ],
)
def test_what_can_not_be_read_counts_all_the_same(change):
    assert told_of(**change("one")) == told_of(**change("one")) != told_of(**change("two"))


@pytest.mark.parametrize("of", ["agent", "toolset"])
def test_a_version_that_keeps_the_parts_elsewhere_is_refused(of):
    toolset = FunctionToolset([tool])
    agent = make(toolsets=[toolset])
    del (agent if of == "agent" else toolset)._instructions
    with pytest.raises(ConfigurationError, match=rf"_instructions.*pip install 'pydantic-ai-slim=={SUPPORTED}"):
        agent_worker(agent)


def test_the_version_that_is_named_is_the_one_that_is_asked_for():
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
    assert f">={SUPPORTED}," in project["project"]["optional-dependencies"]["pydantic-ai"][0]


SCRIPT = """
import sys
sys.path[:0] = {paths!r}
import test_pydantic_ai as it
print(it.key_of(it.make(**it.VARIANTS[{name!r}])))
"""


def test_it_is_the_same_in_every_process():
    name = "a tool"
    script = SCRIPT.format(paths=[str(Path(__file__).parent)], name=name)
    said = {
        subprocess.run(
            [sys.executable, "-c", script], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1
    assert "0x" not in said.pop()


def test_a_worker_is_named_after_its_agent():
    assert agent_worker(Agent(TestModel(), name="judge")).name == "agent:judge"
    assert agent_worker(Agent(TestModel())).name == "agent:agent"
    assert agent_worker(Agent(TestModel()), name="mine").name == "mine"
    assert agent_worker(Agent("test")).model == "test"


# Errors of a run


def http_error(kind: type[Exception] | None, status: int, body: object, **headers: str) -> exceptions.ModelHTTPError:
    return exceptions.ModelHTTPError.for_category(kind, status_code=status, model_name="m", body=body, headers=headers)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (exceptions.ModelRateLimitError("m", "slow", retry_after=7), (Throttled, "rate_limited", 7)),
        (exceptions.ModelOverloadedError("m", "busy"), (Throttled, "overloaded", None)),
        (exceptions.ModelUnavailableError("m", "away"), (Throttled, "overloaded", None)),
        (exceptions.ModelQuotaExceededError("m", "broke"), (Halt, "no_credit", None)),
        (exceptions.ModelAuthenticationError("m", "who"), (Halt, "bad_key", None)),
        (exceptions.ModelNotFoundError("m", "what"), (Halt, "not_found", None)),
        (exceptions.ModelContextWindowExceededError("m", "long"), (Reject, "context_length", None)),
        (exceptions.ModelRequestRejectedError("m", "no"), (Reject, "bad_request", None)),
        (exceptions.ModelTimeoutError("m", "late"), (RetryLater, "timeout", None)),
        (exceptions.ModelRequestTimeout("m", 3), (RetryLater, "timeout", None)),
        (exceptions.ModelConnectionError("m", "cut"), (RetryLater, "connection", None)),
        (exceptions.ModelServerError("m", "oops"), (RetryLater, "server_error", None)),
        (exceptions.ModelAPIError("m", "null choices"), (RetryLater, "broken_answer", None)),
        (exceptions.ContentFilterError("filtered", body="the whole answer"), (Reject, "content_filter", None)),
        (exceptions.UnexpectedModelBehavior("odd", body="the whole answer"), (RetryLater, "broken_answer", None)),
        (exceptions.UsageLimitExceeded("too much"), (Reject, "usage_limit", None)),
        (exceptions.UserError("not supported"), (Halt, "agent_misconfigured", None)),
        (
            http_error(exceptions.ModelRateLimitError, 429, {"message": "slow"}, **{"Retry-After": "4"}),
            (Throttled, "rate_limited", 4),
        ),
        (
            http_error(
                exceptions.ModelQuotaExceededError,
                402,
                {"message": "in flight", "metadata": {"reason": "in_flight_budget_exhausted"}},
            ),
            (Throttled, "in_flight_budget", None),
        ),
        (http_error(None, 400, {"error": {"type": "overloaded_error"}}), (Throttled, "overloaded", None)),
        (http_error(None, 500, "plain words"), (RetryLater, "server_error", None)),
        (http_error(None, 418, None), (Reject, "refused", None)),
    ],
)
def test_each_error_has_its_decision(error, expected):
    found = answer(agent_worker(Agent(failing(error))))
    assert isinstance(found, Steer), found
    assert (type(found), found.error_class, getattr(found, "after", None)) == expected
    assert "the whole answer" not in str(found)
    assert str(found)
    assert found.answer is None


def test_several_models_wait_as_long_as_one_of_them_may_do_better():
    models = [
        failing(http_error(exceptions.ModelAuthenticationError, 401, None)),
        failing(http_error(None, 503, "busy")),
    ]
    found = answer(agent_worker(Agent(FallbackModel(*models))))
    assert (type(found), found.error_class) == (Throttled, "overloaded")


def test_an_output_that_never_fits_is_tried_again_a_few_times_and_its_cost_told():
    found = answer(agent_worker(Agent(saying("no json"), output_type=NativeOutput(Review))))
    assert (type(found), found.error_class, found.at_most) == (RetryLater, "schema_mismatch", 3)
    assert "did not fit the output type" in str(found)
    assert found.answer.usage.output_tokens
    assert found.answer.result == "no json"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (LookupError("my own trouble"), ("LookupError", "LookupError: my own trouble")),
        (ValueError(), ("ValueError", "ValueError")),
        (TimeoutError(), ("timeout", "the call timed out")),
    ],
)
def test_what_the_users_own_tool_raises_is_tried_again_by_its_name_and_its_cost_told(error, expected):
    agent = Agent(TestModel())

    @agent.tool_plain
    def look() -> str:
        raise error

    found = answer(agent_worker(agent))
    assert isinstance(found, RetryLater)
    assert (found.error_class, str(found)) == expected
    assert found.at_most is None
    assert found.__cause__ is error
    assert found.answer.usage.output_tokens


@pytest.mark.anyio
@pytest.mark.parametrize("trouble", ["raises", "hangs"])
async def test_what_a_run_has_cost_is_kept_though_its_tool_brings_it_down(tmp_path, trouble):
    async def look() -> str:
        if trouble == "hangs":
            await asyncio.sleep(60)
        raise LookupError

    worker = agent_worker(Agent(TestModel(), tools=[look]), name="looking")
    async with open_queue(tmp_path / "q.db") as queue:
        await queue.enqueue(["hi"], batch="b", worker=worker, call_timeout=0.5, max_attempts=1)
        await queue.work(worker)
        result, attempts = await queue.job("b", 0)
    assert result.error.startswith("no answer within 0.5 s" if trouble == "hangs" else "LookupError")
    assert [attempt.usage.output_tokens for attempt in attempts] == [result.usage.output_tokens]
    assert result.usage.output_tokens


def test_a_tool_may_steer_and_what_was_spent_until_then_is_told():
    agent = Agent(TestModel())

    @agent.tool_plain
    def look() -> str:
        raise Reject("not worth it", error_class="mine")

    found = answer(agent_worker(agent))
    assert (type(found), found.error_class) == (Reject, "mine")
    assert found.answer.usage.output_tokens


def test_a_tool_that_asks_for_too_many_retries_is_a_broken_answer():
    agent = Agent(TestModel())

    @agent.tool_plain
    def look() -> str:
        raise ModelRetry("again")

    found = answer(agent_worker(agent))
    assert (type(found), found.error_class, found.at_most) == (RetryLater, "broken_answer", 3)


def test_an_agent_without_a_model_is_a_halt():
    assert isinstance(answer(agent_worker(Agent())), Halt)


# Over HTTP


@pytest.fixture(scope="module")
def running():
    with running_provider() as provider:
        yield provider


@pytest.fixture
def provider(running: Provider):
    """The provider in its first state, with an empty ledger."""
    before = running.behave()
    running.reset()
    yield running
    running.behave(**before)


def endpoint(provider: Provider) -> Endpoint:
    return Endpoint("default", provider.base_url)


def all_fixtures() -> list[str]:
    return sorted(path.stem for path in FIXTURES.glob("*.json"))


def told(found: Any) -> Any:
    if isinstance(found, Answer):
        return ("answer", found.usage, found.cost, found.finish_reason)
    paid = found.answer
    return (
        type(found).__name__,
        found.error_class,
        getattr(found, "after", None),
        getattr(found, "at_most", None),
        found.status,
        str(found),
        paid and (paid.result, paid.usage, paid.cost),
    )


def test_every_recorded_answer_is_judged_as_the_openrouter_worker_judges_it(provider):
    prompts = [f"[[fixture {name}]]" for name in all_fixtures()]
    ours = answers(room.plugin, *prompts, at=endpoint(provider))
    theirs = answers(openrouter.plugin, *prompts, at=endpoint(provider))
    assert len(ours) > 20
    for prompt, mine, other in zip(prompts, ours, theirs, strict=True):
        if isinstance(other, Steer) and getattr(other, "after", None):
            mine.after, other.after = round(mine.after, -1), round(other.after, -1)  # a date is nearer by now
        assert told(mine) == told(other), prompt


def record(provider: Provider, directory: Path, message: dict[str, Any], **usage: Any) -> None:
    """Have the provider answer `[[fixture recorded]]` with this message."""
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant"} | message}
    spent = {"prompt_tokens": 50, "completion_tokens": 30, "total_tokens": 80} | usage
    body = {"id": "gen-1", "object": "chat.completion", "created": 1, "model": MODEL, "provider": "Fake"}
    fixture = {"status": 200, "headers": {"content-type": "application/json"}}
    body |= {"choices": [choice], "usage": spent}
    (directory / "recorded.json").write_text(json.dumps(fixture | {"body": body}))
    provider.behave(fixtures=str(directory))


def test_a_tool_call_that_nobody_asked_for_is_a_broken_answer_and_paid_for(provider, tmp_path):
    call = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    record(provider, tmp_path, {"content": None, "tool_calls": [call]})
    found = answer(room.plugin, "[[fixture recorded]]", at=endpoint(provider))
    assert (type(found), found.error_class) == (RetryLater, "broken_answer")
    assert found.answer.usage.output_tokens


def test_a_model_is_asked_by_its_name(provider):
    found = answer(room.plugin, "hello", at=endpoint(provider))
    assert found.result == "echo: hello"
    assert found.meta["provider"] == "Fake"
    assert (found.meta["model"], found.finish_reason, found.estimated) == (MODEL, "stop", False)
    assert float(found.cost) == pytest.approx(provider.ledger()["cost"])
    assert found.response["choices"][0]["message"]["content"] == "echo: hello"


def test_a_schema_makes_the_answer_json(provider):
    provider.behave(answer="json")
    found = answer(room.plugin, "hello", at=endpoint(provider), schema=SCHEMA)
    assert (found.result, provider.ledger()["calls"]) == ({"echo": "hello"}, 1)


def test_a_schema_that_refers_to_itself_is_sent_all_the_same(provider):
    provider.behave(answer="json")
    schema: Json = {"$ref": "#/$defs/n", "$defs": {"n": {"type": "object", "properties": {"n": {"$ref": "#/$defs/n"}}}}}
    assert answer(room.plugin, "hello", at=endpoint(provider), schema=schema).result == '{"echo": "hello"}'


def test_an_answer_that_is_no_json_is_asked_for_once_more_and_both_are_paid_for(provider):
    provider.behave(answer="fixed:sorry")
    found = answer(room.plugin, "hello", at=endpoint(provider), schema=SCHEMA)
    assert (type(found), found.error_class, found.answer.result) == (RetryLater, "schema_mismatch", "sorry")
    ledger = provider.ledger()
    assert ledger["calls"] == 2
    assert float(found.answer.cost) == pytest.approx(ledger["cost"])


def test_without_a_cost_from_the_provider_a_price_list_gives_an_estimate(provider):
    provider.behave(no_cost=True)
    at = dataclasses.replace(endpoint(provider), prices="openai")
    found = answer(room.plugin, "hello", at=at, params={})
    assert found.estimated == (found.cost is not None)


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        ({"messages": [{"role": "user", "content": "u"}], "n": 2}, "can't take 'n'"),
        ({"messages": [{"role": "user", "content": "u"}], "stream": True}, "can't take 'stream'"),
        ({"messages": [{"role": "user", "content": "u"}], "tools": [{"type": "function"}]}, "can't take 'tools'"),
    ],
)
def test_what_a_run_can_not_do_justice_to_is_refused(provider, payload, words):
    found = answer(room.plugin, payload, at=endpoint(provider))
    assert isinstance(found, Reject)
    assert words in str(found)
    assert provider.ledger()["calls"] == 0


def test_only_the_chat_api_is_asked(provider):
    found = answer(room.plugin, "hello", at=endpoint(provider), url="/v1/responses")
    assert isinstance(found, Reject)
    assert "/v1/responses" in str(found)


def test_nothing_of_the_body_is_lost_or_changed_on_its_way(monkeypatch):
    import httpx2
    import openai

    sent: list[Any] = []

    def reply(request: httpx2.Request) -> httpx2.Response:
        sent.append((str(request.url), json.loads(request.content), request.headers["authorization"]))
        message = {"role": "assistant", "content": "{}"}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        body = {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": "m",
            "provider": "P",
            "choices": [choice],
        }
        return httpx2.Response(200, json=body)

    def client(**options: Any) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(transport=httpx2.MockTransport(reply), **options)

    monkeypatch.setattr(openai, "DefaultAioHttpClient", client)
    content = [
        {"type": "text", "text": "look"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk=", "detail": "low"}},
    ]
    payload: Json = {
        "messages": [
            {"role": "system", "content": "kind"},
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "two"},
            {"role": "user", "content": content},
        ],
        "max_tokens": 3,
        "provider": {"sort": "price"},
    }
    settings: dict[str, Json] = {"schema": SCHEMA, "params": {"temperature": 0, "reasoning": {"effort": "low"}}}
    for url in ("https://openrouter.ai/api/v1", "https://api.example.com/v1"):
        at = Endpoint("default", url, "sk-key-of-ours")
        request = request_of(payload, "anthropic/claude-x", **settings)
        found = answer(room.plugin, payload, at=at, model="anthropic/claude-x", **settings)
        assert found.result == {}, found
        asked, body, key = sent.pop()
        assert (asked, key) == (f"{url}/chat/completions", "Bearer sk-key-of-ours")
        assert body.pop("stream", False) is False
        assert body == openrouter.body_for(at, request)


def test_a_model_that_openrouter_can_not_have_halts():
    at = Endpoint("default", "https://openrouter.ai/api/v1", "sk-key-of-ours")
    found = answer(room.plugin, "hello", at=at, model="gpt-4o-mini")
    assert (type(found), found.error_class) == (Halt, "unknown_model")


def test_a_server_that_is_not_there_is_named():
    found = answer(room.plugin, "hello")
    assert (type(found), found.error_class) == (RetryLater, "connection")
    assert "can't connect to 127.0.0.1:1: Connection refused" in str(found)


def test_a_server_that_speaks_no_http_is_said_plainly():
    async def speak(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0\r\n")
        await writer.drain()
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(speak, "127.0.0.1", 0)
        at = Endpoint("default", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1")
        async with server, wrap_worker(room.plugin, "w").open(at) as handler:
            with pytest.raises(RetryLater, match="the answer is not HTTP") as failure:
                await handler(request_of("hello"))
            assert failure.value.error_class == "broken_answer"

    asyncio.run(main())


def test_a_key_is_needed_and_never_told(provider):
    with pytest.raises(ConfigurationError, match="OPENROUTER_API_KEY"):
        answer(room.plugin, at=Endpoint("default", "https://openrouter.ai/api/v1"))
    provider.behave(require_key="sk-another-key")
    at = dataclasses.replace(endpoint(provider), api_key="sk-my-own-secret")
    found = answer(room.plugin, "hello", at=at)
    assert (type(found), found.error_class) == (Halt, "bad_key")
    assert "sk-my-own-secret" not in str(found)


# An agent's own client


def own_client(provider: Provider) -> AsyncOpenAI:
    CLIENTS.append(AsyncOpenAI(base_url=provider.base_url, api_key="mine"))  # with the SDK's own two retries
    return CLIENTS[-1]


def own_agent(provider: Provider, **options: Any) -> Agent[Any, Any]:
    model = OpenRouterModel(MODEL, provider=OpenRouterProvider(openai_client=own_client(provider)))
    return Agent(model, **options)


def test_an_agent_answers_with_the_providers_own_cost(provider):
    provider.behave(answer='fixed:{"score": 4}')
    found = answer(agent_worker(own_agent(provider, output_type=NativeOutput(Review))), "hello")
    assert found.result == {"score": 4, "tags": []}
    assert float(found.cost) == pytest.approx(provider.ledger()["cost"])
    assert found.estimated is False
    assert found.meta.keys() == {"id", "provider", "model"}
    assert found.meta["provider"] == "Fake"


def test_cached_and_reasoning_tokens_and_a_cost_of_nothing_are_told(provider, tmp_path):
    details = {"prompt_tokens_details": {"cached_tokens": 40}, "completion_tokens_details": {"reasoning_tokens": 20}}
    record(provider, tmp_path, {"content": "yes"}, cost=0, is_byok=False, **details)
    found = answer(agent_worker(own_agent(provider)), "[[fixture recorded]]")
    assert found.usage == Usage(50, 30, 40, 20)
    assert (found.cost, found.estimated) == (0, False)


def test_an_estimate_stands_in_for_a_cost_that_nobody_told(provider):
    provider.behave(no_cost=True)
    model = OpenAIChatModel("gpt-4o-mini", provider=OpenAIProvider(openai_client=own_client(provider)))
    found = answer(agent_worker(Agent(model)), "hello")
    assert found.cost is None or found.estimated


@pytest.mark.parametrize("kind", [OpenRouterModel, OpenAIChatModel])
def test_one_429_is_one_call_and_its_wait_is_told(provider, kind):
    provider.behave(retry_after=3)
    client = own_client(provider)
    made = OpenRouterProvider if kind is OpenRouterModel else OpenAIProvider
    found = answer(agent_worker(Agent(kind(MODEL, provider=made(openai_client=client)))), "[[status 429]]")
    assert (type(found), found.error_class, found.after, found.status) == (Throttled, "rate_limited", 3, 429)
    assert provider.ledger()["calls"] == 1
    assert client.max_retries == 2


def test_an_agent_of_several_models_tries_each_once(provider):
    models = [OpenRouterModel(MODEL, provider=OpenRouterProvider(openai_client=own_client(provider))) for _ in range(2)]
    found = answer(agent_worker(Agent(FallbackModel(*models))), "[[status 500]]")
    assert (type(found), found.error_class) == (RetryLater, "server_error")
    assert provider.ledger()["calls"] == 2


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("[[status 400]]", (Reject, "bad_request", 400)),
        ("[[status 401]]", (Halt, "bad_key", 401)),
        ("[[status 402]]", (Halt, "no_credit", 402)),
        ("[[fixture err_402_in_flight_budget]]", (Throttled, "in_flight_budget", 402)),
        ("[[status 500]]", (RetryLater, "server_error", 500)),
        ("[[status 503]]", (Throttled, "overloaded", 503)),
        ("[[drop]]", (RetryLater, "connection", None)),
        ("[[html]]", None),
    ],
)
def test_an_agents_http_errors_are_decided_by_the_same_rules(provider, prompt, expected):
    found = answer(agent_worker(own_agent(provider)), prompt)
    if expected is None:
        assert isinstance(found, Answer)
        return
    assert (type(found), found.error_class, found.status) == expected
    assert provider.ledger()["calls"] == 1


@pytest.mark.parametrize(
    ("fixture", "expected"),
    [
        ("err200_choice_error", (RetryLater, "broken_answer")),
        ("err200_empty_completion", (RetryLater, "schema_mismatch")),
        ("err200_top_level", (RetryLater, "server_error")),
        ("err200_whitespace_only", (RetryLater, "broken_answer")),
        ("ok_content_filter", (Reject, "content_filter")),
        ("ok_length_truncated", (Reject, "truncated")),
    ],
)
def test_a_200_that_holds_no_good_answer_is_none(provider, fixture, expected):
    found = answer(agent_worker(own_agent(provider)), f"[[fixture {fixture}]]")
    assert (type(found), found.error_class) == expected


@pytest.mark.anyio
async def test_what_earlier_calls_of_a_run_have_cost_is_kept_when_a_later_one_hangs(provider, monkeypatch, tmp_path):
    # The first answer fits no schema, so it is asked once more.
    provider.behave(answer="fixed:no json")
    monkeypatch.setenv("BATCHQ_BASE_URL", provider.base_url)
    judge, judged = judged_calls.judge, asyncio.Event()

    async def hang_later(response: Any) -> None:
        if judged.is_set():
            await asyncio.sleep(60)
        await judge(response)
        judged.set()

    monkeypatch.setattr(judged_calls, "judge", hang_later)
    async with open_queue(tmp_path / "q.db") as queue:
        await queue.enqueue(
            ["hi"], batch="b", worker="pydantic_ai", model=MODEL, schema=SCHEMA, call_timeout=2, max_attempts=1
        )
        await queue.work("pydantic_ai")
        result, attempts = await queue.job("b", 0)
    assert result.error.startswith("no answer within 2 s")
    assert attempts[0].cost == result.cost
    assert attempts[0].cost > 0


def test_a_call_that_hangs_is_cancelled_at_its_deadline(provider):
    worker = agent_worker(own_agent(provider))

    async def main() -> None:
        async with wrap_worker(worker, "w").open(NOWHERE) as handler, closing_clients():
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(handler(request_of("[[hang]]")), 0.5)

    asyncio.run(main())


def test_an_agent_can_be_opened_again(provider):
    model = OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=provider.base_url, api_key="mine"))
    worker = agent_worker(Agent(model))
    assert [answer(worker, "hello").result for _ in range(2)] == ["echo: hello"] * 2


# Through the queue, in processes


def test_a_batch_is_answered_by_a_worker_process(provider, tmp_path):
    with bench(tmp_path, BATCHQ_BASE_URL=provider.base_url) as place:
        prompts = place.write_prompts(6)
        with prompts.open("a") as file:
            file.write(json.dumps({"prompt": "[[fail 1 429]] slow"}) + "\n")
        made = ["enqueue", str(prompts), "--batch", "b", "--worker", "pydantic_ai", "--model", MODEL]
        done = place.run(*made, "--system", "be brief", "--set", "temperature=0")
        assert done.returncode == 0, done.stderr
        done = place.run("worker", "--until-empty")
        assert done.returncode == 0, done.stderr
        rows = place.results("b")
        assert [row["result"] for row in rows][:2] == ["echo: prompt 0", "echo: prompt 1"]
        assert all(row["usage"]["input_tokens"] for row in rows)
        cost = sum(cost for (cost,) in place.query("SELECT cost FROM jobs"))
        assert cost == round(provider.ledger()["cost"] * 1e9)
        assert place.query("SELECT max(attempts) FROM jobs") == [(1,)]


def test_a_script_may_hold_an_agent_as_a_worker(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from pydantic_ai import Agent\n"
        "from pydantic_ai.models.test import TestModel\n"
        "from batchq_workers.pydantic_ai import agent_worker\n"
        "judge = agent_worker(Agent(TestModel(), output_type=bool))\n"
    )
    with bench(tmp_path) as place:
        prompts = place.write_prompts(3)
        done = place.run("enqueue", str(prompts), "--batch", "b", "--worker", "mine.py:judge")
        assert done.returncode == 0, done.stderr
        done = place.run("worker", "--until-empty", "--worker", "mine.py:judge")
        assert done.returncode == 0, done.stderr
        assert [row["result"] for row in place.results("b")] == [False] * 3


# Without the library


def test_looking_for_workers_does_not_import_the_library():
    script = (
        "import sys; from batchq.process import gather_workers; gather_workers([]); print('pydantic_ai' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert "pydantic_ai" in gather_workers([])


def test_without_the_library_it_is_said_what_to_install_and_other_workers_go_on(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pydantic_ai" else find_spec(name))
    monkeypatch.delitem(sys.modules, "batchq_workers.pydantic_ai")
    with pytest.raises(ConfigurationError, match=r"pip install 'batchq\[pydantic-ai\]'"):
        find_worker("pydantic_ai")
    assert {"echo", "openrouter"} <= gather_workers([]).keys()
    assert "pydantic_ai" not in gather_workers([])


@pytest.mark.anyio
async def test_prompt_map_asks_an_edited_agent_again_and_no_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen: list[list[ModelMessage]] = []

    def judge(instructions: str) -> Plugin:
        return agent_worker(Agent(saying("yes", seen=seen), instructions=instructions, name="judge"))

    for instructions, calls in (("be brief", 2), ("be brief", 2), ("be kind", 4), ("be brief", 4)):
        rows = await prompt_map(["a", "b", "a"], worker=judge(instructions), verbose=False)
        assert [row["result"] for row in rows] == ["yes"] * 3
        assert len(seen) == calls


def test_run_takes_an_agent_of_a_script_and_what_makes_its_answers_others(tmp_path):
    script = """
from pydantic_ai import Agent
from pydantic_ai.models.test import TestModel
from batchq_workers.pydantic_ai import agent_worker

judge = agent_worker(Agent(TestModel(custom_output_text="yes"), instructions="be brief"))
"""
    with bench(tmp_path) as place:
        path = place.write_prompts(2)
        (tmp_path / "agents.py").write_text(script)
        command = ("run", str(path), "-o", "out.jsonl", "--worker", "agents.py:judge")
        assert place.run(*command).returncode == 0
        assert place.run(*command).returncode == 0
        (tmp_path / "agents.py").write_text(script.replace("brief", "kind"))
        assert place.run(*command).returncode == 0
        assert [size for (size,) in place.query("SELECT size FROM batches")] == [2, 2]
        assert place.query("SELECT count(*) FROM attempts") == [(4,)]
