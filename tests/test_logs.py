"""What a worker logs: one event per change of state, in one format whoever speaks, and never what was asked or answered."""

from __future__ import annotations

import ast
import json
import logging
import re
import signal
from pathlib import Path

import pytest
import structlog
from listening_server import Reply, completion, failure, listening_server
from processes import ON_BOTH, Bench, bench_for, wait_for
from raw_connection import connect
from structlog.testing import capture_logs

import batchq
from batchq import stacks
from batchq.jobs import Answered, Batch, BatchState, Claim, Ended, Exchanged, Failed, Halted, Reason, Succeeded, Usage
from batchq.log import EVENTS, events, foreign, get_logger, log_exchange
from batchq.log.foreign import make_alike
from batchq.log.writing import write_events
from batchq.settlement import settle
from batchq.stacks import stack_of

PACKAGE = Path(batchq.__file__).parent
README = PACKAGE.parent / "README.md"
PROMPT = "the planted prompt about Wilhelmina's blue bicycle"
ANSWER = "the planted answer about Konstantin's wooden ladder"
KEY = "sk-plantedkey0123456789"
JOB = {"worker", "batch", "position", "attempt", "lane"}


@pytest.fixture
def place(request, tmp_path):
    with bench_for(request, tmp_path) as made:
        yield made


def enqueue(place: Bench, prompts: list[str], *options: str, batch: str = "demo") -> None:
    (place.directory / "prompts.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    done = place.run("enqueue", "prompts.jsonl", "--batch", batch, *options)
    assert done.returncode == 0, done.stderr


def told(text: str) -> list[dict]:
    """The lines of a log, each of them JSON and in the list of events."""
    lines = [json.loads(line) for line in text.splitlines()]
    for line in lines:
        assert list(line)[:3] == ["ts", "level", "event"]
        assert set(line) - {"ts", "level", "event"} <= set(EVENTS[line["event"]]), line
    return lines


def only(lines: list[dict], event: str) -> list[dict]:
    return [line for line in lines if line["event"] == event]


# the list


def uses() -> list[tuple[str, str, set[str], str]]:
    """Every place of the package that logs: where, which event, the fields that it names, and the function called."""
    found = []
    for path in PACKAGE.rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            if not isinstance(call, ast.Call) or not call.args:
                continue
            first = call.args[0]
            if isinstance(first, ast.IfExp):
                continue
            if isinstance(first, ast.Attribute) and getattr(first.value, "id", "") in {"log", "events"}:
                fields = {word.arg for word in call.keywords if word.arg}
                found.append((f"{path}:{call.lineno}", first.attr, fields, getattr(call.func, "attr", "").upper()))
    return found


def test_every_event_that_is_logged_is_in_the_list_with_its_fields():
    for where, name, fields, _ in uses():
        event = getattr(events, name)
        assert fields <= set(EVENTS[event]), where


def test_every_event_of_the_list_is_logged_somewhere():
    code = {
        path: path.read_text()
        for path in PACKAGE.rglob("*.py")
        if path.name != "events.py" or path.parent.name != "log"
    }
    names = {value: name for name, value in vars(events).items() if name.isupper() and isinstance(value, str)}
    for event in EVENTS:
        used = re.compile(rf"\b(log|events)\.{names[event]}\b")
        assert any(used.search(text) for text in code.values()), event


def test_the_readme_lists_the_events_with_their_fields():
    rows = re.findall(
        r"^\| `([a-z]+\.[a-z_]+)` \| (debug|info|warning|error)[^|]*\| ([^|]*) \|", README.read_text(), re.MULTILINE
    )
    shorthand = {
        "JOB": {"batch", "position", "attempt", "lane"},
        "ENDED": {"duration_ms", "input_tokens", "output_tokens", "cost"},
    }
    shown = {}
    for event, _, text in rows:
        names = set(re.findall(r"`([a-z_]+)`", text))
        for word in re.findall(r"\b([A-Z]+)\b", text):
            names |= shorthand[word]
        shown[event] = names
    assert shown == {event: set(fields) - {"worker"} for event, fields in EVENTS.items()}


def test_the_readme_tells_the_level_of_each_event_that_has_a_fixed_one():
    rows = dict(
        re.findall(r"^\| `([a-z]+\.[a-z_]+)` \| ([a-z]+) \| [^|]* \| [^|]* \|$", README.read_text(), re.MULTILINE)
    )
    levels = {getattr(events, name): level for _, name, _, level in uses() if level in logging.getLevelNamesMapping()}
    assert len(levels) > 30
    assert {event: level.lower() for event, level in levels.items()} == {event: rows[event] for event in levels}


# what a worker tells


class Provider:
    """Answers as the prompt asks, the first time; what may pass has passed the second time."""

    def __init__(self) -> None:
        self.seen: set[str] = set()

    def answer(self, heard) -> Reply:
        prompt, first = heard.prompt, heard.prompt not in self.seen
        self.seen.add(prompt)
        if "refused" in prompt:
            return failure(400, f"Invalid: {prompt}")
        if "broken" in prompt:
            return failure(500, f"{ANSWER} broke at {prompt}")
        if "throttled" in prompt and first:
            return failure(429, f"slow down with {prompt}", **{"retry-after": "0"})
        if "poor" in prompt and first:
            return failure(402, "no credit is left")
        usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10, "cost": 0.00025}
        return completion(ANSWER, usage=usage)


