"""What workers/README.md says about workers of one's own, done as it says, with real processes."""

import inspect
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import fields
from importlib.util import find_spec

import pytest
from fake_provider import running_provider
from processes import Bench, bench, wait_for
from worker_examples import BLOCKS, EXAMPLES, README, write_examples

import batchq

NOWHERE = ("--base-url", "http://127.0.0.1:1/v1")


@pytest.fixture
def place(tmp_path):
    with bench(tmp_path) as made:
        yield made


@pytest.fixture
def examples(place):
    """The README's files and some prompts, in the bench's directory."""
    write_examples(place.directory)
    place.write_prompts(6)
    return place


def follow(place: Bench, mentioning: str, *worker_options: str, **environment: str) -> None:
    """Run the commands of the README that mention a worker; the worker runs beside the others until they are done."""
    (block,) = [text for kind, text in BLOCKS if kind == "sh" and mentioning in text]
    place.environment |= environment
    for line in block.splitlines():
        program, command, *options = shlex.split(line, comments=True)
        assert program == "batchq"
        if command == "worker":
            place.start(command, *options, *worker_options)
        else:
            done = place.run(command, *options)
            assert done.returncode == 0, done.stderr


def write(place: Bench, name: str, code: str) -> str:
    (place.directory / name).write_text(code)
    return name


def enqueue(place: Bench, worker: str, count: int, *options: str, batch: str = "b") -> None:
    done = place.run("enqueue", str(place.write_prompts(count, f"{batch}.jsonl")), "--worker", worker, *options)
    assert done.returncode == 0, done.stderr


def test_the_readme_holds_the_examples_that_are_run_here():
    assert set(EXAMPLES) == {
        "label.py", "client.py", "blocking.py", "shouting/batchq_shouting.py", "shouting/pyproject.toml",
    }  # fmt: skip
    assert len([kind for kind, _ in BLOCKS if kind in {"python", "toml"}]) == len(EXAMPLES)
    assert EXAMPLES["label.py"].count("\n") <= 11  # ten lines and the name of the file


@pytest.mark.parametrize("name", ["Request", "Answer", "Usage", "Endpoint", "Plugin"])
def test_the_tables_name_every_field_with_its_type(name):
    table = README.partition(f"| field of `{name}` |")[2].partition("\n\n")[0]
    documented = dict(re.findall(r"^\| `(\w+)` \| `(.+?)` \|", table, re.MULTILINE))
    assert {field: kind.replace("\\|", "|") for field, kind in documented.items()} == {
        field.name: field.type for field in fields(getattr(batchq, name))
    }


@pytest.mark.parametrize("name", ["RetryLater", "Reject", "Throttled", "Halt"])
def test_the_signatures_are_those_of_the_code(name):
    signature = inspect.signature(getattr(batchq, name), eval_str=True)
    spelled = re.sub(r"batchq\.jobs\.outcome\.", "", str(signature).replace(" -> None", ""))
    assert f"\n{name}{spelled}\n" in README


def test_the_ten_lines_label_prompts(examples):
    (examples.directory / "prompts.jsonl").write_text('"Why?"\n"So."\n' + json.dumps("x" * 10_001) + "\n")
    follow(examples, "label.py")
    rows = [json.loads(line) for line in (examples.directory / "labels.jsonl").read_text().splitlines()]
    assert [row.get("result") for row in rows[:2]] == [{"label": "question"}, {"label": "statement"}]
    assert (rows[2]["state"], rows[2]["error"]["class"]) == ("failed", "rejected")
    assert examples.query("SELECT meta, cost FROM jobs WHERE position = 0") == [('{"attempt":1}', 0)]


def test_the_client_calls_a_server_and_steers_by_its_status(examples):
    with running_provider() as provider:
        follow(examples, "client.py", "--base-url", provider.base_url, "--until-empty")
        rows = examples.results("asked")
        assert [row["result"] for row in rows] == [f"echo: prompt {i}" for i in range(6)]
        assert all(row["usage"]["input_tokens"] for row in rows)
        assert examples.started[0].wait(30) == 0
    # Nobody listens any more.
    enqueue(examples, "client.py:open_worker", 1, "--max-attempts", "1", "--model", "m")
    follow_up = examples.run(
        "worker", "--worker", "client.py:open_worker", "--until-empty", "--base-url", provider.base_url
    )
    assert follow_up.returncode == 0
    assert examples.query("SELECT error_class FROM jobs WHERE state = 'failed'") == [("ClientConnectorError",)]


