"""What workers and providers answer that is no answer: one job's outcome, and never the end of the others."""

import json
import sqlite3
import threading
import time
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from completing import write_lines
from processes import bench

from batchq.cli.commands import batchq
from batchq.cli.exits import run_command
from batchq.executor import shorten
from batchq.plain import plain
from batchq_workers import sending

# What each prompt of the worker below makes of itself: its state, and the class of its error.
OUTCOMES = {
    "b'x'": ("failed", "bad_result"),
    "math.nan": ("failed", "bad_result"),
    "cycle()": ("failed", "bad_result"),
    "nested(100_000)": ("failed", "bad_result"),
    "object()": ("failed", "bad_result"),
    "10**5000": ("failed", "bad_result"),
    "{1: 2, '1': 3}": ("failed", "bad_result"),
    "(i for i in [1])": ("failed", "bad_result"),
    "Answer('x', usage='no', meta=5, cost=math.nan, finish_reason=object())": ("done", None),
    "'x' * 10_000_000": ("done", None),
    "'\\ud800\\0'": ("done", None),
    "None": ("done", None),
    "fail(SystemExit(5))": ("failed", "SystemExit"),
    "fail(KeyboardInterrupt())": ("failed", "KeyboardInterrupt"),
    "fail(GeneratorExit())": ("failed", "GeneratorExit"),
    "fail(StopIteration())": ("failed", "RuntimeError"),
    "fail(asyncio.CancelledError())": ("failed", "cancelled_itself"),
    "fail(BaseException('b'))": ("failed", "BaseException"),
    "fail(BaseExceptionGroup('g', [SystemExit(1)]))": ("failed", "BaseExceptionGroup"),
    "fail(Silent())": ("failed", "Silent"),
    "fail(ValueError('x ' * 25_000_000))": ("failed", "ValueError"),
    "fail(ValueError('\\ud800\\0'))": ("failed", "ValueError"),
    "fail(type('é' * 100_000, (Exception,), {})('x'))": ("failed", "é" * 100),
    "fail(Reject(None, error_class='é' * 100_000, status=10**30))": ("failed", "é" * 100),
    "fail(RetryLater('x', after=math.nan, at_most=0))": ("failed", "retry_later"),
}
WORKER = """
import asyncio
import math
from batchq import Answer, Reject, RetryLater


class Silent(Exception):
    def __str__(self):
        raise SystemExit(3)


def cycle():
    found = []
    found.append(found)
    return found


def nested(depth):
    found = 1
    for _ in range(depth):
        found = [found]
    return found


def fail(error):
    raise error


def blocking(prompt):
    return eval(prompt)


async def awaited(prompt):
    return eval(prompt)
"""


@pytest.mark.parametrize("function", ["blocking", "awaited"])
def test_whatever_a_function_returns_or_raises_ends_its_own_job(tmp_path, function):
    (tmp_path / "own.py").write_text(WORKER)
    write_lines(tmp_path / "prompts.jsonl", list(OUTCOMES))
    with bench(tmp_path) as place:
        done = place.run(
            "run", "prompts.jsonl", "-o", "out.jsonl", "--worker", f"own.py:{function}", "--max-attempts", "1"
        )
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        assert max(map(len, done.stderr.splitlines())) < 2_000
        with closing(sqlite3.connect(place.database)) as database:
            found = database.execute("SELECT state, error_class, length(error) FROM jobs ORDER BY position").fetchall()
    expected = dict(OUTCOMES)
    if function == "blocking":  # its thread can't hand it over
        expected["fail(GeneratorExit())"] = ("failed", "RuntimeError")
    assert dict(zip(OUTCOMES, [(state, kind) for state, kind, _ in found], strict=True)) == expected
    assert max(length or 0 for _, _, length in found) <= 1_200


def test_an_endless_error_text_holds_nobody_up():
    text = "sk-" + "a" * 50_000_000
    began = time.process_time()
    assert len(shorten(text)) <= 1_000
    assert time.process_time() - began < 1


def test_keys_that_become_one_are_no_result():
    with pytest.raises(ValueError, match="two keys of a mapping are the same text"):
        plain({1: 2, "1": 3})


# Providers


def completion(content):
    choices = [{"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}]
    return json.dumps({"id": "gen-1", "object": "chat.completion", "model": "m", "choices": choices}).encode()


ENDLESS = b"endless"
BODIES = {
    "doubled keys": (completion("no")[:-1] + b"," + completion("yes")[1:], "done", '"yes"'),
    "surrogates": (completion("\ud800\0"), "done", '"\\ud800\\u0000"'),
    "invalid UTF-8": (completion("xyz").replace(b"xyz", b"x\xffz"), "failed", None),
    "nested": (b'{"choices": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "failed", None),
    "not a number": (b'{"choices": [{"message": {"content": NaN}}]}', "failed", None),
    "many digits": (b'{"choices": [{"message": {"content": ' + b"1" * 5000 + b"}}]}", "failed", None),
    "a list": (b"[1, 2]", "failed", None),
    "a web page": (b"<html>" * 1000, "failed", None),
    "nothing": (b"", "failed", None),
    "endless": (ENDLESS, "failed", None),
}


class Handler(BaseHTTPRequestHandler):
    """Answers a prompt with the body of that name."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        body = BODIES[asked["messages"][0]["content"]][0]
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        if body is ENDLESS:
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.go_on()
            return
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def go_on(self):
        """Write until the client hangs up."""
        piece = b"%x\r\n%s\r\n" % (1 << 16, b" " * (1 << 16))
        self.close_connection = True
        try:
            while True:
                self.wfile.write(piece)
        except OSError:
            pass

    def log_message(self, *_):
        """Say nothing."""


@contextmanager
def serving():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()
            thread.join()


def test_whatever_a_provider_answers_ends_its_own_job(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sending, "_MOST_BYTES", 2 << 20)
    write_lines(tmp_path / "prompts.jsonl", list(BODIES))
    with serving() as url:
        code = run_command(
            batchq,
            ["run", "prompts.jsonl", "-o", "out.jsonl", "--model", "m", "--base-url", url, "--max-attempts", "1"],
        )
    err = capfd.readouterr().err
    assert (code, "Traceback" in err) == (0, False), err
    with closing(sqlite3.connect("runs.db")) as database:
        found = database.execute("SELECT state, result, error FROM jobs ORDER BY position").fetchall()
    told = dict(zip(BODIES, found, strict=True))
    assert {name: row[0] for name, row in told.items()} == {name: state for name, (_, state, _) in BODIES.items()}
    assert {name: row[1] for name, row in told.items() if row[0] == "done"} == {
        name: result for name, (_, state, result) in BODIES.items() if state == "done"
    }
    assert "an answer of more than 2 MiB" in told["endless"][2]