@ON_BOTH
def test_every_change_of_state_is_told_once_with_the_same_fields(place):
    with listening_server(Provider().answer) as server:
        asked = [f"{PROMPT}: {what}" for what in ("fine", "refused", "broken", "throttled")]
        enqueue(place, asked, "--model", "m", "--max-attempts", "2")
        enqueue(place, [f"{PROMPT}: poor"], "--model", "n", batch="poor")
        worker = place.start(
            "worker", "--base-url", server.base_url, "--log-level", "debug", "-c", "4", env={"OPENAI_API_KEY": KEY}
        )
        wait_for(lambda: place.count("done") + place.count("failed") == 5, "all jobs")
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(60) == 0
    text = place.errors(worker)
    lines = told(text)
    lane = f"openrouter {server.base_url} m"
    (runner,) = {line["worker"] for line in lines if "worker" in line}

    fine = next(line for line in only(lines, "job.done") if line["position"] == 0 and line["batch"] == "demo")
    assert (fine["input_tokens"], fine["output_tokens"], fine["cost"]) == (7, 3, 0.00025)
    assert (fine["worker"], fine["attempt"], fine["lane"], fine["level"]) == (runner, 1, lane, "debug")
    assert fine["duration_ms"] >= 0
    assert len(only(lines, "job.done")) == 3

    failed = {line["position"]: line for line in only(lines, "job.failed")}
    assert set(failed) == {1, 2}
    assert (failed[1]["error"], failed[1]["status"], failed[1]["attempt"]) == ("bad_request", 400, 1)
    assert failed[2]["attempt"] == 2, "the last attempt is no retry any more"
    (retry,) = only(lines, "job.retry")
    assert (retry["position"], retry["attempt"], retry["status"], retry["level"]) == (2, 1, 500, "info")
    assert retry["retry_seconds"] >= 0

    (throttled,) = only(lines, "lane.throttled")
    assert (throttled["lane"], throttled["worker"]) == (lane, runner)
    assert throttled["seconds"] >= 0
    assert [line["position"] for line in only(lines, "job.throttled")] == [3]
    (halted,) = only(lines, "lane.halted")
    assert (halted["level"], halted["lane"]) == ("error", f"openrouter {server.base_url} n")
    assert "no credit is left" in halted["reason"]
    assert [line["lane"] for line in only(lines, "lane.reopened")] == [halted["lane"]]
    assert {(line["batch"], line["position"]) for line in only(lines, "job.claimed")} == {
        *(("demo", position) for position in range(4)), ("poor", 0),
    }  # fmt: skip
    assert all(set(line) >= JOB for line in lines if line["event"].startswith("job."))

    order = [line["event"] for line in lines]
    assert order.index("worker.serving") < order.index("worker.started") < order.index("worker.draining")
    assert order[-2:] == ["worker.progress", "worker.stopped"]
    (progress,) = only(lines, "worker.progress")
    assert (progress["done"], progress["failed"]) == (3, 2)
    for secret in (PROMPT, ANSWER, KEY, "planted"):
        assert secret not in text


