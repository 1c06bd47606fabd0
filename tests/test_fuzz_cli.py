"""Any command with any of its options: a documented exit code, no traceback, and nothing but data on stdout.

BATCHQ_TEST_EXAMPLES asks for so many command lines, other ones each time.
"""

import io
import os
import sys
import tempfile
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from threading import Timer
from unittest import mock

import click
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchq.cli.commands import COMMANDS, batchq
from batchq.cli.exits import run_command

# It would install what was drawn.
OF_THE_MACHINE = {"service"}
EXAMPLES = int(os.environ.get("BATCHQ_TEST_EXAMPLES", "0"))
CODES = {0, 1, 2, 3, 4, 5, 75, 78}

FILES = {
    "good.jsonl": b'{"prompt": "a", "x": "b"}\n{"prompt": "c", "x": "d"}\n',
    "ids.jsonl": b'{"prompt": "a", "custom_id": "1"}\n',
    "bad.jsonl": b'{"prompt": 1}\n[]\n\xff\n{"prompt": "a"}\n',
    "good.csv": b"prompt,x\na,b\n",
    "bad.csv": b'prompt,x\na\n"b\n',
    "good.txt": b"a\nb\n",
    "empty.jsonl": b"",
    "schema.json": b'{"type": "object", "properties": {"a": {}}}',
    "bad.json": b"{",
    "t.j2": b"{{ x }}",
    "own.py": b"def f(prompt):\n    return prompt\n",
    "results.jsonl": b'{"custom_id":null,"position":0,"state":"done","result":"a"}\n',
}
VALUES = [
    *FILES,
    *("", "-", "x", "nope", "demo", "empty", "0", "1", "-1", "2", "1e9", "NaN", "inf", "none", "99999999999999999999"),
    *("0s", "1ms", "10s", "9999d", "$1", "0.000000001", "temperature=0", "a.b=1", "a={", "model=x", "=", "a=NaN"),
    *(
        "{{ x }}",
        "{{ zz }}",
        "{{",
        "{{ x.__class__ }}",
        "{{ x * 10**9 }}",
        "prompt",
        "custom_id",
        "\udcff",
        "a\nb",
    ),
    *("echo", "own.py:f", "own.py:g", ":", "default", "http://127.0.0.1:1/v1", "http://[", "runs.db", "other.db"),
    *(
        "postgresql+psycopg://",
        "mysql://x",
        "jsonl",
        "csv",
        "parquet",
        "openai",
        "txt",
        ".",
        "/",
        "nope/out.jsonl",
        "a" * 300,
    ),
]
VALUE = st.sampled_from(VALUES) | st.text(st.characters(exclude_characters="\0"), max_size=4)
# They wait for what never comes, or ask somebody.
LEFT_OUT = {"watch", "follow", "help"}
# A `run` under one of these may take minutes, as it should.
LIMITS = {"rpm", "tpm", "burst", "max_inflight"}


def commands():
    """Yield every command with the words that call it."""
    context = click.Context(batchq)
    for name in sorted(set(COMMANDS) - OF_THE_MACHINE):
        command = batchq.get_command(context, name)
        if isinstance(command, click.Group):
            inner = click.Context(command)
            for below in command.list_commands(inner):
                yield (name, below), command.get_command(inner, below)
        else:
            yield (name,), command


@st.composite
def command_lines(draw):
    words, command = draw(st.sampled_from(list(commands())))
    line = list(words)
    if words == ("run",):
        line += ["-o", draw(st.sampled_from(["new.jsonl", "new.csv"]))]
    if words in {("run",), ("enqueue",)} and draw(st.integers(0, 4)):
        line += ["--worker", draw(st.sampled_from(["echo", "own.py:f"]))]
    left_out = LEFT_OUT | (LIMITS if words == ("run",) else set())
    options = [option for option in command.params if isinstance(option, click.Option) and option.name not in left_out]
    for option in draw(st.lists(st.sampled_from(options), max_size=4)) if options else ():
        names = [*option.opts, *option.secondary_opts]
        line.append(draw(st.sampled_from(names)))
        if not option.is_flag:
            line.append(draw(value_of(option)))
    arguments = [argument for argument in command.params if isinstance(argument, click.Argument)]
    line += [draw(argument_of(words, argument)) for argument in arguments if draw(st.integers(0, 9))]
    # What may wait for long is told not to.
    if words == ("collect",):
        line += ["--wait-timeout", "50ms"]
    if words in {("worker",), ("run",)}:
        line += ["--drain-timeout", "0s"]
    if words == ("exporter",):
        line += ["--once"]
    return [*line, "--until-empty"] if words == ("worker",) else line


