"""Whether each endpoint can be called: its key, what is left on it, and the models that batches ask for.

It is asked with the client library of the workers, so that proxies and certificates are those that calls meet. No
question costs anything.
"""

from __future__ import annotations

import difflib
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchq.concealing import without_keys
from batchq.doctor.credit import judge_key
from batchq.doctor.finding import Finding, error, ok, warning
from batchq.errors import ConfigurationError
from batchq.worker import Endpoint, is_loopback, is_openrouter

if TYPE_CHECKING:
    import openai

    from batchq.config import Settings

_NAME = "endpoint"
_MOST_SAID = 200
_REFUSED = {401: "refuses the key", 402: "has no credit left for it", 403: "forbids the key to call it"}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What unfinished batches ask of an endpoint."""

    batches: tuple[str, ...] = ()
    models: tuple[str, ...] = ()


class _NoAnswerError(Exception):
    """There was no answer that can be used; the finding says why."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.what)
        self.finding = finding


async def check_endpoint(
    settings: Settings, name: str, wanted: Wanted, *, seconds: float | None
) -> AsyncIterator[Finding]:
    """Look at an endpoint of the settings, and ask it, for so many seconds at most; `None` asks nothing."""
    server = settings.server(name)
    if server is None:
        told = f"{', '.join(wanted.batches[:3])}: {settings.unknown_endpoint(name)}"
        yield warning(_NAME, told, f"give it a table [endpoints.{name}] there, where its workers run")
        return
    try:
        settings.refuse_insecure(server)
        endpoint = settings.require_endpoint(name)
    except ConfigurationError as failure:
        yield error(_NAME, f"{name}: {without_keys(str(failure))}")
        return
    key = settings.key_of(server)
    told = f"{name} is {server.base_url}, " + (
        "without a key"
        if not endpoint.api_key or key is None
        else f"with the key from {settings.layers.told(*key.location)}"
    )
    if not endpoint.api_key and not is_loopback(server.base_url):
        yield _keyless(settings, endpoint, told, wanted)
        return
    if seconds is None:
        yield ok(_NAME, f"{told}; it was not asked (--offline)")
        return
    try:
        async for finding in _ask(endpoint, told, wanted, seconds):
            yield finding
    except _NoAnswerError as failure:
        yield failure.finding


def _keyless(settings: Settings, endpoint: Endpoint, told: str, wanted: Wanted) -> Finding:
    variable = "OPENROUTER_API_KEY" if is_openrouter(endpoint.base_url) else "OPENAI_API_KEY"
    advice = f"set {variable} in the environment or in .env, or give --api-key-file"
    if endpoint.name in settings.endpoints:
        advice = f"give [endpoints.{endpoint.name}] an api_key_file in batchq.toml"
    if wanted.batches:
        return error(_NAME, f"{told}, and {', '.join(wanted.batches[:3])} can't run", advice)
    if settings.endpoints and endpoint.name not in settings.endpoints:
        return ok(_NAME, f"{told}; nothing waits for it")
    return warning(_NAME, told, advice)


async def _ask(endpoint: Endpoint, told: str, wanted: Wanted, seconds: float) -> AsyncIterator[Finding]:
    import openai

    client = openai.AsyncOpenAI(
        # Given, so that no ambient key or organization leaks into calls to another server.
        api_key=endpoint.api_key or "none",
        base_url=endpoint.base_url,
        max_retries=0,
        http_client=openai.DefaultAioHttpClient(timeout=seconds, follow_redirects=False),
        default_headers=dict(endpoint.headers),
    )
    client.organization = client.project = None
    async with client:
        if is_openrouter(endpoint.base_url):
            answer = await _get(client, "/key", told, seconds)
            data = answer.get("data")
            if not isinstance(data, Mapping):
                raise _NoAnswerError(
                    error(_NAME, f"{told}; what it says of the key can't be read", _elsewhere(endpoint))
                )
            yield judge_key(told, data)
            if not wanted.models:
                return
        listed = _ids_of(await _get(client, "/models", told, seconds))
        if not is_openrouter(endpoint.base_url):
            yield _judge_list(told, listed, endpoint)
        for model in wanted.models:
            yield _judge_model(endpoint, model, listed)