def some_claim() -> Claim:
    batch = Batch(1, "demo", "w", "default", "m", {}, 0, 8, 1_000, None, BatchState.OPEN, 1, 0, 0, 0)
    return Claim(7, 1, batch, 3, None, '"x"', 1, 0, 0, "w http://a/v1 m")


def test_a_late_answer_is_told_with_its_cost_and_a_condemned_job_as_failed():
    answer = Answered('"x"', Usage(1, 2), cost=5_000_000)
    late = settle(Ended(some_claim(), Succeeded(answer), 12))
    halting = settle(Ended(some_claim(), Halted(Reason("no_such_model", PROMPT, 404)), 12))
    with capture_logs() as lines:
        log_exchange(get_logger(), [late], Exchanged(0, came_late=(7,)))
        log_exchange(get_logger(), [halting], Exchanged(0, condemned=frozenset({7})))
    assert [line["event"] for line in lines] == ["job.late", "job.failed"]
    assert (lines[0]["cost"], lines[0]["position"], lines[0]["duration_ms"]) == (0.005, 3, 12)
    assert (lines[1]["error"], lines[1]["status"]) == ("no_such_model", 404)
    assert PROMPT not in str(lines)


def test_what_is_done_costs_a_quiet_log_nothing_to_speak_of():
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.INFO))
    try:
        done = settle(Ended(some_claim(), Succeeded(Answered('"x"')), 1))
        failed = settle(Ended(some_claim(), Failed(Reason("bad_request", "no")), 1))
        with capture_logs() as lines:
            log_exchange(get_logger(), [done] * 1_000 + [failed], Exchanged(0))
    finally:
        structlog.reset_defaults()
    assert [line["event"] for line in lines] == ["job.failed"]


# the format


def test_the_format_and_the_level_are_asked_for_by_flag_and_by_setting(place):
    (place.directory / "mine.py").write_text("def shout(prompt):\n    return prompt.upper()\n")
    enqueue(place, ["a"], "--worker", "mine.py:shout")
    serve = ("worker", "--worker", "mine.py:shout", "--until-empty")
    text = place.run(*serve, "--log-format", "text").stderr
    assert "worker.started" in text
    assert "batchq:   demo: 1 pending" in text
    assert not any(line.startswith("{") for line in text.splitlines())
    assert "\x1b" not in text, "colours are for terminals"
    quiet = place.run(*serve, env={"BATCHQ_LOG_LEVEL": "error"})
    assert (quiet.returncode, quiet.stderr) == (0, "")
    (place.directory / "batchq.toml").write_text('log_format = "text"\n')
    assert "{" not in place.run(*serve).stderr
    assert told(place.run(*serve, "--log-format", "json").stderr)


@pytest.mark.parametrize("as_json", [True, False])
def test_every_event_can_be_written_in_each_format(as_json, capsys):
    lists = {"workers", "batches", "stack"}
    write_events("debug", as_json=as_json, alike=make_alike)
    try:
        for event, fields in EVENTS.items():
            get_logger().warning(event, **{name: ["a", "b"] if name in lists else 1 for name in fields})
    finally:
        structlog.reset_defaults()
    text = capsys.readouterr().err
    assert [event for event in EVENTS if event not in text] == []
    if as_json:
        assert len(told(text)) == len(EVENTS)
    else:
        assert text.count("\n    a\n    b\n") == sum("stack" in fields for fields in EVENTS.values())


