"""The fake provider itself: what it answers, what it refuses and what its ledger says of it."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import openai
import pytest
from fake_provider import SCRIPT, Provider, running_provider
from openai import AsyncOpenAI, DefaultAsyncHttpxClient

DEFAULTS = {
    "answer": "echo",
    "latency": 0,
    "spread": 0,
    "slow_fraction": 0,
    "slow_latency": 0,
    "error_mix": "",
    "error_calls": None,
    "retry_after": None,
    "strict_window": False,
    "rate": None,
    "burst": None,
    "max_in_flight": None,
    "require_key": None,
    "credits": None,
    "no_cost": False,
    "seed": 0,
}


@pytest.fixture(scope="module")
def shared_provider() -> Iterator[Provider]:
    with running_provider() as provider:
        yield provider


@pytest.fixture
def provider(shared_provider: Provider) -> Provider:
    """One process serves the whole file; every test gets it as if just started."""
    shared_provider.behave(**DEFAULTS)
    shared_provider.reset()
    return shared_provider


def client_of(provider, **options):
    # Without verify=False each client spends 50 ms on reading certificates.
    transport = DefaultAsyncHttpxClient(verify=False)
    options = {"api_key": "x", "timeout": 5} | options
    return AsyncOpenAI(base_url=provider.base_url, max_retries=0, http_client=transport, **options)


def ask_all(provider, prompts, *, at_once=True, key="x", timeout=5):
    """What became of each prompt: a ChatCompletion or the exception."""

    async def ask(client, prompt):
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": prompt}]
        try:
            return await client.chat.completions.create(model="openai/gpt-4o-mini", messages=messages)
        except (openai.OpenAIError, json.JSONDecodeError) as error:
            return error

    async def run():
        async with client_of(provider, api_key=key, timeout=timeout) as client:
            if at_once:
                return await asyncio.gather(*(ask(client, prompt) for prompt in prompts))
            return [await ask(client, prompt) for prompt in prompts]

    return asyncio.run(run())


def ask(provider, prompt, **options):
    return ask_all(provider, [prompt], **options)[0]


def text(completion):
    return completion.choices[0].message.content


def statuses(outcomes):
    return [getattr(each, "status_code", 200) for each in outcomes]


def eventually(condition, within=5.0):
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


class TestAnswers:
    def test_each_prompt_gets_its_own_answer_and_the_ledger_knows(self, provider):
        prompts = [f"prompt {number}" for number in range(30)]
        assert [text(each) for each in ask_all(provider, prompts)] == [f"echo: {each}" for each in prompts]
        ledger = provider.ledger(prompts=True, times=True)
        assert ledger["calls"] == ledger["answered"] == len(ledger["times"]) == 30
        assert 1 < ledger["per_second"] <= ledger["per_minute_peak"] == 30
        assert ledger["by_status"] == {"200": 30}
        assert ledger["prompts"] == ledger["answered_prompts"] == dict.fromkeys(prompts, 1)
        assert {status for _, status in ledger["times"]} == {200}

    def test_usage_and_cost_follow_from_the_text(self, provider):
        completion = ask(provider, "a" * 40)
        assert (completion.model, completion.provider) == ("openai/gpt-4o-mini", "Fake")
        assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (10, 11)
        assert completion.usage.cost == provider.ledger()["cost"] == pytest.approx(10 * 1.5e-7 + 11 * 6e-7)

    def test_without_cost(self, provider):
        provider.behave(no_cost=True)
        assert "cost" not in ask(provider, "hello").usage.model_dump()

    @pytest.mark.parametrize(
        ("answer", "expected"),
        [("upper", 'SAY "Ü"'), ("json", '{"echo": "say \\"\\u00fc\\""}'), ("fixed:yes: no", "yes: no")],
    )
    def test_other_answers(self, provider, answer, expected):
        provider.behave(answer=answer)
        assert text(ask(provider, 'say "ü"')) == expected

    def test_text_parts_are_joined(self, provider):
        image = {"type": "image_url", "image_url": {"url": "data:,"}}
        parts = [{"type": "text", "text": "a"}, image, {"type": "text", "text": "b"}]
        assert text(ask(provider, parts)) == "echo: ab"

    def test_other_endpoints(self, provider):
        async def run():
            async with client_of(provider) as client:
                response = await client.responses.create(model="m", input="one")
                completion = await client.completions.create(model="m", prompt="two")
                embedding = await client.embeddings.create(model="m", input="three", encoding_format="float")
                models = await client.models.list()
                return response, completion, embedding, models

        response, completion, embedding, models = asyncio.run(run())
        assert response.output_text == "echo: one"
        assert completion.choices[0].text == "echo: two"
        assert len(embedding.data[0].embedding) == 8
        assert models.data[0].id == "openai/gpt-4o-mini"
        assert provider.ledger()["answered"] == 3


class TestDirectives:
    @pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 408, 413, 422, 429, 500, 502, 503, 524, 529])
    def test_status_every_time(self, provider, status):
        outcomes = ask_all(provider, [f"[[status {status}]]"] * 2)
        assert statuses(outcomes) == [status, status]
        assert outcomes[0].body["code"] == status

    def test_fixture(self, provider):
        unauthorised, empty = ask_all(provider, ["[[fixture err_401_bad_key]]", "[[fixture err200_empty_choices]]"])
        assert isinstance(unauthorised, openai.AuthenticationError)
        assert empty.choices == []
        ledger = provider.ledger()
        assert (ledger["by_status"], ledger["answered"]) == ({"401": 1, "200": 1}, 0)

    def test_an_unknown_fixture_is_an_error_that_says_so(self, provider):
        assert "no fixture 'nonesuch'" in str(ask(provider, "[[fixture nonesuch]]"))

    def test_fail_twice_then_succeed(self, provider):
        outcomes = ask_all(provider, ["[[fail 2 500]] x"] * 3, at_once=False)
        assert statuses(outcomes) == [500, 500, 200]
        ledger = provider.ledger(prompts=True)
        assert ledger["prompts"] == {"[[fail 2 500]] x": 3}
        assert ledger["answered_prompts"] == {"[[fail 2 500]] x": 1}

    def test_sleep(self, provider):
        started = time.monotonic()
        assert text(ask(provider, "[[sleep 0.2]] x")) == "echo: [[sleep 0.2]] x"
        assert time.monotonic() - started >= 0.2

    @pytest.mark.parametrize("prompt", ["[[hang]]", "[[sleep 9]]"])
    def test_a_client_that_gives_up_is_counted_as_cancelled(self, provider, prompt):
        outcome = ask(provider, prompt, timeout=0.2)
        assert isinstance(outcome, openai.APITimeoutError)
        eventually(lambda: provider.ledger()["cancelled"] == 1)
        ledger = provider.ledger()
        assert (ledger["calls"], ledger["answered"], ledger["in_flight"]) == (1, 0, 0)

    def test_padding_keeps_a_read_timeout_from_ending_the_call(self, provider):
        async def run():
            async with client_of(provider, timeout=0.5) as client, asyncio.timeout(0.8):
                await client.responses.create(model="m", input="[[pad]]")

        with pytest.raises(TimeoutError):
            asyncio.run(run())
        eventually(lambda: provider.ledger()["cancelled"] == 1)

    def test_drop(self, provider):
        assert isinstance(ask(provider, "[[drop]]"), openai.APIConnectionError)
        assert provider.ledger()["by_status"] == {"drop": 1}


class TestLimits:
    def test_rate_and_burst(self, provider):
        provider.behave(rate=0.001, burst=3)
        outcomes = ask_all(provider, [f"{number}" for number in range(8)])
        assert sorted(statuses(outcomes)) == [200] * 3 + [429] * 5
        refused = next(each for each in outcomes if isinstance(each, openai.RateLimitError))
        assert "retry-after" not in refused.response.headers
        ledger = provider.ledger()
        assert (ledger["rejected"], ledger["inside_retry_after"]) == (5, 0)

    def test_a_bucket_fills_again(self, provider):
        provider.behave(rate=4, burst=1)
        assert statuses(ask_all(provider, ["a", "b"], at_once=False)) == [200, 429]
        time.sleep(0.26)
        assert statuses([ask(provider, "b")]) == [200]

    def test_calls_inside_the_retry_after_window_are_counted(self, provider):
        provider.behave(rate=1000, burst=1, retry_after=7)
        refused = ask(provider, "[[status 429]]")
        assert refused.response.headers["retry-after"] == "7"
        assert statuses(ask_all(provider, ["a", "b"], at_once=False)) == [200, 200]
        assert provider.ledger()["inside_retry_after"] == 2

    def test_a_strict_window_refuses_and_then_ends(self, provider):
        provider.behave(retry_after=0.5, strict_window=True)
        outcomes = ask_all(provider, ["[[status 429]]", "a"], at_once=False)
        assert statuses(outcomes) == [429, 429]
        wait = float(outcomes[1].response.headers["retry-after"])
        assert 0 < wait < 0.5
        time.sleep(wait)
        assert statuses([ask(provider, "a")]) == [200]
        assert provider.ledger()["inside_retry_after"] == 1

    def test_calls_in_flight(self, provider):
        provider.behave(max_in_flight=2, latency=0.3)
        assert sorted(statuses(ask_all(provider, list("abcde")))) == [200, 200, 429, 429, 429]
        assert provider.ledger()["peak_in_flight"] == 2

    def test_key(self, provider):
        provider.behave(require_key="right")
        assert isinstance(ask(provider, "a", key="wrong"), openai.AuthenticationError)
        assert text(ask(provider, "a", key="right")) == "echo: a"

    def test_credits(self, provider):
        provider.behave(credits=1e-6)
        outcomes = ask_all(provider, ["a"] * 3, at_once=False)
        assert statuses(outcomes) == [200, 200, 402]

    def test_stragglers(self, provider):
        provider.behave(slow_fraction=1, slow_latency=0.2)
        started = time.monotonic()
        ask(provider, "a")
        assert time.monotonic() - started >= 0.2


class TestErrorMix:
    MIX = "429:0.2,500:0.2,err200_empty_choices:0.2,whitespace:0.1,html:0.1"

    @staticmethod
    def kinds(outcomes):
        return [repr(each)[:40] for each in outcomes]

    def test_it_depends_on_the_seed_and_the_prompt_not_on_the_order(self, provider):
        prompts = [f"prompt {number}" for number in range(40)]
        seen = []
        for seed, order in ((1, 1), (1, -1), (2, 1)):
            provider.behave(error_mix=self.MIX, seed=seed)
            provider.reset()
            seen.append(dict(zip(prompts[::order], self.kinds(ask_all(provider, prompts[::order])), strict=True)))
        assert seen[0] == seen[1] != seen[2]
        assert len(set(seen[0].values())) >= 5

    def test_shares(self, provider):
        provider.behave(error_mix="503:0.25", retry_after=1)
        outcomes = ask_all(provider, [f"{number}" for number in range(100)])
        assert 15 <= statuses(outcomes).count(503) <= 35
        assert {each.response.headers["retry-after"] for each in outcomes if hasattr(each, "response")} == {"1"}

    def test_only_the_first_calls_of_a_prompt(self, provider):
        provider.behave(error_mix="500:1", error_calls=2)
        assert statuses(ask_all(provider, ["a"] * 4, at_once=False)) == [500, 500, 200, 200]

    @pytest.mark.parametrize("mix", ["500:0.7,502:0.7", "nonesuch:0.1", "200:0.1", "500:much"])
    def test_nonsense_is_refused_and_changes_nothing(self, provider, mix):
        with pytest.raises(ValueError, match=r"."):
            provider.behave(error_mix=mix)
        assert provider.behave()["error_mix"] == ""


class TestBehaviour:
    def test_unknown_option(self, provider):
        with pytest.raises(ValueError, match="no option 'latnecy'"):
            provider.behave(latnecy=1)

    @pytest.mark.parametrize("value", ["0.2", True, None])
    def test_wrong_type(self, provider, value):
        with pytest.raises(ValueError, match="latency must be of type float"):
            provider.behave(latency=value)


class TestHTTP:
    @staticmethod
    def talk(provider, *pieces, answers):
        """Send the pieces one by one and read so many JSON answers from the same connection."""
        address = urlsplit(provider.base_url)
        with socket.create_connection((address.hostname, address.port), timeout=5) as connection:
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(0.005)
            stream = connection.makefile("rb")
            with stream:
                return [TestHTTP.read_answer(stream) for _ in range(answers)]

    @staticmethod
    def read_answer(stream):
        status = int(stream.readline().split()[1])
        length = 0
        while (line := stream.readline()) not in {b"\r\n", b""}:
            name, _, value = line.partition(b":")
            length = int(value) if name.lower() == b"content-length" else length
        return status, stream.read(length)

    @staticmethod
    def request(prompt, path="/v1/chat/completions"):
        body = json.dumps({"model": "m", "messages": [{"role": "user", "content": prompt}]}).encode()
        return b"POST %b HTTP/1.1\r\nHost: x\r\ncontent-length: %d\r\n\r\n%b" % (
            path.encode(),
            len(body),
            body,
        )

    @staticmethod
    def answer_in(body):
        return json.loads(body)["choices"][0]["message"]["content"]

    def test_pipelined_requests_are_answered_in_order(self, provider):
        requests = b"".join(self.request(each) for each in ["[[sleep 0.05]]", "b", "[[sleep 0.01]]", "d"])
        answers = self.talk(provider, requests, answers=4)
        assert [self.answer_in(body) for _, body in answers] == [
            "echo: [[sleep 0.05]]",
            "echo: b",
            "echo: [[sleep 0.01]]",
            "echo: d",
        ]

    def test_a_request_in_small_pieces(self, provider):
        whole = self.request("in pieces", "/api/v1/chat/completions")
        pieces = [whole[start : start + 7] for start in range(0, len(whole), 7)]
        ((status, body),) = self.talk(provider, *pieces, answers=1)
        assert (status, self.answer_in(body)) == (200, "echo: in pieces")

    def test_chunked_body(self, provider):
        head, _, body = self.request("chunked").partition(b"\r\n\r\n")
        head = b"\r\n".join([*head.split(b"\r\n")[:2], b"Transfer-Encoding: chunked"]) + b"\r\n\r\n"
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:9], body[9:]))
        message = head + chunks + b"0\r\n\r\n" + self.request("next")
        for pieces in ([message], [message[:80], message[80:90], message[90:]]):
            answers = self.talk(provider, *pieces, answers=2)
            assert [self.answer_in(body) for _, body in answers] == ["echo: chunked", "echo: next"]

    @pytest.mark.parametrize(
        ("message", "status"),
        [
            (b"nonsense\r\n\r\n", 400),
            (b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: many\r\n\r\n", 400),
            (b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}", 400),
            (b"GET /nowhere HTTP/1.1\r\n\r\n", 404),
            (b"GET /health HTTP/1.1\r\n\r\n", 200),
            (b"GET /v1/key HTTP/1.1\r\n\r\n", 200),
        ],
    )
    def test_status_of(self, provider, message, status):
        assert self.talk(provider, message, answers=1)[0][0] == status


class TestProcess:
    @pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
    def test_a_signal_ends_it_cleanly_with_a_call_in_flight(self, signum):
        command = [sys.executable, str(SCRIPT), "--port=0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            address = urlsplit(process.stdout.readline().split()[-1].decode())
            with socket.create_connection((address.hostname, address.port), timeout=5) as connection:
                connection.sendall(TestHTTP.request("[[hang]]"))
                time.sleep(0.05)
                process.send_signal(signum)
                output, errors = process.communicate(timeout=5)
        assert (process.returncode, output, errors) == (0, b"", b"")

    def test_options_on_the_command_line(self):
        with running_provider(answer="upper", error_mix="500:1", error_calls=1, no_cost=True) as provider:
            failed, answered = ask_all(provider, ["a", "a"], at_once=False)
            assert failed.status_code == 500
            assert text(answered) == "A"

    def test_a_wrong_option_on_the_command_line(self):
        command = [sys.executable, str(SCRIPT), "--error-mix", "nonesuch:0.1"]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
        assert ended.returncode != 0
        assert "no fixture 'nonesuch'" in ended.stderr