def test_the_blocking_function_answers(examples):
    enqueue(examples, "blocking.py:shout", 6)
    assert examples.run("worker", "--worker", "blocking.py:shout", "--until-empty").returncode == 0
    assert [row["result"] for row in examples.results("b")] == [f"PROMPT {i}" for i in range(6)]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Build the example package and install it into a directory."""
    directory = tmp_path_factory.mktemp("package")
    write_examples(directory)
    installer = [sys.executable, "-m", "pip"] if find_spec("pip") else ["uv", "pip"]
    options = ["--no-build-isolation", "--no-deps", "--no-index", "--target", "installed"]
    python = [] if find_spec("pip") else ["--python", sys.executable]
    command = [*installer, "install", *python, *options, "./shouting"]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return directory / "installed"


def test_an_installed_package_is_found_by_its_name(examples, installed):
    examples.environment["PYTHONPATH"] = str(installed)
    follow(examples, "--worker shouting", *NOWHERE, "--until-empty", OPENAI_API_KEY="a-key")
    assert examples.results("shouted")[5]["result"] == "SOME/MODEL AT DEFAULT: PROMPT 5"
    assert examples.started[0].wait(30) == 0

    missing = examples.run("enqueue", "prompts.jsonl", "--batch", "c", "--worker", "shouting")
    assert (missing.returncode, "model" in missing.stderr) == (2, True)
    assert (
        examples.run("enqueue", "prompts.jsonl", "--batch", "c", "--worker", "shouting", "--model", "m").returncode == 0
    )
    keyless = examples.run("worker", *NOWHERE, "--until-empty", env={"OPENAI_API_KEY": ""})
    assert keyless.returncode == 78
    assert "shouting needs a key: set OPENAI_API_KEY" in keyless.stderr
    # Among all that is installed, without being named.
    served = examples.run("worker", *NOWHERE, "--until-empty")
    assert served.returncode == 0
    assert examples.count("done") == 12


def test_an_installed_package_that_breaks_on_import_harms_no_other_worker(examples, installed):
    broken = shutil.copytree(installed, examples.directory / "installed")
    with (broken / "batchq_shouting.py").open("a") as module:
        module.write("raise ValueError('broken')\n")
    examples.environment["PYTHONPATH"] = str(broken)
    enqueue(examples, "echo", 1)
    assert examples.run("worker", *NOWHERE, "--until-empty").returncode == 0
    named = examples.run("worker", "--worker", "shouting")
    assert named.returncode == 78
    assert "worker 'shouting' is installed but can't be imported: ValueError: broken" in named.stderr


COUNTING = """
import os
from contextlib import asynccontextmanager
import anyio

def note(event):
    with open("ledger", "a") as ledger:
        ledger.write(f"{event} {os.getpid()}\\n")

@asynccontextmanager
async def open_worker(endpoint):
    note("open")
    async def ask(prompt):
        await anyio.sleep(float(os.environ.get("SECONDS", "0.05")))
        return os.getpid()
    try:
        yield ask
    finally:
        await anyio.sleep(0.1)
        note("close")
"""


def ledger(place: Bench) -> Counter:
    path = place.directory / "ledger"
    return Counter(path.read_text().splitlines()) if path.exists() else Counter()


def test_a_client_is_opened_and_closed_once_per_process(place):
    worker = f"{write(place, 'counting.py', COUNTING)}:open_worker"
    for name in "abcd":
        enqueue(place, worker, 25, batch=name)
    stopped = place.start("worker", "--worker", worker, "--concurrency", "2")
    last = place.start("worker", "--worker", worker, "--concurrency", "2", "--until-empty")
    wait_for(lambda: ledger(place).total() == 2 and place.count("done") >= 10, "both clients open and some answers")
    assert place.count("pending") > 0
    stopped.send_signal(signal.SIGTERM)

    assert (stopped.wait(30), last.wait(30)) == (0, 0)
    answered = {row["result"] for name in "abcd" for row in place.results(name)}
    assert answered == {stopped.pid, last.pid}
    assert place.count("done") == 100
    assert ledger(place) == Counter(f"{event} {pid}" for event in ("open", "close") for pid in answered)


def test_a_client_is_closed_by_a_worker_that_is_stopped_at_once(place):
    worker = f"{write(place, 'counting.py', COUNTING)}:open_worker"
    enqueue(place, worker, 4)
    stopped = place.start("worker", "--worker", worker, "--concurrency", "4", env={"SECONDS": "3600"})
    stop_twice(place, stopped, holding=4)
    assert ledger(place) == Counter([f"open {stopped.pid}", f"close {stopped.pid}"])


def stop_twice(place: Bench, process: subprocess.Popen, *, holding: int) -> None:
    wait_for(lambda: place.held_by(process) == holding, "calls in flight")
    process.send_signal(signal.SIGTERM)
    wait_for(lambda: "stopping" in place.errors(process), "the first signal to be heard")
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 143
    assert place.query("SELECT DISTINCT state, attempts FROM jobs") == [("pending", 0)]


BLOCKING = """
import threading, time
barrier = threading.Barrier(64, timeout=30)