OTHERS = f"""
import logging, sys, threading, warnings
logging.getLogger("openai").setLevel(logging.DEBUG)  # as OPENAI_LOG does
logging.getLogger("openai._base_client").setLevel(logging.DEBUG)

class Careless(Exception):
    pass

def answer(prompt):
    mine = logging.getLogger("mine")
    mine.info("one of %d letters", len(prompt))
    mine.debug("asked %s", prompt)
    logging.getLogger("openai._base_client").info("sent %s", prompt)
    logging.getLogger("openai._base_client").warning("got %r, told {KEY}", prompt)
    mine.info("%d", "no number")
    logging.getLogger("asyncio").error("Task exception was never retrieved\\nfuture: <Task exception=%r>", prompt)
    warnings.warn(f"careful [input_value={{prompt!r}}]")
    thread = threading.Thread(target=fail, args=(prompt,))
    thread.start()
    thread.join()
    try:
        fail(prompt)
    except Careless:
        mine.exception("it failed")
    fail(prompt)

def fail(prompt):
    local = prompt
    raise Careless(f"failed at {{prompt}}") from KeyError(local)
"""


def test_what_others_say_has_the_same_format_and_quotes_nothing(place):
    (place.directory / "others.py").write_text(OTHERS)
    enqueue(place, [PROMPT], "--worker", "others.py:answer", "--max-attempts", "2")
    done = place.run(
        "worker", "--worker", "others.py:answer", "--until-empty", "--log-level", "debug",
        env={"OPENAI_API_KEY": KEY, "PYTHONASYNCIODEBUG": "1"},
    )  # fmt: skip
    lines = told(done.stderr)
    logged = [line for line in only(lines, "python.logged") if line["attempt"] == 1]
    assert [line["message"].partition(" at /")[0] for line in logged if line["logger"] != "asyncio"] == [
        f"one of {len(PROMPT)} letters",
        "got '…', told [redacted]",
        "a record that can't be read: TypeError",
        "it failed",
    ]
    assert any(line["message"] == "Task exception was never retrieved" for line in logged)
    assert all((line["batch"], line["position"]) == ("demo", 0) for line in logged), "whose call it was"
    assert logged[-1]["error"] == "Careless"
    assert [place_.rpartition(" ")[2] for place_ in logged[-1]["stack"]] == ["answer", "fail", "KeyError"]
    (warned,) = only(lines, "python.warned")
    assert (warned["category"], warned["message"]) == ("UserWarning", "careful [input_value='…']")
    assert [line["error"] for line in only(lines, "python.raised")] == ["Careless", "Careless"]
    raised = only(lines, "worker.raised")
    assert [line["level"] for line in raised] == ["warning", "debug"], "the same place is told once"
    assert raised[0]["error"] == "Careless"
    assert raised[0]["stack"][-2].endswith("fail")
    for secret in (PROMPT, "Wilhelmina", KEY):
        assert secret not in done.stderr


WITH_STRUCTLOG = f"""
import pathlib
import structlog
own = structlog.get_logger()

def answer(prompt):
    own.info("my.step", letters=len(prompt), at=pathlib.Path("here"), sent={{"headers": ["{KEY}"]}})
    try:
        fail(prompt)
    except LookupError:
        own.exception("my.failure")
    own.error("my.other", exc_info=ValueError(prompt))
    fail(prompt)

def fail(prompt):
    local = prompt
    raise KeyError(local)
"""


