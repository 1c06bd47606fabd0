"""The wheel, as a project of a user's sees it: what is in it, what it imports, and whether type checkers like it."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from worker_examples import write_examples

pytestmark = pytest.mark.wheel

ROOT = Path(__file__).resolve().parent.parent
SITE_PACKAGES = Path(sysconfig.get_path("purelib"))
# Not there after a `pip install batchq` alone.
OPTIONAL = (
    "_polars", "genai_prices", "pandas", "polars", "pyarrow", "pydantic_ai", "pydantic_graph", "uvloop",
)  # fmt: skip
HEAVY = ("sqlalchemy", "openai", "rich", "pydantic", "pydantic_settings", "polars", "pandas")

SHOUTING = '''
"""Workers of the user's own, in a package that is called like batchq's directory of them."""

import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

from batchq import (
    Answer,
    ConfigurationError,
    Endpoint,
    Halt,
    Json,
    Plugin,
    Reject,
    Request,
    RetryLater,
    Throttled,
    Usage,
)


async def shout(prompt: str) -> str:
    return prompt.upper()


def whisper(prompt: str) -> str:
    time.sleep(0.1)
    return prompt.lower()


async def count(prompt: str) -> dict[str, int]:
    return {word: prompt.count(word) for word in prompt.split()}


def words(prompt: str) -> list[str]:
    return prompt.split()


async def loose(prompt: str) -> dict[str, object]:
    return {"prompt": prompt}


def anything(prompt: str | dict[str, Json]) -> Json:
    return {"prompt": prompt, "words": [1, None, 2.5]}


async def steer(request: Request) -> Answer:
    paid = Answer(None, Usage(3, 4), cost=0.25)
    match request.attempt:
        case 1:
            raise RetryLater("not yet", after=1, at_most=3, answer=paid)
        case 2:
            raise Throttled("slowly", after=0.5, status=429)
        case 3:
            raise Halt("no credit", error_class="no_credit", status=402)
        case 4:
            raise Reject("never", error_class="never", answer=paid)
        case _:
            return Answer({"label": str(request.prompt)}, Usage(1, 2), cost=0.5, meta={"batch": request.batch})


@asynccontextmanager
async def open_worker(endpoint: Endpoint) -> AsyncGenerator[Callable[[Request], Awaitable[str]], None]:
    async def ask(request: Request) -> str:
        return f"{request.model} at {endpoint.base_url}: {request.body.get('messages')}"

    yield ask


def check(endpoint: Endpoint) -> None:
    if endpoint.api_key is None:
        raise ConfigurationError("a key is needed")


plugin = Plugin(open_worker, needs_model=True, check=check, name="asking", settings={"version": 2})
'''

SCRIPT = '''
"""A script: prompts in, rows out."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any, assert_type

from pydantic import BaseModel
from workers.shouting import anything, count, loose, plugin, shout, steer, whisper, words

from batchq import (
    DB_URL_DEFAULT,
    AnswerRow,
    AnswerUsage,
    BadInput,
    BatchqError,
    CannotGoOn,
    ConfigurationError,
    Summary,
    export_jsonl,
    export_jsonl_sync,
    prompt_map,
    prompt_map_sync,
    prompt_stream,
)

PROMPTS = ["one", "two"]


class Label(BaseModel):
    label: str
    score: int


async def label(prompt: str) -> Label:
    return Label(label=prompt, score=1)


async def later() -> AsyncIterator[str]:
    for prompt in PROMPTS:
        yield prompt


async def shapes() -> None:
    rows = await prompt_map(PROMPTS, model_name="some/model", concurrency=16, teardown=True)
    assert_type(rows, list[AnswerRow])
    assert_type(rows[0]["usage"], AnswerUsage)
    assert_type(rows[0]["usage"]["cost"], float | None)
    assert_type(await prompt_map(PROMPTS, worker=shout, return_dtype=list[dict[str, Any]]), list[AnswerRow])
    assert_type(await prompt_map(PROMPTS, worker=shout, return_dtype="list[dict]"), list[AnswerRow])
    assert_type(await prompt_map(PROMPTS, worker=whisper, return_dtype=list[str]), list[str])
    assert_type(await prompt_map(PROMPTS, worker=whisper, return_dtype="list[str]"), list[str])
    assert_type(await prompt_map(later(), worker=count, return_dtype=list[tuple[str, str]]), list[tuple[str, str]])
    assert_type(await prompt_map(PROMPTS, worker="echo", return_dtype="list[tuple[str,str]]"), list[tuple[str, str]])
    assert_type(await prompt_map(PROMPTS, worker=lambda prompt: f"{prompt}!", return_dtype=list[str]), list[str])
    print(await prompt_map(PROMPTS, worker=words, return_dtype="polars"))
    print(len(await prompt_map(Path("prompts.jsonl"), worker=loose, return_dtype="pandas")))
    written = await prompt_map(({"text": word} for word in PROMPTS), worker=plugin, template="{{ text }}", out="o.csv")
    assert_type(written, Summary)
    assert_type(written.cost, float | None)


