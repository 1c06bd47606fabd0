"""Any OpenAI-compatible endpoint through the OpenAI SDK; OpenRouter by default.

The SDK configures the client once: base URL, authentication, headers, the aiohttp transport, which holds
up with hundreds of calls in flight. Each call is then sent on the connections of that client with those
headers (see `sending`), past the SDK's per-call request building and its typed objects, which is where
`client.post(cast_to=httpx2.Response)` spends most of its CPU (scripts/bench measures both). Retries are
the queue's, which remembers them; the SDK makes none.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, overload

from batchq.worker import Answer, Endpoint, Json, Plugin, Prices, Request, is_openrouter
from batchq_workers.classify import Steer, classify
from batchq_workers.endpoint_client import check_endpoint, new_client, new_http_client, redacted, redacted_body
from batchq_workers.sending import Send, sender

if TYPE_CHECKING:
    import httpx2
    import openai

CONNECT_SECONDS = 10.0


@asynccontextmanager
async def open_openrouter(endpoint: Endpoint) -> AsyncIterator[Callable[[Request], Awaitable[Json | Answer]]]:
    """Open a client for `endpoint`. Raises ConfigurationError when it needs a key and has none."""
    check_endpoint(endpoint)
    http_client = new_http_client(CONNECT_SECONDS)
    client = new_client(endpoint, http_client)
    async with client:
        yield _caller(client, http_client, endpoint)


plugin = Plugin(open_openrouter, needs_model=True, check=check_endpoint)


def _caller(
    client: openai.AsyncOpenAI, http_client: httpx2.AsyncClient, endpoint: Endpoint
) -> Callable[[Request], Awaitable[Json | Answer]]:
    # The key is in auth_headers only; the SDK adds it where it builds a request.
    told = {**client.default_headers, **client.auth_headers}
    headers = {name: value for name, value in told.items() if isinstance(value, str)}
    base_url = str(client.base_url).rstrip("/")
    senders: dict[str, Send] = {}
    encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
    prices = Prices(endpoint.base_url, endpoint.prices)

    def sender_to(url: str) -> Send:
        return senders.setdefault(url, sender(http_client, f"{base_url}{path_of(url)}", headers, CONNECT_SECONDS))

    async def call(request: Request) -> Json | Answer:
        send = senders.get(request.url) or sender_to(request.url)
        reply = await send(encode(body_for(endpoint, request)).encode())
        body = redacted_body(reply.body, endpoint.api_key)
        verdict = classify(reply.status, reply.headers, body, request.url)
        if isinstance(verdict, Steer):
            verdict.answer = priced(verdict.answer, prices, request.model)
            verdict.args = (redacted(str(verdict), endpoint.api_key),)
            raise verdict
        return priced(verdict, prices, request.model)

    return call


def body_for(endpoint: Endpoint, request: Request) -> dict[str, Json]:
    """Return the body as this server should get it.

    OpenRouter drops a schema silently where it routes to a provider that knows none, unless it is told to
    choose one that does (openrouter.ai/docs/features/structured-outputs).
    """
    if "schema" not in request.settings or not is_openrouter(endpoint.base_url):
        return request.body
    provider = request.body.get("provider")
    chosen = provider if isinstance(provider, dict) else {}
    return {**request.body, "provider": {"require_parameters": True, **chosen}}


@overload
def priced(answer: Answer, prices: Prices, model: str) -> Answer: ...
@overload
def priced(answer: Answer | None, prices: Prices, model: str) -> Answer | None: ...
def priced(answer: Answer | None, prices: Prices, model: str) -> Answer | None:
    """Return an answer whose provider told no cost with an estimate, if there is a price list for it."""
    if answer is None or answer.cost is not None or answer.usage is None:
        return answer
    named = (answer.meta or {}).get("model")
    cost = prices.of(named if isinstance(named, str) else model, answer.usage)
    if cost is None and named != model:
        cost = prices.of(model, answer.usage)
    return answer if cost is None else replace(answer, cost=cost, estimated=True)


def path_of(url: str) -> str:
    """Return the path below the base URL, which already ends in /v1."""
    return url.removeprefix("/v1")