@pytest.mark.parametrize("form", ["json", "text"])
def test_a_worker_that_uses_structlog_itself_is_told_of_like_all_others(place, form):
    (place.directory / "mine.py").write_text(WITH_STRUCTLOG)
    enqueue(place, [PROMPT], "--worker", "mine.py:answer", "--max-attempts", "1")
    done = place.run(
        "worker", "--worker", "mine.py:answer", "--until-empty", "--log-format", form, env={"OPENAI_API_KEY": KEY}
    )
    assert done.returncode == 0, done.stderr
    assert place.count("failed") == 1, "what it raised is its job's affair, in each format"
    for secret in ("Wilhelmina", KEY):
        assert secret not in done.stderr
    if form == "text":
        assert re.search(
            r"my\.failure .*batch=demo position=0 .*error=KeyError\n    .*mine\.py:\d+ answer\n", done.stderr
        )
        assert re.search(r"worker\.raised .*\n(    .*\n)+    .*mine\.py:\d+ fail\n", done.stderr)
        return
    step, failure_, other = [
        line for line in map(json.loads, done.stderr.splitlines()) if line["event"].startswith("my.")
    ]
    assert all(set(line) >= JOB and line["batch"] == "demo" for line in (step, failure_, other))
    assert (step["letters"], step["sent"]) == (len(PROMPT), {"headers": ["[redacted]"]})
    assert (failure_["error"], len(failure_["stack"])) == ("KeyError", 2)
    assert (other["error"], other["stack"]) == ("ValueError", [])


def test_a_stack_tells_places_and_classes_and_no_word_of_an_error():
    def inner():
        local = PROMPT
        try:
            raise KeyError(local)  # noqa: TRY301
        except KeyError as error:
            raise ExceptionGroup(PROMPT, [ValueError(PROMPT)]) from error

    try:
        inner()
    except ExceptionGroup as error:
        stack = stack_of(error)
    assert [line.rpartition(".")[2] for line in stack if "test_logs.py" in line][1:] == ["inner", "inner"]
    assert "holds ValueError" in stack
    assert "after KeyError" in stack
    assert "planted" not in str(stack)


# the dump

SLOW = """
import asyncio, os, signal, time
GATE = {gate!r}

async def waits(prompt):
    while not os.path.exists(GATE):
        await asyncio.sleep(0.02)
    return "done"

def blocks(prompt):
    while not os.path.exists(GATE):
        time.sleep(0.02)
    return "done"

async def hangs(prompt):
    while not os.path.exists(GATE):
        time.sleep(0.02)
    return "done"

def forks(prompt):
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    os.kill(child, signal.SIGUSR1)
    return os.WTERMSIG(os.waitpid(child, 0)[1])
"""
HAS_THE_SIGNAL = pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="there is no such signal on Windows")


def write_slow(place: Bench) -> Path:
    gate = place.directory / "gate"
    (place.directory / "slow.py").write_text(SLOW.format(gate=str(gate)))
    return gate


def dump_of(text: str) -> list[dict]:
    """The events of a log that other lines stand between."""
    return told("\n".join(line for line in text.splitlines() if line.startswith("{")))


@HAS_THE_SIGNAL
def test_a_worker_that_is_asked_tells_what_is_running_and_goes_on(place):
    gate = write_slow(place)
    enqueue(place, [PROMPT, f"{PROMPT} 2"], "--worker", "slow.py:waits", batch="waits")
    enqueue(place, [PROMPT], "--worker", "slow.py:blocks", batch="blocks")
    served = ("--worker", "slow.py:waits", "--worker", "slow.py:blocks")
    worker = place.start("worker", *served, "--until-empty", "--log-level", "error", "-c", "5")
    wait_for(lambda: place.count("inflight") == 3, "the calls")

    def ask() -> bool:
        worker.send_signal(signal.SIGUSR1)
        wait_for(lambda: place.errors(worker).count("dump.runner") > asked, "the dump")
        told = place.errors(worker)  # also from within the function: it may just begin
        return len(only(dump_of(told), "dump.call")) >= 3 and 'slow.py", line' in told

    asked = 0
    wait_for(ask, "a dump of all calls")
    asked = place.errors(worker).count("dump.runner")
    assert worker.poll() is None
    gate.touch()
    assert worker.wait(60) == 0
    assert place.count("done") == 3

    lines = dump_of(place.errors(worker))
    runner = only(lines, "dump.runner")[-1]
    assert (runner["phase"], runner["concurrency"], runner["in_flight"], runner["calls"]) == ("running", 5, 3, 3)
    assert not {"drain_seconds", "away"} & set(runner), "what has no value is left out"
    calls = {(line["batch"], line["position"]): line for line in only(lines, "dump.call")}
    assert set(calls) == {("waits", 0), ("waits", 1), ("blocks", 0)}
    assert all(line["attempt"] == 1 and line["seconds"] >= 0 for line in calls.values())
    stacks = {tuple(line["stack"]): line["count"] for line in only(lines, "dump.tasks")}
    waiting = [count for stack, count in stacks.items() if any("slow.py" in step for step in stack)]
    assert 2 in waiting, "tasks that wait at one place are told of once"
    assert 'slow.py", line' in place.errors(worker), "the thread that blocks"
    assert "planted" not in place.errors(worker)
    assert place.query("SELECT DISTINCT attempts FROM jobs") == [(1,)]