def mostly(good):
    """Return good values, and once in a while any."""
    return st.integers(0, 9).flatmap(lambda number: VALUE if number == 7 else st.sampled_from(good))


def argument_of(words, argument):
    """Return values for an argument, most of them good."""
    if argument.name in {"position", "calls"}:
        return mostly(["0", "1", "9"])
    inputs = words in {("enqueue",), ("run",)}
    names = (
        ["good.jsonl", "ids.jsonl", "bad.jsonl", "good.csv", "good.txt", "-"] if inputs else ["demo", "demo", "empty"]
    )
    return mostly(names)


GOOD = {
    "worker": ["echo", "own.py:f"],
    "references": ["echo", "own.py:f"],
    "models": ["m", "n"],
    "db": ["runs.db", "new.db"],
    "prompt": ["{{ x }}", "{{ prompt }}"],
    "template": ["t.j2"],
    "schema": ["schema.json"],
    "with_input": ["good.jsonl", "good.csv"],
    "out": ["new.jsonl", "new.csv", "new.parquet", "-", "results.jsonl"],
    "errors": ["failed.jsonl", "failed.csv"],
    "params": ["temperature=0", "provider.sort=price"],
    "prompt_field": ["prompt", "x"],
    "id_field": ["x", "custom_id"],
    "batch": ["demo", "other"],
    "batches": ["demo", "empty"],
    "endpoint": ["default"],
    "error_class": ["timeout", "cancelled"],
}
OF_TYPES = {
    "integer range": ["1", "2", "7"],
    "duration": ["10s", "1m"],
    "dollars": ["1", "0.01"],
    "number": ["5", "none"],
}


def value_of(option):
    """Return values for an option, most of them good."""
    if isinstance(option.type, click.Choice):
        return mostly(list(option.type.choices))
    good = GOOD.get(option.name) or OF_TYPES.get(option.type.name)
    return mostly(good) if good else VALUE


@pytest.fixture(scope="module")
def queue(tmp_path_factory):
    """A directory with a queue in it: a finished batch, and an empty one."""
    directory = tmp_path_factory.mktemp("queue")
    with in_directory(directory):
        for name, data in FILES.items():
            Path(name).write_bytes(data)
        call(["enqueue", "good.jsonl", "--batch", "demo", "--worker", "echo"])
        call(["worker", "--until-empty"])
        call(["enqueue", "-", "--batch", "empty", "--worker", "echo"])
    return directory


@contextmanager
def in_directory(directory):
    here = Path.cwd()
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("BATCHQ_", "OPEN", "MODEL"))}
    with mock.patch.dict(os.environ, clean, clear=True):
        os.chdir(directory)
        try:
            yield
        finally:
            os.chdir(here)


@contextmanager
def within(seconds, line):
    """End the process, and with it the test, where a command does not end: it takes any exception for a worker's."""

    def give_up():
        os.write(2, f"after {seconds} s it goes on: {line}\n".encode(errors="replace"))
        os._exit(1)

    timer = Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def call(arguments):
    """Run a command in this process; return exit code, stdout and stderr."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace") for _ in range(2))
    with redirect_stdout(out), redirect_stderr(err), mock.patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO())):
        code = run_command(batchq, arguments)
    return code, *(
        stream.buffer.getvalue().decode(errors="replace") if not stream.flush() else "" for stream in (out, err)
    )


@settings(
    max_examples=EXAMPLES or 60,
    deadline=None,
    derandomize=not EXAMPLES,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(line=command_lines())
def test_any_command_line_ends_as_documented(queue, line):
    with tempfile.TemporaryDirectory() as directory, in_directory(directory):
        for file in queue.iterdir():
            Path(file.name).write_bytes(file.read_bytes())
        with within(60, line):
            code, out, err = call(line)
    assert code in CODES, (line, err)
    assert "Traceback" not in err, (line, err)
    assert "batchq: unexpected" not in err, (line, err)
    assert not any(told.startswith("batchq: ") for told in out.splitlines()), (line, out)
    if code == 2:
        assert err
