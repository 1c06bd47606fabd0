"""How a name becomes a worker."""

import asyncio
import socket
import sys
import threading
import time
from contextlib import ExitStack
from contextvars import ContextVar

import anyio
import anyio.to_thread
import pytest

from batchq import adapting, threads
from batchq.adapting import adapt
from batchq.discovery import find_worker, installed_workers, is_loading, worker_name, wrap_worker
from batchq.errors import ConfigurationError
from batchq.request import RequestKeys, encode
from batchq.worker import Endpoint, Halt, Request, RetryLater
from batchq_workers import openrouter

ENDPOINT = Endpoint("default", "http://127.0.0.1:1/v1")
REQUEST = Request("hi", {}, "", "", {}, "b", 0, None, 1)


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
        "from contextlib import asynccontextmanager, contextmanager\n"
        "from functools import partial, wraps\n"
        "from batchq import Plugin, Request\n"
        "async def shout(prompt): return prompt.upper()\n"
        "async def nothing(): return 1\n"
        "async def too_much(prompt, key): return 1\n"
        "class Caller:\n"
        "    async def __call__(self, prompt): return prompt * 2\n"
        "double = Caller()\n"
        "@asynccontextmanager\n"
        "async def opened(endpoint):\n"
        "    async def call(prompt): return endpoint.base_url\n"
        "    yield call\n"
        "number = 3\n"
        "plugin = Plugin(opened)\n"
        "@asynccontextmanager\n"
        "async def opened_blocking(endpoint): yield plain\n"
        "@asynccontextmanager\n"
        "async def opened_empty(endpoint): yield None\n"
        "async def greet(prompt, *, greeting): return greeting + prompt\n"
        "greeter = partial(greet, greeting='oh ')\n"
        "in_lambda = lambda prompt: greet(prompt, greeting='ah ')\n"
        "def plain(prompt): return prompt + '!'\n"
        "def whole(request: Request): return request.batch\n"
        "def traced(function):\n"
        "    @wraps(function)\n"
        "    def call(*arguments): return function(*arguments)\n"
        "    return call\n"
        "around = traced(shout)\n"
        "around_opened = traced(opened)\n"
        "class Twice:\n"
        "    def __call__(self, prompt): return prompt * 2\n"
        "    @staticmethod\n"
        "    def thrice(prompt): return prompt * 3\n"
        "    def whole(self, request: 'Request'): return request.batch\n"
        "twice = Twice()\n"
        "builtin = str.upper\n"
        "def generator(prompt): yield prompt\n"
        "async def async_generator(prompt): yield prompt\n"
        "@contextmanager\n"
        "def sync_opened(endpoint): yield plain\n"
    )
    yield path
    sys.modules.pop("my_worker", None)
    sys.path[:] = [entry for entry in sys.path if entry != str(tmp_path)]


@pytest.mark.parametrize("form", ["my_worker.py:{}", "my_worker:{}", "./my_worker.py:{}"])
@pytest.mark.parametrize(
    ("function", "expected"),
    [("shout", "HI"), ("double", "hihi"), ("opened", ENDPOINT.base_url), ("plugin", ENDPOINT.base_url),
     ("greeter", "oh hi"), ("around", "HI"), ("around_opened", ENDPOINT.base_url), ("plain", "hi!"), ("whole", "b"),
     ("in_lambda", "ah hi"), ("opened_blocking", "hi!"), ("twice", "hihi"), ("Twice.thrice", "hihihi"),
     ("twice.whole", "b"), ("builtin", "HI")],
)  # fmt: skip
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
        ("my_worker.py:number", "my_worker.py:number is not a worker: expected `async def function.prompt.`"),
        ("my_worker.py:nothing", r"takes one argument, the prompt; nothing\(\) does not"),
        ("my_worker.py:too_much", r"takes one argument, the prompt; too_much\(prompt, key\) does not"),
        ("my_worker.py:Twice", "it is a class; make an object of it"),
        ("my_worker.py:generator", "it is a generator; return the answer"),
        ("my_worker.py:async_generator", "it is an async generator; .* add @asynccontextmanager"),
        ("my_worker.py:sync_opened", "it is made with @contextmanager; write `async def`"),
        ("my_worker.py:opened_empty", "this factory gives NoneType"),
    ],
)
def test_what_is_no_worker_is_said_in_a_sentence(script, reference, words):
    with pytest.raises(ConfigurationError, match=words):
        answer(reference)