@HAS_THE_SIGNAL
def test_a_worker_whose_loop_hangs_tells_where(place):
    gate = write_slow(place)
    enqueue(place, [PROMPT], "--worker", "slow.py:hangs")
    worker = place.start("worker", "--worker", "slow.py:hangs", "--until-empty", "--log-level", "error")
    wait_for(lambda: place.count("inflight") == 1, "the call")

    def hangs() -> bool:
        worker.send_signal(signal.SIGUSR1)
        wait_for(lambda: "most recent call first" in place.errors(worker), "the stacks")
        return "in hangs" in place.errors(worker)

    wait_for(hangs, "the place where it hangs")
    gate.touch()
    assert worker.wait(60) == 0
    assert place.count("done") == 1


@HAS_THE_SIGNAL
def test_a_forked_child_hears_the_signal_as_any_process_does(place):
    write_slow(place)
    enqueue(place, ["a"], "--worker", "slow.py:forks")
    done = place.run("worker", "--worker", "slow.py:forks", "--until-empty")
    assert done.returncode == 0, done.stderr
    assert [row["result"] for row in place.results("demo")] == [signal.SIGUSR1]
    assert "dump.runner" not in done.stderr
    assert "most recent call first" not in done.stderr


@HAS_THE_SIGNAL
def test_a_worker_that_waits_for_its_database_is_not_ended_by_the_question(place):
    write_slow(place)
    enqueue(place, ["a"], "--worker", "slow.py:waits")
    (place.directory / "gate").touch()
    with connect(place.database) as connection:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("BEGIN IMMEDIATE")
        worker = place.start("worker", "--worker", "slow.py:waits", "--until-empty")
        wait_for(lambda: place.errors(worker), "a word, or the wait for the lock")
        worker.send_signal(signal.SIGUSR1)
        wait_for(lambda: "most recent call first" in place.errors(worker), "the stacks")
        assert worker.poll() is None
        connection.execute("ROLLBACK")
    assert worker.wait(60) == 0
    assert place.count("done") == 1


@pytest.mark.parametrize(
    "message",
    [
        f"got b'{PROMPT}'",
        f"at 'C:\\\\dir\\\\' it got '{PROMPT}'",
        f"an unclosed '{PROMPT}",
        f'a "quote" and "{PROMPT}"',
    ],
)
def test_what_a_library_quotes_is_left_out_however_it_quotes(message):
    assert PROMPT not in foreign._without_quotes(message)


def test_no_part_of_a_key_is_left_where_a_long_message_is_cut():
    key = "sk-or-v1-" + "fedcba9876543210" * 4
    told = foreign._shown("x " * 990 + key)
    assert "9876" not in told
    assert len(told) <= 2_000


def test_an_awaitable_that_makes_up_its_attributes_has_no_places():
    class Proxy:
        def __getattr__(self, name):
            raise RuntimeError(name)

    assert list(stacks._places(Proxy())) == []