async def _get(client: openai.AsyncOpenAI, path: str, told: str, seconds: float) -> Mapping[str, object]:
    """Return what a GET is answered with. Raises _NoAnswerError."""
    import anyio
    import httpx2
    import openai

    try:
        with anyio.fail_after(seconds):
            answer = await client.get(path, cast_to=httpx2.Response)
            found = answer.json()
    except (openai.APIConnectionError, TimeoutError) as failure:
        if _took_too_long(failure):
            advice = "see the network and the server's own status page; --timeout waits longer"
            raise _NoAnswerError(error(_NAME, f"{told}; no answer within {seconds:g} s", advice)) from None
        advice = "see that the server runs, and the proxy and certificates (SSL_CERT_FILE) of this machine"
        raise _NoAnswerError(error(_NAME, f"{told}; can't be reached: {_reason(failure)}", advice)) from None
    except openai.APIStatusError as failure:
        raise _NoAnswerError(_judge_status(told, path, failure.status_code)) from None
    except ValueError:
        advice = "is the base URL right? It usually ends in /v1; a proxy or a login page may stand between"
        raise _NoAnswerError(error(_NAME, f"{told}; it answers, but not in JSON", advice)) from None
    return found if isinstance(found, Mapping) else {}


def _judge_status(told: str, path: str, status: int) -> Finding:
    if status in _REFUSED:
        return error(_NAME, f"{told}; the server {_REFUSED[status]} ({status})", "see the key where it was made")
    if status in {404, 405, 501} and path == "/models":
        return ok(_NAME, f"{told}; it answers, and does not list its models")
    if status == 404:
        return error(_NAME, f"{told}; there is no {path} there (404)", "is the base URL right?")
    if 300 <= status < 400:
        advice = "name the server that it leads to: redirects are not followed, a key could go astray"
        return error(_NAME, f"{told}; it answers with a redirect ({status})", advice)
    return warning(_NAME, f"{told}; it answers with {status}", "the provider is in trouble or busy: try again later")


def _judge_list(told: str, listed: Collection[str], endpoint: Endpoint) -> Finding:
    if not listed:
        return warning(_NAME, f"{told}; it answers, and lists no models", _elsewhere(endpoint))
    return ok(_NAME, f"{told}; it answers, and lists {len(listed):,} models")


def _judge_model(endpoint: Endpoint, model: str, listed: Collection[str]) -> Finding:
    # A variant (:floor, :online) is listed as what it is a variant of; a preset is the account's own.
    if not listed or model in listed or model.rpartition(":")[0] in listed or model.startswith("@"):
        return ok("model", f"{model} is there at the endpoint {endpoint.name}")
    near = difflib.get_close_matches(model, listed, n=1)
    meant = f" (did you mean {near[0]}?)" if near else ""
    told = f"{model} is not among the models of the endpoint {endpoint.name}{meant}"
    return warning("model", told, "enqueue what asks for it anew, with another --model")


def _ids_of(answer: Mapping[str, object]) -> list[str]:
    data = answer.get("data")
    items = data if isinstance(data, list) else []
    return [item["id"] for item in items if isinstance(item, Mapping) and isinstance(item.get("id"), str)]


def _elsewhere(endpoint: Endpoint) -> str:
    return f"is {endpoint.base_url} the server that you mean?"


def _took_too_long(failure: Exception) -> bool:
    """Whether time ran out: the client library says so of a refused connection, too."""
    import openai

    return isinstance(failure, TimeoutError | openai.APITimeoutError) and (
        isinstance(first := _first(failure), TimeoutError) or not isinstance(first, OSError)
    )


def _first(failure: BaseException) -> BaseException:
    while (deeper := failure.__cause__ or failure.__context__) is not None:
        failure = deeper
    return failure


def _reason(failure: Exception) -> str:
    """Return why there was no connection, in the words of whoever first knew."""
    cause = _first(failure)
    said = without_keys(" ".join((str(cause) or type(cause).__name__).split()))
    return said if len(said) <= _MOST_SAID else said[:_MOST_SAID] + "…"
