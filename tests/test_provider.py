"""What a provider answers becomes what a user sees: the shipped worker, the real SDK, the fake provider's ledger."""

from __future__ import annotations

import gzip
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import anyio
import pytest
from fake_provider import Provider, running_provider

from batchq.discovery import find_worker
from batchq.jobs import Attempt, Json, NewBatch, NewJob, Result
from batchq.process import gather_workers
from batchq.request import encode
from batchq.runner import Runner, RunnerOptions, Stop
from batchq.store import Store, open_store
from batchq.worker import Answer, Endpoint, Request, RetryLater
from batchq_workers import sending
from batchq_workers.endpoint_client import new_http_client

FIXTURES = Path(__file__).parent / "fixtures" / "llm"
DEADLINE = 60.0
MODEL = "gpt-4o-mini"


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


def fixtures(action: str) -> list[str]:
    names = sorted(path.stem for path in FIXTURES.glob("*.json"))
    return [
        name for name in names if json.loads((FIXTURES / f"{name}.json").read_text())["suggested"]["action"] == action
    ]


@asynccontextmanager
async def queue(path: Path, payloads: list[Json], **batch: object) -> AsyncIterator[Store]:
    async with await open_store(str(path / "q.db"), create=True) as store:
        made = await store.open_batch(NewBatch("b", "openrouter", model=MODEL, **batch))
        jobs = [NewJob(i, None, f"{i:032x}", encode(payload)) for i, payload in enumerate(payloads)]
        await store.add_jobs(made, jobs)
        await store.seal(made)
        yield store


def runner_at(store: Store, provider: Provider, **options: object) -> Runner:
    prices = str(options.pop("prices", "")) or None
    endpoint = Endpoint("default", provider.base_url, prices=prices)
    options = {"concurrency": 16, "lease_ms": 5_000, "until_empty": True} | options
    return Runner(store, gather_workers(["openrouter"]), {"default": endpoint}, RunnerOptions(**options))


async def rows(store: Store) -> list[Result]:
    return [row async for row in store.results(await store.batch("b"))]


async def attempts(store: Store, position: int = 0) -> list[Attempt]:
    found = await store.job(await store.batch("b"), position)
    assert found is not None
    return found[1]


def answered(
    path: Path, provider: Provider, payloads: list[Json], *, prices: str = "", **batch: object
) -> list[Result]:
    """Run these prompts to their end; return what became of them."""

    async def main() -> list[Result]:
        with anyio.fail_after(DEADLINE):
            async with queue(path, payloads, **batch) as store:
                assert await runner_at(store, provider, prices=prices).run() is Stop.EMPTY
                return await rows(store)

    return anyio.run(main)


# Every recorded answer


@pytest.mark.parametrize("name", fixtures("done"))
def test_a_complete_answer_is_kept_after_one_call(tmp_path, provider, name):
    (row,) = answered(tmp_path, provider, [f"[[fixture {name}]]"])
    assert (row.state, row.attempts, provider.ledger()["calls"]) == ("done", 1, 1)
    assert row.result not in {None, "null", '""'}
    assert row.usage.input_tokens is not None


@pytest.mark.parametrize("name", fixtures("fail"))
def test_what_the_request_itself_can_not_get_costs_one_call(tmp_path, provider, name):
    (row,) = answered(tmp_path, provider, [f"[[fixture {name}]]"], max_attempts=8)
    assert (row.state, row.attempts, provider.ledger()["calls"]) == ("failed", 1, 1)
    assert row.error
    assert row.error_class


@pytest.mark.parametrize("name", fixtures("retry"))
def test_what_may_pass_is_tried_again(tmp_path, provider, name):
    (row,) = answered(tmp_path, provider, [f"[[fail 1 {name}]] go on"])
    assert (row.state, row.attempts, provider.ledger()["calls"]) == ("done", 2, 2)


@pytest.mark.parametrize("name", fixtures("throttle"))
def test_a_throttle_is_no_attempt_and_makes_the_lane_wait(tmp_path, provider, name):
    async def main() -> None:
        with anyio.fail_after(DEADLINE):
            async with queue(tmp_path, [f"[[fixture {name}]]", "another"], max_attempts=1) as store:
                async with anyio.create_task_group() as group:
                    group.start_soon(runner_at(store, provider, concurrency=1, until_empty=False).run)
                    while not (lanes := await store.lanes()) or lanes[0].paused_until is None:
                        await anyio.sleep(0.01)
                    group.cancel_scope.cancel()
                first = (await rows(store))[0]
                assert (first.state, first.attempts) == ("pending", 0)
                assert [(item.outcome, item.charged) for item in await attempts(store)][:1] == [("throttled", False)]

    anyio.run(main)


