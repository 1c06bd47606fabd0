"""What makes an agent's answers others, as JSON: a part of the key of every request that it answers.

It is the same in every process. Functions count by name, not by code; headers and what else may be a key,
not by value; other texts, such as instructions, by a digest, since it is stored to be compared.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any
from urllib.parse import urlsplit

from pydantic_ai import Agent, TemplateStr, Tool
from pydantic_ai.agent import AbstractAgent
from pydantic_ai.models import Model
from pydantic_ai.toolsets import AbstractToolset, FunctionToolset

from batchq.worker import ConfigurationError, Json
from batchq_workers.described import described, digest_of, name_of_type
from batchq_workers.json_values import Object

# The first version of Pydantic AI that keeps an agent's parts where they are read here, and the one tried last.
SUPPORTED = "2.68"

AnyAgent = AbstractAgent[Any, Any]

# What Pydantic AI gives to every agent by itself.
_OF_EVERY_AGENT = frozenset({"ToolSearch", "PendingMessageDrainCapability"})
_OF_TOOLSETS = (
    "approval_required_func", "filter_func", "metadata", "name_map", "prefix", "prepare_func", "tool_defs",
    "tool_names", "toolset_func",
)  # fmt: skip


def fingerprint(agent: AnyAgent) -> Object:
    """Describe an agent's model, instructions, output, settings and tools.

    Raises ConfigurationError where this version of Pydantic AI has no such parts: what is left out would count as
    unchanged, and old answers be taken for new ones.
    """
    try:
        return _parts(agent)
    except AttributeError as error:
        raise ConfigurationError(
            f"Pydantic AI {version('pydantic-ai-slim')} does not keep an agent's parts where batchq reads them"
            f" ({error}): pip install 'pydantic-ai-slim=={SUPPORTED}.*'"
        ) from error


def _parts(agent: AnyAgent) -> Object:
    inner = _innermost(agent)
    told: Object = {
        "model": _model(agent.model),
        "output": {"type": described(agent.output_type), "schema": _schema(agent.output_json_schema())},
        "tools": _tools(agent.toolsets),
        "capabilities": _capabilities(agent),
    }
    if isinstance(inner, Agent):
        told |= _own_parts(inner)
    return told


def model_name(model: object) -> str:
    """Return the name of an agent's model: an object, the string that stands for one, or none."""
    if isinstance(model, Model):
        return model.model_name
    return model if isinstance(model, str) else ""


def _own_parts(agent: Agent[Any, Any]) -> Object:
    """Describe what an Agent keeps to itself: it has no public way to read what it was made with."""
    functions = [runner.function for runner in agent._system_prompt_functions]  # noqa: SLF001
    validators = [validator.function for validator in agent._output_validators]  # noqa: SLF001
    return {
        "instructions": _instructions(agent),
        "system_prompt": described([*agent._system_prompts, *functions]),  # noqa: SLF001
        "output_validators": described(validators),
        "model_settings": described(agent.model_settings),
        "retries": {"tools": agent._max_tool_retries, "output": agent._max_output_retries},  # noqa: SLF001
        "end_strategy": agent.end_strategy,
    }


def _innermost(agent: AnyAgent) -> object:
    inner: object = agent
    while (wrapped := getattr(inner, "wrapped", None)) is not None:
        inner = wrapped
    return inner


def _model(model: object) -> Json:
    if not isinstance(model, Model):
        return model_name(model)
    several = getattr(model, "models", None)
    if isinstance(several, list):  # a FallbackModel
        return [_model(one) for one in several]
    told: Object = {"name": model.model_name, "system": model.system, "settings": described(model.settings)}
    if model.base_url:
        url = urlsplit(model.base_url)
        told["base_url"] = f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}"  # without a password
    return told


def _instructions(holder: Agent[Any, Any] | FunctionToolset[Any]) -> Json:
    """Describe the instructions of an agent or a toolset: texts, functions, and the sources of templates."""
    given = [getattr(item, "instruction", item) for item in holder._instructions]  # noqa: SLF001
    return described([item._source if isinstance(item, TemplateStr) else item for item in given])  # noqa: SLF001


def _capabilities(agent: AnyAgent) -> Json:
    added = [one for one in agent.root_capability.capabilities if type(one).__name__ not in _OF_EVERY_AGENT]
    return described(added)


def _tools(toolsets: Sequence[AbstractToolset[Any]]) -> Json:
    return [told for told in map(_toolset, toolsets) if told]


def _schema(schema: Mapping[str, object]) -> Json:
    return digest_of(json.dumps(schema, sort_keys=True))  # it may hold defaults


def _tool(tool: Tool[Any]) -> Json:
    return {
        "description": tool.description,
        "schema": _schema(tool.function_schema.json_schema),
        "function": described(tool.function),
        "strict": tool.strict,
        "retries": tool.max_retries,
    }


def _with_instructions(toolset: FunctionToolset[Any]) -> Object:
    told = _instructions(toolset)
    return {"instructions of all": told} if told else {}


def _toolset(toolset: AbstractToolset[Any]) -> Json:
    """Describe a toolset by its tools; one whose tools are known only when it is asked, by its class and id."""
    if isinstance(toolset, FunctionToolset):
        return {name: _tool(tool) for name, tool in toolset.tools.items()} | _with_instructions(toolset)
    told: Object = {"type": name_of_type(type(toolset)), "id": toolset.id}
    several, wrapped = getattr(toolset, "toolsets", None), getattr(toolset, "wrapped", None)
    if isinstance(several, Sequence):
        told["tools"] = _tools(several)
    if isinstance(wrapped, AbstractToolset):
        told["tools"] = _toolset(wrapped)
    for name in _OF_TOOLSETS:
        if (value := getattr(toolset, name, None)) is not None:
            told[name] = described(value)
    return told
