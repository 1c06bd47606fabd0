"""Whoever can write into the database gets no key, and makes no process import, unpickle or fetch anything."""

from __future__ import annotations

import ast
import asyncio
import base64
import json
import os
import pickle
from pathlib import Path

import pytest
from listening_server import completion, listening_server
from processes import ON_BOTH, bench_for
from raw_connection import connect

from batchq import open_queue
from batchq.request import KNOWN_URLS

KEY = "plantedkey1-Zq8vB3nM5xC7"
ROOT = Path(__file__).resolve().parent.parent
CODE = [*(ROOT / "batchq").rglob("*.py"), *(ROOT / "workers" / "batchq_workers").rglob("*.py")]


class Bomb:
    """What would run a command when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch unpickled",)


PICKLED = base64.b64encode(pickle.dumps(Bomb())).decode()


@pytest.fixture
def place(request, tmp_path):
    with bench_for(request, tmp_path, OPENAI_API_KEY=KEY) as made:
        (tmp_path / "evil.py").write_text(
            "from pathlib import Path\nPath('imported').touch()\n\ndef f(prompt): return prompt\n"
        )
        yield made


def plant(place, batches: dict[str, dict[str, str]]) -> None:
    """Enqueue batches of one row, then write into their columns, and into the payload of their job, past batchq."""

    async def enqueue() -> None:
        async with open_queue(str(place.database)) as queue:
            for name in batches:
                await queue.enqueue(["hello"], batch=name, model="m")

    asyncio.run(enqueue())
    with connect(place.database) as connection:
        for name, columns in batches.items():
            for column, value in columns.items():
                own = "jobs SET payload = ? WHERE batch_id = (SELECT id FROM batches WHERE name = ?)"
                row = own if column == "payload" else f"batches SET {column} = ? WHERE name = ?"
                connection.execute(f"UPDATE {row}", [value, name])


@ON_BOTH
def test_nothing_in_the_database_sends_a_key_elsewhere_or_makes_a_process_import_code(place):
    with (
        listening_server(lambda _: completion("caught")) as other,
        listening_server(lambda _: completion('{"a": 1}')) as server,
    ):
        elsewhere = other.base_url.removeprefix("http://")
        # Without a path, so that what is appended could go on with the name of the host.
        root = server.base_url.removesuffix("/v1")
        urls = [
            f"@{elsewhere}/chat/completions",
            f"{other.base_url}/chat/completions",
            f".{elsewhere}",
            "/v1/../../keys",
            "0/v1",
            ["/v1/chat/completions"],
        ]
        headers = {"Authorization": "Bearer other", "Host": elsewhere, "X-Forwarded-Host": elsewhere}
        misled = {
            "base_url": other.base_url, "api_key": "other", "extra_headers": headers, "headers": headers,
            "extra_query": {"a": "b"}, "extra_body": {}, "timeout": 0.001, "proxy": other.base_url,
        }  # fmt: skip
        messages = {"messages": [{"role": "user", "content": "hi"}]}
        fetched = {"type": "object", "$ref": f"{other.base_url}/schema.json", "not": {"$dynamicRef": other.base_url}}
        workers = [
            "os:system",
            "evil:f",
            f"{place.directory}/evil.py:f",
            "../evil.py:f",
            "evil",
            "builtins:eval",
            PICKLED,
        ]
        planted = {
            "params": {"settings": json.dumps({"params": misled, "base_url": other.base_url, "endpoint": "evil"})},
            "body": {"payload": json.dumps({"body": messages | misled})},
            "agent": {"payload": json.dumps(messages | misled), "worker": "pydantic_ai"},
            "schema": {"settings": json.dumps({"schema": fetched, "schema_tries": 1})},
            "pickle": {"payload": PICKLED},
            "pickled_settings": {"settings": json.dumps({"__reduce__": PICKLED, "py/object": "evil.f"})},
            "endpoint": {"endpoint": other.base_url},
            "unknown_endpoint": {"endpoint": "evil"},
        }
        planted |= {f"url{number}": {"settings": json.dumps({"url": url})} for number, url in enumerate(urls)}
        planted |= {f"worker{number}": {"worker": worker} for number, worker in enumerate(workers)}
        plant(place, planted)

        done = place.run("worker", "--until-empty", "--base-url", root)
        shown = place.run("status")

        assert other.heard == [], "nothing went elsewhere"
        assert {heard.key for heard in server.heard} == {KEY}
        assert {heard.headers["host"] for heard in server.heard} == {root.removeprefix("http://")}
        assert {heard.path.partition("?")[0] for heard in server.heard} <= {
            url.removeprefix("/v1") for url in KNOWN_URLS
        }
        assert len(server.heard) >= 4, "the others were asked"
    assert not (place.directory / "imported").exists()
    assert not (place.directory / "unpickled").exists()
    assert "Traceback" not in done.stderr + shown.stderr
    assert shown.returncode == 0, shown.stderr
    states = dict(place.query("SELECT b.name, j.state FROM batches b JOIN jobs j ON j.batch_id = b.id"))
    assert {states[f"url{number}"] for number in range(len(urls))} == {"failed"}
    assert {states[name] for name in states if name.startswith("worker")} == {"pending"}, "not this process's to serve"
    assert (states["endpoint"], states["unknown_endpoint"]) == ("pending", "pending")
    assert (states["params"], states["body"], states["pickle"]) == ("done", "done", "failed")


FORBIDDEN_MODULES = {
    "pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "marshal",
    "shelve",
    "subprocess",
    "yaml",
    "runpy",
    "code",
    "ctypes",
}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
OF_OS = {"system", "popen", "execv", "execve", "execvp", "spawnv", "posix_spawn"}
# Where a module is imported by a name: that of our own tables, or what stands on the command line.
# `service` runs systemctl, with words from the command line: it never opens a queue.
STARTS_A_PROGRAM = {"batchq/service/manager.py": ["subprocess"]}
IMPORT_BY_NAME = {"__init__.py", "answers.py", "arrow.py", "lazy.py", "discovery.py", "pydantic_ai.py"}


def complaints(path: Path) -> list[str]:
    """Name what a file should not do."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Import(names=names):
                found += [name.name for name in names if name.name.partition(".")[0] in FORBIDDEN_MODULES]
            case ast.ImportFrom(module=module):
                found += [module] if (module or "").partition(".")[0] in FORBIDDEN_MODULES else []
            case ast.Call(func=ast.Name(id=name)) if name in FORBIDDEN_CALLS:
                found.append(name)
            case ast.Call(func=ast.Attribute(value=ast.Name(id="os"), attr=name)) if name in OF_OS:
                found.append(f"os.{name}")
            case ast.Call(func=ast.Name(id="import_module") | ast.Attribute(attr="import_module")):
                found += [] if path.name in IMPORT_BY_NAME else ["import_module"]
    return found


def test_no_room_unpickles_evaluates_or_starts_anything():
    assert {str(path.relative_to(ROOT)): found for path in CODE if (found := complaints(path))} == STARTS_A_PROGRAM


def test_that_would_be_noticed(tmp_path):
    path = tmp_path / "room.py"
    path.write_text(
        "import os, pickle\nfrom marshal import loads\neval('1')\nos.system('')\nimportlib.import_module('a')\n"
    )
    assert complaints(path) == ["pickle", "marshal", "eval", "os.system", "import_module"]