@pytest.mark.parametrize("name", fixtures("pause"))
def test_what_stops_the_lane_loses_and_charges_no_job(tmp_path, provider, name):
    async def main() -> None:
        with anyio.fail_after(DEADLINE):
            async with queue(tmp_path, [f"[[fixture {name}]] {i}" for i in range(40)], max_attempts=1) as store:
                async with anyio.create_task_group() as group:
                    group.start_soon(runner_at(store, provider, concurrency=4, until_empty=False).run)
                    while not (lanes := await store.lanes()) or lanes[0].halted_at is None:
                        await anyio.sleep(0.01)
                    group.cancel_scope.cancel()
                assert lanes[0].reason
                assert provider.ledger()["calls"] <= 5
                assert {(row.state, row.attempts) for row in await rows(store)} == {("pending", 0)}

    anyio.run(main)


# What a failure costs


def test_a_500_and_a_dropped_connection_cost_max_attempts_calls_and_no_more(tmp_path, provider):
    found = answered(tmp_path, provider, ["[[status 500]]", "[[drop]]", "[[status 599]]"], max_attempts=3)
    assert [(row.state, row.attempts) for row in found] == [("failed", 3)] * 3
    assert provider.ledger()["calls"] == 9
    assert all("gave up after 3 attempts" in (row.error or "") for row in found)


def test_an_unknown_4xx_fails_at_once(tmp_path, provider):
    (row,) = answered(tmp_path, provider, ["[[status 418]]"])
    assert (row.state, provider.ledger()["calls"]) == ("failed", 1)


def test_an_empty_answer_is_tried_three_times_in_all(tmp_path, provider):
    provider.behave(answer="fixed:")
    (row,) = answered(tmp_path, provider, ["say nothing"])
    assert (row.state, row.error_class, provider.ledger()["calls"]) == ("failed", "empty_answer", 3)


@pytest.mark.parametrize("kind", ["hang", "pad"])
def test_a_call_that_never_ends_meets_its_deadline(tmp_path, provider, kind):
    found = answered(tmp_path, provider, [f"[[{kind}]]", "quick"], max_attempts=1, call_timeout_ms=700)
    assert [(row.state, row.error_class) for row in found] == [("failed", "timeout"), ("done", None)]
    assert "no answer within 0.7 s" in (found[0].error or "")


# Truncated and structured answers


def test_a_truncated_answer_is_paid_for_once_and_kept_beside_the_reason(tmp_path, provider):
    (row,) = answered(tmp_path, provider, ["[[fixture ok_length_truncated]]"])
    assert (row.state, row.error_class, row.finish_reason) == ("failed", "truncated", "length")
    assert row.result
    assert row.cost
    assert provider.ledger()["calls"] == 1


def test_a_truncated_answer_is_taken_where_that_is_allowed_and_still_flagged(tmp_path, provider):
    (row,) = answered(tmp_path, provider, ["[[fixture ok_length_truncated]]"], allow_truncated=True)
    assert (row.state, row.finish_reason, row.error) == ("done", "length", None)


SCHEMA: dict[str, Json] = {
    "type": "object",
    "properties": {"echo": {"type": "string"}},
    "required": ["echo"],
    "additionalProperties": False,
}


def test_an_answer_that_fits_the_schema_is_json_and_no_string_of_json(tmp_path, provider):
    provider.behave(answer="json")
    (row,) = answered(tmp_path, provider, ["hello"], settings={"schema": SCHEMA})
    assert (row.state, json.loads(row.result or "")) == ("done", {"echo": "hello"})


def test_an_answer_that_misses_the_schema_is_tried_a_set_number_of_times_and_its_text_kept(tmp_path, provider):
    provider.behave(answer='fixed:{"echo": 3}')
    (row,) = answered(tmp_path, provider, ["hello"], settings={"schema": SCHEMA, "schema_tries": 2})
    assert (row.state, row.error_class, row.attempts) == ("failed", "schema_mismatch", 2)
    assert "at echo: 3 is not of type 'string'" in (row.error or "")
    assert json.loads(row.result or "") == '{"echo": 3}'
    ledger = provider.ledger()
    assert ledger["calls"] == 2
    assert (row.cost or 0) / 1e9 == pytest.approx(ledger["cost"])


# Money


def test_what_was_spent_agrees_with_the_providers_ledger_to_the_nano_dollar(tmp_path, provider):
    provider.behave(error_mix="500:0.3,hang:0.05", error_calls=2)

    async def main() -> None:
        with anyio.fail_after(DEADLINE):
            prompts = [f"prompt {i} {'x' * i}" for i in range(60)]
            async with queue(tmp_path, prompts, call_timeout_ms=1_500) as store:
                await runner_at(store, provider).run()
                progress = await store.progress("b")
                assert progress.counts.done == 60
                ledger = provider.ledger()
                assert ledger["calls"] > 60
                assert progress.cost == sum(row.cost or 0 for row in await rows(store)) == round(ledger["cost"] * 1e9)

    anyio.run(main)