def test_a_script_can_tell_that_it_is_being_loaded(tmp_path):
    (tmp_path / "unguarded.py").write_text(
        "from batchq.discovery import is_loading\nasync def ask(prompt): return [loaded, is_loading()]\nloaded = is_loading()\n"
    )
    assert not is_loading()
    assert answer(f"{tmp_path / 'unguarded.py'}:ask") == [True, False]
    assert not is_loading()
    sys.modules.pop("unguarded")
    sys.path.remove(str(tmp_path))


def test_a_blocking_function_keeps_the_context_and_may_run_a_loop_of_its_own():
    kept = ContextVar("kept", default="nothing")

    async def inner(prompt):
        await anyio.sleep(0)
        return f"{prompt} {kept.get()} {threading.current_thread().daemon}"

    async def main(function):
        kept.set("context")
        async with wrap_worker(function, "w").open(ENDPOINT) as handler:
            return await handler(REQUEST)

    assert anyio.run(main, lambda prompt: anyio.run(inner, prompt)) == "hi context True"
    assert anyio.run(main, lambda prompt: asyncio.run(inner(prompt))) == "hi context True"


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), StopIteration(1), RetryLater("later")], ids=repr)
def test_what_a_blocking_function_raises_is_raised_where_it_is_awaited(error):
    def fail(prompt):
        raise error

    async def main():
        with pytest.raises(RuntimeError if isinstance(error, StopIteration) else type(error)):
            await adapt(fail)(REQUEST)

    asyncio.run(main())


def test_threads_are_used_again_and_end_when_nothing_is_left_to_do(monkeypatch):
    monkeypatch.setattr(threads, "IDLE_SECONDS", 0.2)
    seen = set()

    async def main():
        handler = adapt(lambda prompt: seen.add(threading.current_thread()))
        for _ in range(20):
            await handler(REQUEST)

    asyncio.run(main())
    assert len(seen) == 1
    (thread,) = seen
    thread.join(10)
    assert not thread.is_alive()


def test_an_abandoned_call_goes_on_and_its_thread_is_used_again():
    go_on, went_on = threading.Event(), threading.Event()

    def block(prompt):
        if not go_on.wait(10):
            raise TimeoutError
        went_on.set()

    async def main():
        handler = adapt(block)
        with anyio.move_on_after(0.05) as scope:
            await handler(REQUEST)
        assert scope.cancelled_caught
        go_on.set()
        assert await anyio.to_thread.run_sync(went_on.wait, 10)
        await handler(REQUEST)

    asyncio.run(main())


def test_a_function_whose_calls_hang_is_called_no_more_until_they_end(monkeypatch):
    monkeypatch.setattr(adapting, "MOST_ABANDONED", 2)
    go_on = threading.Event()
    begun = []

    def block(prompt):
        begun.append(prompt)
        if not go_on.wait(10):
            raise TimeoutError

    async def main():
        handler = adapt(block)
        for number in range(1, 3):
            async with anyio.create_task_group() as group:
                group.start_soon(handler, REQUEST)
                while len(begun) < number:
                    await anyio.sleep(0.01)
                group.cancel_scope.cancel()
        with pytest.raises(Halt, match="2 calls that were given up still run") as raised:
            await handler(REQUEST)
        assert (raised.value.error_class, len(begun)) == ("hanging", 2)
        go_on.set()
        with anyio.fail_after(10):
            while True:
                try:
                    return await handler(REQUEST)
                except Halt:
                    await anyio.sleep(0.01)

    asyncio.run(main())
    assert len(begun) == 3


def test_calls_that_are_waited_for_are_not_abandoned(monkeypatch):
    monkeypatch.setattr(adapting, "MOST_ABANDONED", 1)

    async def main():
        handler = adapt(lambda prompt: time.sleep(0.05))
        for _ in range(2):
            await asyncio.gather(*(handler(REQUEST) for _ in range(8)))

    asyncio.run(main())


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
