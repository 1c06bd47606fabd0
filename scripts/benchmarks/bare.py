"""The baselines of `calls`: bare loops with no queue, each run in a process of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from batchq.process import run_event_loop
from scripts.benchmarks.queues import MODEL, prompts

Call = Callable[[str], Awaitable[object]]

# Each task first makes one call that takes a while, so that all connections stand when the clock starts.
WARM_UP = "[[sleep 0.5]]"


def sdk_loop(base_url: str, tasks: int, calls: int, start_at: float) -> int:
    """Make `calls` calls of the OpenAI SDK as its README shows them: default client, asyncio's own loop."""

    async def main() -> None:
        import openai

        async with openai.AsyncOpenAI(api_key="none", base_url=base_url, max_retries=0) as client:

            async def call(text: str) -> object:
                return await client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": text}])

            await _share_out(call, tasks, calls, start_at)

    asyncio.run(main())
    return calls


def aiohttp_loop(base_url: str, tasks: int, calls: int, start_at: float) -> int:
    """Make `calls` POSTs with aiohttp and decode the answers, on the event loop that batchq uses."""

    async def main() -> None:
        import aiohttp

        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

            async def call(text: str) -> object:
                body = {"model": MODEL, "messages": [{"role": "user", "content": text}]}
                async with session.post(f"{base_url}/chat/completions", json=body) as response:
                    response.raise_for_status()
                    return await response.json()

            await _share_out(call, tasks, calls, start_at)

    run_event_loop(main)
    return calls


def post_cpu_seconds(base_url: str, tasks: int, calls: int) -> float:
    """Make `calls` calls with the SDK's `post` over aiohttp, which builds no typed objects; return their CPU time."""

    async def main() -> float:
        import httpx2
        import openai

        client = openai.AsyncOpenAI(
            api_key="none", base_url=base_url, max_retries=0, http_client=openai.DefaultAioHttpClient()
        )

        async def call(text: str) -> object:
            body = {"model": MODEL, "messages": [{"role": "user", "content": text}]}
            response = await client.post("/chat/completions", cast_to=httpx2.Response, body=body)
            return response.json()

        async with client:
            await _warm_up(call, tasks)
            began = time.process_time()
            await _share(call, tasks, calls)
            return time.process_time() - began

    return run_event_loop(main)


async def _share_out(call: Call, tasks: int, calls: int, start_at: float) -> None:
    """Warm up, wait until `start_at` (seconds since the epoch), then let the tasks share the calls."""
    await _warm_up(call, tasks)
    await asyncio.sleep(start_at - time.time())
    await _share(call, tasks, calls)


async def _warm_up(call: Call, tasks: int) -> None:
    await asyncio.gather(*(call(f"{WARM_UP} {number}") for number in range(tasks)))


async def _share(call: Call, tasks: int, calls: int) -> None:
    texts = prompts(calls)

    async def task() -> None:
        for text in texts:
            await call(text)

    await asyncio.gather(*(task() for _ in range(tasks)))