def test_without_a_cost_from_the_provider_a_price_list_gives_an_estimate(tmp_path, provider):
    provider.behave(no_cost=True)
    (row,) = answered(tmp_path, provider, ["how much is this?"], prices="openai")
    assert (row.cost_source, (row.cost or 0) > 0) == ("estimate", True)


def test_without_a_price_the_cost_is_unknown_and_not_zero(tmp_path, provider):
    provider.behave(no_cost=True)
    (row,) = answered(tmp_path, provider, ["how much is this?"])
    assert (row.state, row.cost, row.cost_source) == ("done", None, None)


# Any request


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("/v1/chat/completions", "echo: hello"),
        ("/v1/responses", "echo: hello"),
        ("/v1/completions", "echo: hello"),
    ],
)
def test_a_prompt_goes_to_the_api_that_its_batch_names(tmp_path, provider, url, expected):
    (row,) = answered(tmp_path, provider, ["hello"], settings={"url": url})
    assert (row.state, json.loads(row.result or "")) == ("done", expected)
    assert row.usage.output_tokens


def test_embeddings_are_vectors(tmp_path, provider):
    (row,) = answered(tmp_path, provider, ["hello"], settings={"url": "/v1/embeddings"})
    assert len(json.loads(row.result or "")) == 8


def test_a_whole_response_is_stored_where_that_is_asked_for(tmp_path, provider):
    (kept,) = answered(tmp_path, provider, ["hello"], keep_response=True)
    body = json.loads(kept.response or "")
    assert body["choices"][0]["message"]["content"] == "echo: hello"
    meta = json.loads(kept.meta or "")
    assert meta["id"] == body["id"]
    assert meta["provider"] == "Fake"


def test_a_response_is_not_stored_by_default(tmp_path, provider):
    (row,) = answered(tmp_path, provider, ["hello"])
    assert row.response is None


# On the connections of the SDK's client, or by the client itself


@pytest.fixture(params=["session", "client"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Send past the client's layers, as where the SDK is known, or through them, as where it is not."""
    if request.param == "client":
        monkeypatch.setattr(sending, "_session_of", lambda _client, _url: None)
    return str(request.param)


@contextmanager
def server_that_says(said: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """Answer one call with these bytes, whatever is asked; what was asked is in the list."""
    heard: list[bytes] = []

    def answer() -> None:
        connection, _ = server.accept()
        with connection:
            heard.append(connection.recv(100_000))
            connection.sendall(said)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=answer)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/v1", heard
        thread.join()


def ask(base_url: str, key: str | None = None) -> Answer:
    async def main() -> Answer:
        async with find_worker("openrouter").open(Endpoint("default", base_url, key)) as handler:
            found = await handler(Request("hi", {"messages": []}, "/v1/chat/completions", "m", {}, "b", 0, None, 1))
        assert isinstance(found, Answer)
        return found

    return anyio.run(main)


COMPLETION = json.dumps({"id": "1", "choices": [{"message": {"content": "grüße"}}], "usage": {}}).encode()


@pytest.mark.usefixtures("way")
def test_a_compressed_answer_is_read():
    body = gzip.compress(COMPLETION)
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(body)}\r\n\r\n"
    with server_that_says(head.encode() + body) as (base_url, _):
        assert ask(base_url).result == "grüße"


@pytest.mark.usefixtures("way")
def test_a_redirection_is_not_followed():
    head = b"HTTP/1.1 307 Moved\r\nLocation: http://127.0.0.1:1/v1\r\nContent-Length: 0\r\n\r\n"
    with server_that_says(head) as (base_url, _), pytest.raises(RetryLater, match="moved to http"):
        ask(base_url)


@pytest.mark.usefixtures("way")
def test_an_answer_that_breaks_off_is_a_broken_connection():
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"
    with server_that_says(head + COMPLETION) as (base_url, _), pytest.raises(RetryLater, match="connection broke"):
        ask(base_url)


def test_either_way_the_same_is_sent(monkeypatch):
    asked: list[list[bytes]] = []
    for _ in range(2):
        said = f"HTTP/1.1 200 OK\r\nContent-Length: {len(COMPLETION)}\r\n\r\n".encode() + COMPLETION
        with server_that_says(said) as (base_url, heard):
            ask(base_url, "sk-0123456789")
        lines = heard[0].split(b"\r\n")
        asked.append(sorted(line.lower() for line in lines if not line.lower().startswith(b"host:")))
        monkeypatch.setattr(sending, "_session_of", lambda _client, _url: None)
    assert asked[0] == asked[1]
    assert b"authorization: bearer sk-0123456789" in asked[0]


def test_a_proxy_is_left_to_the_client_and_all_else_goes_past_it(monkeypatch):
    async def main() -> None:
        async with new_http_client(1.0) as client:
            found = [sending._session_of(client, url) for url in ("https://a.example/v1", "http://a.example/v1")]
        assert [session is None for session in found] == [True, False]
        assert found[1] is not None
        assert found[1].closed

    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    anyio.run(main)
