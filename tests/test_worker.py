"""How a name becomes a worker."""

import asyncio
import socket
import sys
import threading
from contextlib import ExitStack

import pytest

from batchq.discovery import find_worker, installed_workers, worker_name
from batchq.errors import ConfigurationError
from batchq.request import RequestKeys, encode
from batchq.worker import Endpoint, Request, RetryLater
from batchq_workers import openrouter

ENDPOINT = Endpoint("default", "http://127.0.0.1:1/v1")


def answer(reference, prompt="hi"):
    async def main():
        async with find_worker(reference).open(ENDPOINT) as handler:
            return await handler(Request(prompt, {}, "", "", {}, "b", 0, None, 1))

    return asyncio.run(main())


@pytest.fixture
def script(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "my_worker.py"
    path.write_text(
        "from contextlib import asynccontextmanager\n"
        "async def shout(prompt): return prompt.upper()\n"
        "def plain(prompt): return prompt\n"
        "async def nothing(): return 1\n"
        "class Caller:\n"
        "    async def __call__(self, prompt): return prompt * 2\n"
        "double = Caller()\n"
        "@asynccontextmanager\n"
        "async def opened(endpoint):\n"
        "    async def call(prompt): return endpoint.base_url\n"
        "    yield call\n"
        "number = 3\n"
    )
    yield path
    sys.modules.pop("my_worker", None)
    sys.path[:] = [entry for entry in sys.path if entry != str(tmp_path)]


@pytest.mark.parametrize("form", ["my_worker.py:{}", "my_worker:{}", "./my_worker.py:{}"])
@pytest.mark.parametrize(("function", "expected"), [("shout", "HI"), ("double", "hihi"), ("opened", ENDPOINT.base_url)])
def test_functions_objects_and_factories_are_workers(script, form, function, expected):
    assert answer(form.format(function)) == expected


def test_installed_workers_are_found_by_name():
    assert {"echo", "openrouter"} <= set(installed_workers())
    assert answer("echo") == "hi"
    assert find_worker("openrouter").needs_model


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("nosuch", "installed: echo"),
        ("no_such_module:f", "^can't import no_such_module: No module named"),
        ("missing.py:f", "^can't import missing.py: there is no file"),
        ("my_worker.py:absent", "no function 'absent'"),
        ("my_worker.py:number", "not a worker"),
        ("my_worker.py:plain", "async def"),
        ("my_worker.py:nothing", "takes one argument"),
    ],
)
def test_what_is_no_worker_is_said_in_a_sentence(script, reference, words):
    with pytest.raises(ConfigurationError, match=words):
        find_worker(reference)


def test_a_script_has_one_name_from_everywhere():
    assert worker_name("a/b/mine.py:f") == worker_name("mine.py:f") == "mine.py:f"
    assert worker_name("package.module:f") == "package.module:f"


def test_equal_requests_have_equal_keys_and_others_do_not():
    def key(payload, *, worker="w", endpoint="default", model="m", **settings):
        return RequestKeys(worker, endpoint, model, settings).key(payload, encode(payload))

    messages = {"messages": [{"role": "user", "content": "hi"}]}
    assert key("hi") == key(messages) == key({"body": messages})
    assert key("hi", params={"temperature": 0}) == key({"body": messages | {"temperature": 0}})
    different = [key("hi"), key("ho"), key("hi", model="n"), key("hi", worker="v"), key("hi", endpoint="e")]
    different += [key("hi", system="s"), key("hi", params={"temperature": 0}), key("hi", url="/v1/embeddings")]
    assert len(set(different)) == len(different)


def test_the_openrouter_key_goes_to_openrouter_only(monkeypatch, tmp_path):
    from batchq.config import load_settings

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENROUTER_API_KEY", "sk-or-secret")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert load_settings().endpoint("default").api_key == "sk-or-secret"
    assert load_settings(base_url="https://api.example.com/v1").endpoint("default").api_key is None
    assert load_settings(base_url="https://openrouter.ai.evil.example/v1").endpoint("default").api_key is None
    assert "sk-or-secret" not in repr(load_settings()) + repr(load_settings().endpoint("default"))