async def structured() -> None:
    for row in await prompt_map(PROMPTS, worker=label, response_model=Label, params={"temperature": 0, "stop": ["."]}):
        answer: Label = row["result"]
        print(answer.label, answer.score)
    async with aclosing(prompt_stream(PROMPTS, worker=steer, output_shape="unique", rpm_limit=60, budget=0.5)) as rows:
        async for row in rows:
            assert_type(row, AnswerRow)
            print(row["idx"], row["status"], row["error_class"])
    assert_type(await export_jsonl(DB_URL_DEFAULT, out="results.jsonl"), int)


def plain() -> None:
    assert_type(prompt_map_sync(PROMPTS, worker=anything), list[AnswerRow])
    assert_type(prompt_map_sync(PROMPTS, worker=shout, return_dtype=list[str]), list[str])
    assert_type(prompt_map_sync(PROMPTS, worker=shout, return_dtype=list[tuple[str, str]]), list[tuple[str, str]])
    assert_type(prompt_map_sync(PROMPTS, worker=shout, out=Path("out.jsonl")), Summary)
    print(prompt_map_sync(PROMPTS, worker=shout, return_dtype="polars"))
    assert_type(export_jsonl_sync(out=Path("results.jsonl"), batch="mine"), int)


if __name__ == "__main__":
    try:
        asyncio.run(shapes())
        asyncio.run(structured())
        plain()
    except BadInput as error:
        print(error.examples, error.count)
    except (CannotGoOn, ConfigurationError) as error:
        print(error)
    except BatchqError as error:
        raise SystemExit(1) from error
'''

SERVICE = '''
"""An application: a queue that stays open, and a test of it."""

import asyncio
from pathlib import Path
from typing import assert_type

from pydantic import BaseModel
from workers.shouting import open_worker, plugin, shout, whisper

from batchq import (
    Attempt,
    Batch,
    BatchState,
    Collected,
    Counts,
    Enqueued,
    ErrorGroup,
    JobState,
    Lane,
    Progress,
    Queue,
    Result,
    RunnerInfo,
    UnknownBatch,
    open_queue,
)
from batchq.testing import ScriptedWorker, VirtualClock, drain, temporary_queue
from batchq_workers.openrouter import plugin as openrouter


class Label(BaseModel):
    label: str


async def serve(path: Path) -> None:
    async with open_queue(path) as queue:
        assert_type(queue, Queue)
        added = await queue.enqueue(["a", "b"], batch="letters", worker=shout, budget=1.5, priority=1)
        assert_type(added, Enqueued)
        await queue.enqueue([{"prompt": "c"}], batch="plugin", worker=plugin, model="some/model", schema=Label)
        await queue.enqueue(["d"], batch="opened", worker=open_worker, schema={"type": "object"}, reuse=True)
        await queue.work(shout, concurrency=4, batches=["letters"])
        await queue.work([shout, whisper, "echo"])
        await queue.work({"letters": shout, "asking": plugin, "openrouter": openrouter})
        assert_type(await queue.wait("letters", timeout=5), Progress)
        async for progress in queue.watch("letters"):
            assert_type(progress, Progress)
            assert_type(progress.counts, Counts)
        async for result in queue.results("letters", with_prompt=True):
            assert_type(result, Result)
            assert_type(result.state, JobState)
            print(result.position, result.value)
        await read(queue)
        await operate(queue)


async def read(queue: Queue) -> None:
    assert_type(await queue.batches(), list[Batch])
    assert_type((await queue.batches())[0].state, BatchState)
    assert_type(await queue.why_waiting("letters"), str | None)
    assert_type(await queue.job("letters", 0), tuple[Result, list[Attempt]])
    assert_type(await queue.errors("letters"), list[ErrorGroup])
    assert_type(await queue.runners(), tuple[RunnerInfo, ...])
    assert_type(await queue.lanes(), tuple[Lane, ...])
    assert_type(await queue.collect("letters", Path("out.jsonl"), overwrite=True), Collected)


async def operate(queue: Queue) -> None:
    try:
        assert_type(await queue.retry("letters", "timeout"), int)
        await queue.pause("letters")
        await queue.resume()
        assert_type(await queue.set_limits("some/model", rpm=600, tpm=1e6, worker=shout), Lane)
        assert_type(await queue.set_budget("letters", 10), Batch)
        assert_type(await queue.purge("letters", force=True), int)
    except UnknownBatch as error:
        print(error)


