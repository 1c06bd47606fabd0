"""How a body is sent: on the connections of the SDK's client, past the layers above them where that is possible.

The SDK's client keeps an aiohttp session in its transport, with its TLS and its pool. What lies between (requests,
headers, redirects and streams as objects) costs more CPU than the call itself: 100 of 170 us. Where this SDK keeps
its session elsewhere, or a proxy is between, the client itself sends.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, NamedTuple

from batchq.worker import RetryLater
from batchq_workers.unreached import not_http, unreached

if TYPE_CHECKING:
    import aiohttp
    import httpx2


_MOST_BYTES = 128 << 20


class Reply(NamedTuple):
    """What came back, whatever its status. Headers are found by names in any case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


Send = Callable[[bytes], Awaitable[Reply]]


def sender(http_client: httpx2.AsyncClient, url: str, headers: Mapping[str, str], connect_seconds: float) -> Send:
    """Return what POSTs bodies to `url`. It raises RetryLater where no answer comes."""
    session = _session_of(http_client, url)
    if session is None:
        return _over_client(http_client, url, headers)
    return _over_session(session, url, headers, connect_seconds)


def _session_of(http_client: httpx2.AsyncClient, url: str) -> aiohttp.ClientSession | None:
    import aiohttp
    import httpx2

    # None of this is promised by the SDK, so nothing is taken for granted.
    find: Callable[[httpx2.URL], Any] = getattr(http_client, "_transport_for_url", lambda _url: None)
    transport = find(httpx2.URL(url))
    if not hasattr(transport, "get_client") or getattr(transport, "proxy", None) is not None:
        return None
    if not isinstance(transport.client, aiohttp.ClientSession):
        transport.client = transport.get_client()  # as its own first call would: closing the client closes it
    return transport.client if isinstance(transport.client, aiohttp.ClientSession) else None


def _over_session(session: aiohttp.ClientSession, url: str, headers: Mapping[str, str], connect_seconds: float) -> Send:
    import aiohttp
    from multidict import CIMultiDict

    sent = CIMultiDict(headers)  # once: aiohttp copies one of its own faster than it makes one
    # The total deadline is the queue's; a socket timeout would only cut long answers short.
    timeout = aiohttp.ClientTimeout(sock_connect=connect_seconds)

    async def send(body: bytes) -> Reply:
        try:
            async with session.post(url, data=body, headers=sent, timeout=timeout, allow_redirects=False) as response:
                plain = response.headers.get("Content-Encoding", "identity") == "identity"
                if plain and (response.content_length or _MOST_BYTES + 1) <= _MOST_BYTES:
                    return Reply(response.status, response.headers, await response.read())
                pieces = response.content.iter_any()
                return Reply(response.status, response.headers, await _gather(pieces, response.status))
        except aiohttp.ClientResponseError as error:
            raise not_http(error) from error
        except aiohttp.ClientError as error:
            raise unreached(error) from error

    return send


def _over_client(http_client: httpx2.AsyncClient, url: str, headers: Mapping[str, str]) -> Send:
    import aiohttp
    import httpx2

    target, sent = httpx2.URL(url), httpx2.Headers(headers)

    async def send(body: bytes) -> Reply:
        try:
            request = httpx2.Request("POST", target, headers=sent, content=body)
            response = await http_client.send(request, stream=True)
            async with aclosing(response):
                content = await _gather(response.aiter_bytes(), response.status_code)
        except httpx2.TransportError as error:
            raise unreached(error) from error
        except aiohttp.ClientError as error:  # what its transport does not translate
            raise not_http(error) from error
        return Reply(response.status_code, response.headers, content)

    return send


async def _gather(pieces: AsyncIterator[bytes], status: int) -> bytes:
    """Return a whole body. Raises RetryLater for one that goes on beyond all that a model says."""
    gathered: list[bytes] = []
    size = 0
    async for piece in pieces:
        size += len(piece)
        if size > _MOST_BYTES:
            reason = f"an answer of more than {_MOST_BYTES >> 20} MiB"
            raise RetryLater(reason, error_class="broken_answer", status=status)
        gathered.append(piece)
    return b"".join(gathered)