def test_a_missing_key_is_named_before_anything_is_called():
    async def main(base_url):
        async with find_worker("openrouter").open(Endpoint("default", base_url)):
            return True

    with pytest.raises(ConfigurationError, match="OPENROUTER_API_KEY"):
        asyncio.run(main("https://openrouter.ai/api/v1"))
    with pytest.raises(ConfigurationError, match="OPENAI_API_KEY"):
        asyncio.run(main("https://api.example.com/v1"))
    assert asyncio.run(main("http://127.0.0.1:9/v1"))
    with pytest.raises(ConfigurationError, match=r"'far' an api_key_file in batchq\.toml"):
        find_worker("openrouter").check(Endpoint("far", "https://api.example.com/v1"))
    find_worker("echo").check(Endpoint("far", "https://api.example.com/v1"))


def test_attribution_goes_to_openrouter_only(monkeypatch, tmp_path):
    from batchq.config import load_settings

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BATCHQ_APP_URL", "https://labels.example")
    monkeypatch.setenv("OPENROUTER_APP_TITLE", "Labels")
    told = (("HTTP-Referer", "https://labels.example"), ("X-OpenRouter-Title", "Labels"))
    assert load_settings().endpoint("default").headers == told
    assert load_settings(base_url="https://api.example.com/v1").endpoint("default").headers == ()


def test_a_title_that_no_header_can_hold_is_named(monkeypatch, tmp_path):
    from batchq.config import load_settings

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BATCHQ_APP_TITLE", "Größe")
    with pytest.raises(ConfigurationError, match="BATCHQ_APP_TITLE is 'Größe'"):
        load_settings().endpoint("default")


def test_a_servers_words_that_quote_the_key_lose_it():
    assert openrouter.redacted("no such key: 0123456789", "0123456789") == "no such key: [redacted]"
    assert openrouter.redacted("no key at all: none", "none") == "no key at all: none"


def test_a_call_carries_its_key_and_the_headers_of_its_endpoint():
    heard = []
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()

        def answer():
            connection, _ = server.accept()
            heard.append(connection.recv(100_000).decode().lower())
            connection.close()

        thread = threading.Thread(target=answer)
        thread.start()

        async def main():
            url = f"http://127.0.0.1:{server.getsockname()[1]}/v1"
            endpoint = Endpoint("default", url, "sk-the-key", (("X-OpenRouter-Title", "Labels"),))
            async with find_worker("openrouter").open(endpoint) as handler:
                with pytest.raises(RetryLater):
                    await handler(Request("hi", {"messages": []}, "/v1/chat/completions", "m", {}, "b", 0, None, 1))

        asyncio.run(main())
        thread.join()
    assert "post /v1/chat/completions http/1.1" in heard[0]
    assert "authorization: bearer sk-the-key\r\n" in heard[0]
    assert "x-openrouter-title: labels\r\n" in heard[0]
    assert "openai-organization" not in heard[0]


def failure_at(base_url):
    """What the openrouter worker raises when it calls a server that gives no answer."""

    async def main():
        async with find_worker("openrouter").open(Endpoint("default", base_url, "key")) as handler:
            with pytest.raises(RetryLater) as caught:
                await handler(Request("hi", {"messages": []}, "/v1/chat/completions", "m", {}, "b", 0, None, 1))
        return caught.value.error_class, str(caught.value)

    return asyncio.run(main())


def test_a_refused_connection_is_no_timeout_and_is_said_plainly():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))  # nobody listens
        host = f"127.0.0.1:{server.getsockname()[1]}"
        assert failure_at(f"http://{host}/v1") == ("connection", f"can't connect to {host}: Connection refused")


def test_a_connection_that_nobody_accepts_in_time_is_a_timeout(monkeypatch):
    monkeypatch.setattr(openrouter, "CONNECT_SECONDS", 0.2)
    with socket.socket() as server, ExitStack() as stack:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(3):  # fills the queue of connections to accept
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(server.getsockname())
        assert failure_at(f"http://127.0.0.1:{server.getsockname()[1]}/v1") == ("timeout", "connecting timed out")


@pytest.mark.parametrize(
    ("said", "expected"),
    [(b"", ("connection", "the connection broke: Server disconnected")),
     (b"SSH-2.0\r\n", ("broken_answer", "the answer is not HTTP (ClientResponseError)"))],
)  # fmt: skip
def test_a_server_that_speaks_no_http_is_said_plainly(said, expected):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()

        def answer():
            connection, _ = server.accept()
            connection.recv(100_000)
            connection.sendall(said)
            connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        assert failure_at(f"http://127.0.0.1:{server.getsockname()[1]}/v1") == expected
        thread.join()