async def by_hand() -> None:
    queue = await open_queue("runs.db", create=False)
    assert_type(queue, Queue)
    await queue.close()


async def check_it() -> None:
    worker = ScriptedWorker({"a": "A", "b": ["B", ValueError("late")]})
    async with temporary_queue(VirtualClock()) as queue:
        await queue.enqueue(["a", "b"], batch="letters", worker=worker)
        print((await drain(queue, worker)).attempts, worker.prompts)


if __name__ == "__main__":
    asyncio.run(serve(Path("runs.db")))
    asyncio.run(by_hand())
    asyncio.run(check_it())
'''

TABLES = '''
"""Where polars is installed."""

from typing import assert_type

import polars as pl
from workers.shouting import shout

from batchq import prompt_map, prompt_map_sync


async def tables(prompts: pl.Series) -> None:
    assert_type(await prompt_map(prompts, worker=shout, return_dtype=pl.DataFrame), pl.DataFrame)
    assert_type(prompt_map_sync(pl.DataFrame({"prompt": prompts}), return_dtype=pl.DataFrame), pl.DataFrame)
'''

FILES = {"workers/__init__.py": "", "workers/shouting.py": SHOUTING, "script.py": SCRIPT, "service.py": SERVICE}
STRICT = {"typeCheckingMode": "strict", "pythonVersion": "3.11"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build from a copy, so that nothing is left behind."""
    source, made = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("batchq", "workers", "deploy"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", made, cwd=source)
    (path,) = made.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def full(wheel, tmp_path_factory):
    """The Python of an environment with the wheel and everything that is installed here, but not this repository."""
    python, packages = environment(wheel, tmp_path_factory.mktemp("full"))
    (packages / "installed.pth").write_text(f"{SITE_PACKAGES}\n")  # whose own .pth files don't count
    return python


@pytest.fixture(scope="module")
def bare(wheel, tmp_path_factory):
    """The Python of an environment with the wheel, and nothing of what it can do without."""
    python, packages = environment(wheel, tmp_path_factory.mktemp("bare"))
    for path in SITE_PACKAGES.iterdir():
        if not (
            path.name.startswith((*OPTIONAL, "batchq")) or path.suffix == ".pth" or (packages / path.name).exists()
        ):
            (packages / path.name).symlink_to(path)
    return python


def environment(wheel: Path, directory: Path) -> tuple[Path, Path]:
    run(sys.executable, "-m", "venv", "--without-pip", directory)
    (packages,) = directory.glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    return directory / "bin" / "python", packages


@pytest.fixture
def project(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text.lstrip())
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(STRICT))
    return tmp_path


def run(*command: object, cwd: Path | None = None) -> str:
    done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_holds_two_typed_packages_and_no_tests(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"batchq", "batchq_workers"}
    assert {"batchq/py.typed", "batchq_workers/py.typed"} <= set(names)
    assert [name for name in names if {"tests", "scripts"} & set(name.split("/"))] == []


def test_mypy_is_content(full, project):
    """With the project, and with the examples of workers/README.md."""
    (project / "tables.py").write_text(TABLES.lstrip())
    write_examples(project / "examples")
    options = ["--strict", "--config-file=", "--python-executable", full, f"--cache-dir={os.devnull}"]
    found = run(sys.executable, "-m", "mypy", *options, ".", cwd=project)
    sources = len([*project.rglob("*.py")])
    assert f"no issues found in {sources} source files" in found


def test_pyright_is_content(full, project):
    (project / "tables.py").write_text(TABLES.lstrip())
    run(sys.executable, "-m", "basedpyright", "--pythonpath", full, cwd=project)


def test_pyright_is_content_where_nothing_optional_is_installed(bare, project):
    run(sys.executable, "-m", "basedpyright", "--pythonpath", bare, cwd=project)


LOADED = f"print(sorted(set(sys.modules) & set({HEAVY!r})))"


def test_an_import_brings_nothing_heavy(bare, tmp_path):
    assert run(bare, "-c", f"import sys, batchq\n{LOADED}", cwd=tmp_path) == "[]\n"


def test_help_brings_nothing_heavy(bare, tmp_path):
    code = f"import sys, batchq.cli\ntry: batchq.cli.main()\nfinally: {LOADED}"
    shown = run(bare, "-c", code, "--help", cwd=tmp_path)
    assert "enqueue" in shown
    assert shown.endswith("\n[]\n")


def test_everything_that_is_exported_is_there_without_the_extras(bare, tmp_path):
    code = "import batchq, batchq.testing\nfor name in batchq.__all__: getattr(batchq, name)"
    run(bare, "-c", code, cwd=tmp_path)
