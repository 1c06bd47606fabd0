"""`batchq doctor` asks the endpoints: whether they answer, take the key, have credit left, and know the models."""

import json
import socket
import time
from datetime import UTC, datetime, timedelta

import pytest
from doctors import Findings, doctor
from fake_provider import running_provider
from listening_server import Reply, failure, listening_server
from processes import bench

from batchq.doctor import Asked, examine, provider
from batchq.doctor.credit import judge_key

pytestmark = pytest.mark.anyio
KEY = "sk-or-v1-0123456789abcdef0123456789abcdef"
LABEL = "sk-or-v1-012...def"
WELL = {"label": LABEL, "limit": 20, "limit_remaining": 12.5, "usage": 7.5, "is_free_tier": False}
MODELS = {"data": [{"id": "maker/small"}, {"id": "maker/large"}]}


@pytest.fixture
def place(tmp_path):
    with bench(tmp_path) as made:
        yield made


@pytest.fixture
def key_file(tmp_path):
    file = tmp_path / "provider.key"
    file.write_text(KEY)
    file.chmod(0o600)
    return file


@pytest.fixture
def look_at(tmp_path, monkeypatch, key_file):
    """Examine with a server in the place of the provider, from a directory without a queue."""
    monkeypatch.chdir(tmp_path)
    for name in ("OPENROUTER_API_KEY", "OPENAI_API_KEY", "MODEL", "BATCHQ_MODEL", "BATCHQ_DB"):
        monkeypatch.delenv(name, raising=False)

    async def look(base_url, *, seconds=5.0, **flags):
        asked = Asked({"base_url": base_url, "api_key_file": key_file, **flags}, seconds)
        found = Findings([each async for each in examine(asked)])
        assert KEY not in repr(found.all)
        assert LABEL not in repr(found.all)
        return found

    return look


@pytest.fixture
def as_openrouter(monkeypatch):
    """Take this machine's server for OpenRouter's, where the key is asked for."""
    monkeypatch.setattr(provider, "is_openrouter", lambda _url: True)


def answering(data):
    def answer(heard):
        return Reply(body=json.dumps({"data": data} if heard.path.endswith("/key") else MODELS))

    return answer


def test_a_provider_that_answers(place, key_file):
    with running_provider() as served:
        options = "--base-url", served.base_url, "--api-key-file", str(key_file), "--model", "no/such-model"
        found = doctor(place, *options, code=0)
        assert "it answers, and lists 1 models" in found.of("endpoint", "ok")
        assert "no/such-model is not among the models of the endpoint default" in found.of("model", "warning")
        assert served.ledger()["calls"] == 0
    found = doctor(place, *options, code=1)
    assert "can't be reached: " in found.of("endpoint", "error")


async def test_what_is_left_on_a_key_of_openrouter(look_at, as_openrouter):
    with listening_server(answering(WELL)) as served:
        found = await look_at(served.base_url, model="maker/smal")
    assert "the key is accepted; $12.50 of its limit of $20.00 left, $7.50 used so far" in found.of("endpoint", "ok")
    assert "did you mean maker/small?" in found.of("model", "warning")
    assert [heard.path for heard in served.heard] == ["/v1/key", "/v1/models"]
    assert {heard.key for heard in served.heard} == {KEY}


@pytest.mark.parametrize("model", ["maker/small", "maker/small:floor", "@preset/mine"])
async def test_models_that_are_there(look_at, as_openrouter, model):
    with listening_server(answering(WELL)) as served:
        assert f"{model} is there" in (await look_at(served.base_url, model=model)).of("model", "ok")


@pytest.mark.parametrize(
    ("changes", "level", "told"),
    [
        ({"limit": None, "limit_remaining": None}, "ok", "it has no limit of its own"),
        ({"limit_remaining": 0}, "error", "$0.00 of its limit of $20.00 left"),
        ({"limit_remaining": 0.5}, "warning", "before it is used up"),
        ({"effective_budget": {"limit_usd": 5, "remaining_usd": 0.0}}, "error", "$0.00 of its budget of $5.00 left"),
        ({"is_management_key": True}, "error", "it is a management key"),
        ({"expires_at": "2020-01-01T00:00:00Z"}, "error", "it expired on 2020-01-01"),
        (
            {"is_free_tier": True, "free_model_daily_requests": {"used": 50, "limit": 50, "remaining": 0}},
            "warning",
            "0 of 50 requests to :free models left today",
        ),
    ],
)
async def test_keys_that_call_nothing_or_not_for_long(look_at, as_openrouter, changes, level, told):
    with listening_server(answering(WELL | changes)) as served:
        assert told in (await look_at(served.base_url)).of("endpoint", level)


def test_a_key_that_expires_soon():
    now = datetime(2026, 1, 1, tzinfo=UTC)
    for days, level in ((3, "warning"), (30, "ok")):
        found = judge_key("it", WELL | {"expires_at": (now + timedelta(days=days)).isoformat()}, now)
        assert found.level == level


@pytest.mark.parametrize(
    ("reply", "level", "told"),
    [
        (failure(401, f"bad key {KEY}"), "error", "refuses the key (401)"),
        (failure(402, "pay"), "error", "has no credit left for it (402)"),
        (failure(403, "no"), "error", "forbids the key to call it (403)"),
        (failure(404, "what"), "ok", "does not list its models"),
        (failure(500, "oh"), "warning", "it answers with 500"),
        (failure(302, "there", location="http://127.0.0.1:9/v1"), "error", "redirect (302)"),
        (Reply(body="<html>"), "error", "not in JSON"),
        (Reply(body='{"data": []}'), "warning", "lists no models"),
        (Reply(body='{"data": [1, {"id": 2}, null]}'), "warning", "lists no models"),
        (Reply(body="[1]"), "warning", "lists no models"),
    ],
)
async def test_answers_that_say_what_is_wrong(look_at, reply, level, told):
    with listening_server(lambda _heard: reply) as served:
        assert told in (await look_at(served.base_url)).of("endpoint", level)
    assert len(served.heard) == 1


@pytest.mark.parametrize("body", ['{"data": null}', '{"data": [1]}', "[]", '"text"'])
async def test_what_is_said_of_a_key_and_makes_no_sense(look_at, as_openrouter, body):
    with listening_server(lambda _heard: Reply(body=body)) as served:
        assert "what it says of the key can't be read" in (await look_at(served.base_url)).of("endpoint", "error")


async def test_a_server_that_says_nothing_is_not_waited_for(look_at):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        found = await look_at(f"http://127.0.0.1:{silent.getsockname()[1]}/v1", seconds=0.3)
    assert "no answer within 0.3 s -> see the network" in found.of("endpoint", "error")
    assert time.monotonic() - began < 10


async def test_offline_asks_nobody(look_at):
    with listening_server(answering(WELL)) as served:
        assert "it was not asked (--offline)" in (await look_at(served.base_url, seconds=None)).of("endpoint", "ok")
    assert served.heard == []


async def test_a_key_is_not_sent_in_the_clear(look_at):
    found = await look_at("http://192.0.2.1/v1")
    assert "https" in found.of("endpoint", "error")


def test_a_batch_that_waits_for_a_key(place):
    place.write_prompts(1)
    assert place.run("enqueue", "prompts.jsonl", "--batch", "demo", "--model", "maker/small").returncode == 0
    found = doctor(place, "--offline", code=1)
    assert "without a key, and demo can't run -> set OPENROUTER_API_KEY" in found.of("endpoint", "error")
