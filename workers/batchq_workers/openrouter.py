"""Any OpenAI-compatible endpoint through the OpenAI SDK; OpenRouter by default.

Uses the SDK's cheap path (`client.post(..., cast_to=httpx2.Response)`): headers and raw bytes, no typed
objects, over the aiohttp transport, which holds up with hundreds of calls in flight. The SDK's own
retries are off: batchq owns retries, and the queue remembers them.
"""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from batchq.worker import Answer, ConfigurationError, Endpoint, Json, Plugin, Request, RetryLater
from batchq_workers.classify import Steer, classify

if TYPE_CHECKING:
    import openai

# Slots are the limit, not the pool: a call that waits for a connection would run into its deadline.
MAX_CONNECTIONS = 4096
CONNECT_SECONDS = 10.0


@asynccontextmanager
async def open_openrouter(endpoint: Endpoint) -> AsyncIterator[Callable[[Request], Awaitable[Json | Answer]]]:
    """Open a client for `endpoint`. Raises ConfigurationError when it needs a key and has none."""
    key = endpoint.api_key
    if key is None and not is_loopback(endpoint.base_url):
        raise ConfigurationError(missing_key(endpoint))
    import httpx2
    import openai

    limits = httpx2.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=MAX_CONNECTIONS)
    client = openai.AsyncOpenAI(
        # Given, so that no ambient OPENAI_BASE_URL or key leaks into calls to another server.
        api_key=key or "none",
        base_url=endpoint.base_url,
        max_retries=0,
        # The total deadline is the queue's; a socket timeout would only cut long answers short.
        timeout=openai.Timeout(None, connect=CONNECT_SECONDS),
        http_client=openai.DefaultAioHttpClient(limits=limits),
    )
    client.organization = client.project = None
    async with client:
        yield _caller(client)


plugin = Plugin(open_openrouter, needs_model=True)


def _caller(client: openai.AsyncOpenAI) -> Callable[[Request], Awaitable[Json | Answer]]:
    import httpx2
    import openai

    async def call(request: Request) -> Json | Answer:
        try:
            response = await client.post(path_of(request.url), cast_to=httpx2.Response, body=request.body)
        except openai.APIStatusError as error:
            status, headers, body = error.status_code, error.response.headers, error.response.content
        except openai.APIConnectionError as error:
            raise _unreached(error) from error
        else:
            status, headers, body = response.status_code, response.headers, response.content
        verdict = classify(status, headers, body, request.url)
        if isinstance(verdict, Steer):
            raise verdict
        return verdict

    return call


def path_of(url: str) -> str:
    """Return the path below the base URL, which already ends in /v1."""
    return url.removeprefix("/v1")


def is_loopback(base_url: str) -> bool:
    """Whether a URL is this machine's own."""
    host = urlsplit(base_url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def missing_key(endpoint: Endpoint) -> str:
    """Say which key is missing, and where to put it."""
    host = urlsplit(endpoint.base_url).hostname or endpoint.base_url
    variable = "OPENROUTER_API_KEY" if host.endswith("openrouter.ai") else "OPENAI_API_KEY"
    return f"{host} needs a key: set {variable} in the environment or in .env, or give --api-key-file"


def _unreached(error: BaseException) -> RetryLater:
    cause = error.__cause__ or error
    text = f"{type(cause).__name__}: {cause}" if str(cause) else type(cause).__name__
    # The aiohttp transport reports a connection that the server closed as a ConnectTimeout.
    if "Timeout" in type(cause).__name__ and "disconnected" not in str(cause):
        return RetryLater(f"timed out ({text})", error_class="timeout")
    return RetryLater(f"no connection ({text.removeprefix('ConnectTimeout: ')})", error_class="connection")
