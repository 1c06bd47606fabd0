"""Pydantic AI: a model by its name as `--worker pydantic_ai`, and any Agent of yours by `agent_worker(agent)`.

    from pydantic_ai import Agent
    from batchq_workers.pydantic_ai import agent_worker

    agent = Agent("openrouter:openai/gpt-4o-mini", output_type=Review, instructions="...")
    results = await prompt_map(reviews, worker=agent_worker(agent))

Retries are the queue's, which remembers them and what a provider asks for: those of the provider's SDK are
turned off for these runs. Pydantic AI's own, which show the model what was wrong with its output or its tool
calls, stay as the agent has them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, TypeVar

from batchq.worker import Answer, Endpoint, Plugin, Request
from batchq_workers.endpoint_client import check_endpoint, new_client, new_http_client
from batchq_workers.openrouter import CONNECT_SECONDS

if TYPE_CHECKING:
    from pydantic_ai.agent import AbstractAgent

# Not the library itself, which takes a second to import: a worker process loads this module to see what it serves.
if find_spec("pydantic_ai") is None:
    raise ImportError("it needs Pydantic AI: pip install 'batchq[pydantic-ai]'")

DepsT = TypeVar("DepsT")
OutputT = TypeVar("OutputT")

_Handler = Callable[[Request], Awaitable[Answer]]


@asynccontextmanager
async def open_pydantic_ai(endpoint: Endpoint) -> AsyncIterator[_Handler]:
    """Open a client for `endpoint`. Raises ConfigurationError when it needs a key and has none."""
    check_endpoint(endpoint)
    # In a thread: the loop has leases to renew during the second that it takes.
    await asyncio.to_thread(import_module, "batchq_workers.model_runs")
    from batchq_workers.judged_calls import judge
    from batchq_workers.model_runs import ModelRuns

    async with new_client(endpoint, new_http_client(CONNECT_SECONDS, judge)) as client:
        yield ModelRuns(endpoint, client).answer


plugin = Plugin(open_pydantic_ai, needs_model=True, check=check_endpoint)


def agent_worker(agent: AbstractAgent[DepsT, OutputT], *, deps: DepsT | None = None, name: str | None = None) -> Plugin:
    """Return a worker that answers each prompt with one run of `agent`, and its output as JSON.

    The agent's model, instructions, output type, settings and tools are part of each job's key, as they are when
    this is called: after an edit of one of them, nothing is answered from before. Functions count by name, and
    `deps`, which is given to each run, not at all. `name` is how batches call the worker where no variable of the
    script does.
    """
    from batchq_workers.agent_fingerprint import fingerprint, model_name
    from batchq_workers.agent_runs import AgentRuns

    runs = AgentRuns(agent, deps)

    def open_agent(_endpoint: Endpoint) -> AbstractAsyncContextManager[_Handler]:
        return _entered(agent, runs.answer)

    return Plugin(
        open_agent,
        name=name or f"agent:{agent.name or 'agent'}",
        model=model_name(agent.model),
        settings={"agent": fingerprint(agent)},
    )


@asynccontextmanager
async def _entered(agent: AbstractAgent[DepsT, OutputT], answer: _Handler) -> AsyncIterator[_Handler]:
    async with agent:
        yield answer