def meet(prompt): return barrier.wait()

def hour(prompt): time.sleep(3600)

def spin(prompt):
    while True: pass
"""


def test_sixty_four_blocking_calls_run_at_once(place):
    worker = f"{write(place, 'blocking.py', BLOCKING)}:meet"
    enqueue(place, worker, 64, "--max-attempts", "1")
    assert place.run("worker", "--worker", worker, "--until-empty", "--concurrency", "64").returncode == 0
    assert sorted(row["result"] for row in place.results("b")) == list(range(64))


@pytest.mark.parametrize("function", ["hour", "spin"])
def test_a_blocking_call_that_never_ends_holds_no_process(place, function):
    worker = f"{write(place, 'blocking.py', BLOCKING)}:{function}"
    enqueue(place, worker, 3)
    stop_twice(place, place.start("worker", "--worker", worker), holding=3)


def test_a_blocking_call_that_never_ends_times_out(place):
    worker = f"{write(place, 'blocking.py', BLOCKING)}:hour"
    enqueue(place, worker, 3, "--call-timeout", "200ms", "--max-attempts", "2")
    assert place.run("worker", "--worker", worker, "--until-empty").returncode == 0
    assert place.query("SELECT DISTINCT outcome, error_class, charged, count(*) FROM attempts") == [
        ("retry", "timeout", 1, 6)
    ]
    assert place.query("SELECT DISTINCT state, error_class, attempts FROM jobs") == [("failed", "timeout", 2)]


STEERING = """
from batchq import Answer, Halt, Reject, Request, RetryLater, Throttled, Usage

paid = Answer("half", Usage(3, 4), cost=0.25)
throttled = False

async def later(request: Request):
    if request.attempt < 3:
        raise RetryLater("not yet", after=0.01, answer=paid)
    return "at last"

async def twice(request: Request):
    raise RetryLater("no good", after=0.01, at_most=2, error_class="no_good")

async def rejected(prompt):
    raise Reject("never", status=400, answer=paid)

async def patience(request: Request):
    global throttled
    if not throttled:
        throttled = True
        raise Throttled("slowly", after=0.3, status=429)
    return request.attempt

async def halted(prompt):
    raise Halt("no credit", error_class="no_credit", status=402)

async def other(prompt):
    raise ValueError("odd")
"""


def test_what_a_worker_raises_does_to_job_and_lane_what_the_table_says(place):
    write(place, "steering.py", STEERING)
    for name in ("later", "twice", "rejected", "patience", "halted"):
        enqueue(place, f"steering.py:{name}", 1, "--max-attempts", "8", batch=name)
    enqueue(place, "steering.py:other", 1, "--max-attempts", "1", batch="other")
    workers = [f"--worker=steering.py:{name}" for name in ("later", "twice", "rejected", "patience", "halted", "other")]
    assert place.run("worker", *workers, "--until-empty").returncode == 5

    jobs = "SELECT b.name, j.state, j.attempts, j.error_class, j.status, j.cost FROM jobs j JOIN batches b ON b.id = j.batch_id"
    assert {row[0]: row[1:] for row in place.query(jobs)} == {
        "later": ("done", 3, None, None, 500_000_000),
        "twice": ("failed", 2, "no_good", None, None),
        "rejected": ("failed", 1, "rejected", 400, 250_000_000),
        "patience": ("done", 1, None, None, None),
        "halted": ("pending", 0, "no_credit", 402, None),
        "other": ("failed", 1, "ValueError", None, None),
    }
    log = "SELECT b.name, a.outcome, a.charged FROM attempts a JOIN jobs j ON j.id = a.job_id JOIN batches b ON b.id = j.batch_id ORDER BY a.token"
    rows = place.query(log)
    ended = {name: [row[1:] for row in rows if row[0] == name] for name in {row[0] for row in rows}}
    assert set(ended.pop("halted")) == {("halted", 0)}
    assert ended == {
        "later": [("retry", 1), ("retry", 1), ("succeeded", 1)],
        "twice": [("retry", 1), ("retry", 1)],
        "rejected": [("failed", 1)],
        "patience": [("throttled", 0), ("succeeded", 1)],
        "other": [("retry", 1)],
    }
    assert place.query("SELECT worker, reason FROM lanes WHERE halted_at IS NOT NULL") == [
        ("steering.py:halted", "no credit")
    ]
    waited = "SELECT max(started_at) - min(ended_at) FROM attempts WHERE job_id = (SELECT j.id FROM jobs j JOIN batches b ON b.id = j.batch_id WHERE b.name = 'patience')"
    assert place.query(waited)[0][0] >= 300
