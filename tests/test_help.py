"""What people expect of a command line: help with examples, the nearest word, JSON, quiet, colours where they are seen."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from click import Context, Group
from processes import bench

from batchq.cli.commands import batchq

# What draws, runs on, or prints what is for a shell or a person.
NO_JSON = {"worker", "top", "exporter", "completion", "help", "service install", "service uninstall"}


def every_command(group=batchq, names=()):
    for name in group.list_commands(None):
        command = group.get_command(None, name)
        if isinstance(command, Group):
            yield from every_command(command, (*names, name))
        else:
            yield " ".join((*names, name)), command


COMMANDS = dict(every_command())


@pytest.fixture
def place(tmp_path):
    with bench(tmp_path, COLUMNS="80") as opened:
        yield opened


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example_before_the_options_and_fits_a_terminal(name):
    with Context(COMMANDS[name], info_name=f"batchq {name}", terminal_width=80) as context:
        told, _, options = COMMANDS[name].get_help(context).partition("\nOptions:\n")
    assert f"\n  batchq {name}" in told
    assert "--help" in options
    assert max(map(len, options.splitlines())) <= 80
    assert COMMANDS[name].get_short_help_str(60).endswith(".")


def test_what_reads_or_changes_prints_json():
    without = {name for name, command in COMMANDS.items() if not any("--json" in each.opts for each in command.params)}
    assert without <= NO_JSON


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("colect", "birds"), "Did you mean 'collect'?"),
        (("worker", "--concurency", "3"), "--concurrency"),
        (("enqueue", "x", "--input-format", "jsn"), "'jsn' is not one of 'jsonl'"),
        (("db", "chek"), "Did you mean 'check'?"),
        (("help", "wroker"), "Did you mean 'worker'?"),
    ],
)
def test_the_nearest_word_is_told(place, words, told):
    done = place.run(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr


OPERATIONS = [
    ("pause", "birds"),
    ("resume", "birds"),
    ("limit", "m", "--rpm", "60", "--worker", "echo"),
    ("budget", "birds", "5"),
    ("cancel", "birds"),
    ("retry", "birds"),
    ("seal", "birds"),
    ("status",),
    ("show", "birds", "0"),
    ("db", "check"),
    ("purge", "birds", "--yes", "--force"),
]


def test_what_operations_did_is_json_for_programs_and_nothing_with_quiet(place):
    for options in ("--json",), ("--quiet",):
        place.write_prompts(3)
        done = place.run("enqueue", "prompts.jsonl", "--batch", "birds", "--worker", "echo", *options)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) if options == ("--json",) else (done.stdout, done.stderr) == ("", "")
        for words in OPERATIONS:
            if options == ("--quiet",) and words[0] in {"status", "show", "db"}:
                continue
            done = place.run(*words, *options)
            assert done.returncode == 0, (words, done.stderr)
            if options == ("--json",):
                assert isinstance(json.loads(done.stdout), dict | list), words
            else:
                assert done.stderr == "", words


def test_purge_asks_a_terminal_and_needs_a_word_elsewhere(place):
    place.write_prompts(1)
    place.run("enqueue", "prompts.jsonl", "--batch", "birds", "--worker", "echo")
    place.run("run", "prompts.jsonl", "-o", "out.jsonl", "--batch", "birds", "--worker", "echo")
    done = place.run("purge", "birds", "--force", stdin=subprocess.DEVNULL)
    assert (done.returncode, "--yes" in done.stderr) == (2, True)
    assert place.query("SELECT count(*) FROM jobs") != [(0,)]


@pytest.mark.parametrize(("variable", "coloured"), [("NO_COLOR", False), ("FORCE_COLOR", True)])
def test_colours_go_where_they_are_asked_for(place, variable, coloured):
    place.environment.pop("NO_COLOR", None)
    done = place.run("doctor", "--offline", env={variable: "1"})
    assert ("\x1b[" in done.stdout) is coloured, done.stdout


def test_help_needs_nothing_that_is_slow_to_import(place):
    script = """
import sys
from batchq.cli.commands import batchq
from batchq.cli.exits import run_command
run_command(batchq, ["--help"])
print(sorted({"sqlalchemy", "pydantic", "rich", "openai", "structlog", "alembic"} & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=os.environ, cwd=place.directory, check=True,
        timeout=60,
    )  # fmt: skip
    assert done.stderr.strip() == "[]"
