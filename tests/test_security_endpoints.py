"""Where a key may go: to the server that this process's own settings name, encrypted, and nowhere else."""

from __future__ import annotations

import json

import pytest
from listening_server import Reply, completion, listening_server
from processes import bench

from batchq import open_queue, prompt_map
from batchq.config import load_settings
from batchq.discovery import find_worker
from batchq.errors import ConfigurationError
from batchq.worker import Endpoint, Request, RetryLater

KEY = "plantedkey1-Zq8vB3nM5xC7"
OPEN = "http://0.0.0.0"  # leads to this machine, and is no loopback address


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A directory without settings, for calls of the library."""
    monkeypatch.chdir(tmp_path)
    for name in ("BATCHQ_DB", "BATCHQ_BASE_URL", "BATCHQ_INSECURE", "MODEL", "OPENROUTER_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    return tmp_path


@pytest.mark.parametrize(
    "url",
    [
        "https://api.example.com/v1",
        "http://127.0.0.1:8000/v1",
        "http://127.8.9.1/v1",
        "http://[::1]:80",
        "http://localhost:1/v1",
    ],
)
def test_what_is_encrypted_or_stays_on_this_machine_may_be_called(here, url):
    settings = load_settings(base_url=url)
    settings.refuse_insecure(settings.require_endpoint("default"))


@pytest.mark.parametrize(
    "url",
    ["http://192.168.0.9:8000/v1", "http://openrouter.ai/api/v1", "http://127.0.0.1.evil.example/v1", "http://localhost.evil.example",
     "http://2130706433/v1", "http://[fe80::1]/v1", OPEN],
)  # fmt: skip
def test_what_others_could_read_on_its_way_is_refused(here, monkeypatch, url):
    def refused(**flags):
        settings = load_settings(**flags)
        with pytest.raises(
            ConfigurationError, match=r"is not encrypted: .* Write https://, or allow it with --insecure"
        ):
            settings.refuse_insecure(settings.require_server("default"))

    refused(base_url=url)
    monkeypatch.setenv("BATCHQ_BASE_URL", url)
    refused()
    monkeypatch.delenv("BATCHQ_BASE_URL")
    (here / "batchq.toml").write_text(f"base_url = {url!r}\n")
    refused()
    monkeypatch.setenv("BATCHQ_INSECURE", "1")
    allowed = load_settings()
    allowed.refuse_insecure(allowed.require_server("default"))


def test_no_command_calls_such_a_server_unless_it_is_allowed_to(tmp_path):
    (tmp_path / "prompts.txt").write_text("hello\n")
    run = ("run", "prompts.txt", "--model", "m", "-o", "answers.jsonl")
    with (
        listening_server(lambda heard: completion(f"to {heard.prompt}")) as server,
        bench(tmp_path, OPENAI_API_KEY=KEY) as place,
    ):
        url = server.base_url.replace("http://127.0.0.1", OPEN)
        for command in (("worker",), run):
            done = place.run(*command, "--base-url", url)
            assert done.returncode == 78, done.stderr
            assert "is not encrypted" in done.stderr
            assert not (tmp_path / "runs.db").exists(), "nothing is written before"
        (tmp_path / "batchq.toml").write_text(f"[endpoints.lab]\nbase_url = {url!r}\napi_key = {KEY!r}\n")
        assert place.run("worker").returncode == 78, "also where another endpoint is the default"
        assert place.run("status").returncode == 2, "what calls nothing needs no leave; there is no queue yet"
        assert server.heard == []

        done = place.run(*run, "--base-url", url, "--insecure")
        assert done.returncode == 0, done.stderr
        assert "to hello" in (tmp_path / "answers.jsonl").read_text()
        (tmp_path / "batchq.toml").write_text(
            f"[endpoints.lab]\nbase_url = {url!r}\napi_key = {KEY!r}\ninsecure = true\n"
        )
        done = place.run(*run, "--fresh", "--endpoint", "lab")
        assert done.returncode == 0, done.stderr
        assert [heard.key for heard in server.heard] == [KEY, KEY]


async def test_nor_does_the_library(here):
    with listening_server(lambda _: completion("hi")) as server:
        url = server.base_url.replace("http://127.0.0.1", OPEN)
        with pytest.raises(ConfigurationError, match="is not encrypted"):
            await prompt_map(["hello"], model_name="m", base_url=url)
        assert [*here.iterdir()] == []
        async with open_queue() as queue:
            await queue.enqueue(["hello"], batch="demo", model="m")
            with pytest.raises(ConfigurationError, match="is not encrypted"):
                await queue.work(base_url=url)
        assert server.heard == []


@pytest.mark.parametrize(
    "url",
    [f"https://user:{KEY}@api.example.com/v1", f"https://{KEY}@api.example.com/v1", f"https://api.example.com/v1?key={KEY}",
     f"https://api.example.com/v1#{KEY}", f"https://:{KEY}@[x/v1"],
)  # fmt: skip
def test_a_password_or_a_key_in_a_base_url_is_refused_and_not_shown(here, url):
    (here / "batchq.toml").write_text(f"[endpoints.lab]\nbase_url = {url!r}\n")
    with pytest.raises(
        ConfigurationError, match=r"endpoints\.lab\.base_url in .* can't hold a user, a password"
    ) as refusal:
        load_settings()
    assert KEY not in str(refusal.value)


@pytest.mark.parametrize("text", [f"{KEY}é", f"{KEY}\nX-More: 1", f"two {KEY}", f"{KEY}\x00".replace("\x00", "\x7f")])
def test_a_key_that_no_header_can_hold_is_named_and_not_shown(here, monkeypatch, text):
    monkeypatch.setenv("OPENAI_API_KEY", text)
    with pytest.raises(ConfigurationError, match="OPENAI_API_KEY should hold a key and nothing else") as refusal:
        load_settings(base_url="https://api.example.com/v1").endpoint("default")
    assert KEY not in str(refusal.value)


def test_blanks_around_a_key_are_no_part_of_it(here, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    assert load_settings(base_url="https://api.example.com/v1").endpoint("default").api_key == KEY


async def call(worker: str, base_url: str) -> object:
    """Ask one prompt of a server."""
    body = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
    request = Request("hello", body, "/v1/chat/completions", "m", {}, "b", 0, None, 1)
    async with find_worker(worker).open(Endpoint("default", base_url, KEY)) as handler:
        return await handler(request)


@pytest.mark.parametrize("worker", ["openrouter", "pydantic_ai"])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed_and_the_key_stays_where_it_was_sent(worker, status):
    with listening_server(lambda _: completion("caught")) as other:
        moved = Reply(status, "", {"location": f"{other.base_url}/chat/completions"})
        with listening_server(lambda _: moved) as server, pytest.raises(RetryLater, match=f"HTTP {status}: moved to"):
            await call(worker, server.base_url)
        assert [heard.key for heard in server.heard] == [KEY]
        assert other.heard == []


async def test_nor_is_it_where_a_proxy_is_between(monkeypatch):
    with listening_server(lambda _: completion("caught")) as other:
        moved = Reply(307, "", {"location": f"{other.base_url}/chat/completions"})
        with listening_server(lambda _: moved) as proxy:
            monkeypatch.setenv("HTTP_PROXY", proxy.base_url.removesuffix("/v1"))
            monkeypatch.delenv("NO_PROXY", raising=False)
            monkeypatch.delenv("no_proxy", raising=False)
            with pytest.raises(RetryLater, match="HTTP 307: moved to"):
                await call("openrouter", "http://far.example/v1")
        assert [(heard.path, heard.key) for heard in proxy.heard] == [("http://far.example/v1/chat/completions", KEY)]
        assert other.heard == []


def test_the_names_of_settings_show_no_key(here):
    (here / "batchq.toml").write_text(f"[endpoints.lab]\nbase_url = 'https://h/v1'\napi_key = {KEY!r}\n")
    from batchq.api.call import Call

    settings = load_settings(openrouter_api_key=f"{KEY}2")
    shown = repr(settings) + str(settings) + repr(settings.endpoint("lab")) + repr(Call([], openrouter_api_key=KEY))
    assert KEY not in shown + json.dumps(settings.model_dump(mode="json"))


pytestmark = pytest.mark.anyio
