"""The command line: exit codes, what goes to stdout and what to stderr, and that nothing is lost on the way."""

import io
import json
import os
import pty
import re
import select
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import click
import forked
import pytest
from completing import complete_batch, end_jobs, fail_odd, rows_of, with_store, write_lines

from batchq.cli.commands import COMMANDS, batchq
from batchq.cli.exits import run_command
from batchq.cli.options import DURATION
from batchq.cli.reading_options import INPUT_FORMATS
from batchq.display.messages import say
from batchq.display.progress import show_progress
from batchq.display.text import clean, dollars
from batchq.formats import FORMATS
from batchq.jobs import Batch, BatchState, Counts, Halted, Progress, Reason, Retry, Usage

PROGRAM = [sys.executable, "-m", "batchq"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("MODEL", "BATCHQ_MODEL", "BATCHQ_DB", "BATCHQ_DEBUG", "BATCHQ_BASE_URL", "OPENROUTER_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def run(capfd):
    """Run a command in this process; return its exit code, stdout and stderr."""

    def call(*arguments):
        capfd.readouterr()
        code = run_command(batchq, [str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def prompts(here):
    return write_lines(here / "prompts.jsonl", [f"prompt {i}" for i in range(4)])


def program(*arguments, **options):
    return forked.run([*PROGRAM, *arguments], text=True, timeout=60, **options)


def on_terminal(*arguments, answer=b""):
    """Run a command on a terminal and type an answer to what it asks; return its exit code and what it shows."""
    pid, terminal = pty.fork()
    if not pid:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a test run in the background has it ignored
        os.execv(PROGRAM[0], [*PROGRAM, *map(str, arguments)])
    shown, deadline, typed = b"", time.monotonic() + 60, False
    while time.monotonic() < deadline:
        silent = not select.select([terminal], [], [], 2)[0]
        # Typed again after a silence: a Ctrl-C between the prompt and the wait for a key is lost on readline.
        if answer and b"[y/N]" in shown and (silent or not typed):
            os.write(terminal, answer)
            typed = True
        if silent:
            continue
        try:
            part = os.read(terminal, 4096)
        except OSError:
            break
        shown += part
        if not part:
            break
    else:
        os.kill(pid, signal.SIGKILL)
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown.decode()


def progress_of(pending, done):
    batch = Batch(1, "demo", "echo", "default", "", {}, 0, 8, 1000, None, BatchState.OPEN, pending + done, 0, 0, 0)
    return Progress(batch, Counts(pending=pending, done=done), False, 0, Usage(0, 0, 0, 0), None, 0, 0, None, (), ())


def lines_on_screen(written):
    """Return the lines that a terminal shows after this: what rich writes moves up, and erases lines."""
    lines, row = [""], 0
    for part in re.split(r"(\x1b\[[0-9;?]*[a-zA-Z]|\r|\n)", written):
        if part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif part == "\x1b[2K":
            lines[row] = ""
        elif re.fullmatch(r"\x1b\[\d*A", part):
            row -= int(part[2:-1] or 1)
        elif part and part != "\r" and not part.startswith("\x1b"):
            lines[row] += part
    return [line for line in lines if line]


# enqueue


def test_enqueue_says_what_it_did_and_what_comes_next(run, prompts):
    code, out, err = run("enqueue", prompts, "--worker", "echo")
    assert (code, out) == (0, "")
    assert "added 4 jobs to prompts; next: `batchq worker`, then `batchq collect prompts`" in err
    code, out, err = run("enqueue", prompts, "--worker", "echo", "--json")
    assert json.loads(out) == {
        "batch": "prompts", "added": 0, "skipped": 4, "bad": 0, "total": 4, "sealed": True, "absent": 0,
        "followers": 0, "reused": 0,
    }  # fmt: skip
    assert "nothing to add: all 4 rows are in prompts already" in err


def test_bad_input_exits_2_with_file_line_and_reason_and_makes_no_database(here):
    write_lines(here / "in.jsonl", ["ok", "", {"prompt": "x"}])
    found = program("enqueue", "in.jsonl", "--worker", "echo")
    assert (found.returncode, found.stdout) == (2, "")
    first, second, last = found.stderr.splitlines()
    assert first == "in.jsonl:2: empty prompt"
    assert second.startswith("in.jsonl:3: ")
    assert last.startswith("batchq: in.jsonl has 2 bad rows and 1 good; nothing was enqueued")
    assert not (here / "runs.db").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "does not exist"), (b"", "is empty"), (b"\n\n", "is empty"), (b"\xff\n", "invalid UTF-8")],
)
def test_an_input_without_prompts_is_one_clear_sentence(run, here, content, message):
    if content is not None:
        (here / "in.jsonl").write_bytes(content)
    code, out, err = run("enqueue", "in.jsonl", "--worker", "echo")
    assert (code, out) == (2, "")
    assert message in err
    assert not (here / "runs.db").exists()


def test_no_model_is_a_usage_error_and_MODEL_stands_in(run, prompts, monkeypatch):
    code, _, err = run("enqueue", prompts)
    assert code == 2
    assert "openrouter needs a model: pass --model, or set MODEL" in err
    monkeypatch.setenv("MODEL", "from/env")
    assert run("enqueue", prompts)[0] == 0
    assert run("enqueue", prompts, "--worker", "echo", "--batch", "plain")[0] == 0
    _, out, _ = run("status", "--json")
    assert [(batch["name"], batch["model"]) for batch in json.loads(out)["batches"]] == [
        ("plain", ""), ("prompts", "from/env"),
    ]  # fmt: skip


def test_the_model_is_found_in_a_dotenv_file_above(run, prompts, here, monkeypatch):
    (here / ".env").write_text("MODEL=from/dotenv\n")
    (here / "below").mkdir()
    monkeypatch.chdir(here / "below")
    assert run("enqueue", prompts, "--db", here / "q.db")[0] == 0
    assert rows_of(here / "q.db", "(SELECT model FROM batches)")[0] == ("from/dotenv",)


def test_the_flag_wins_over_the_model_of_the_file_and_says_so(run, here):
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions",
            "body": {"model": "theirs", "messages": [{"role": "user", "content": "x"}]}}  # fmt: skip
    write_lines(here / "in.jsonl", [line])
    code, _, err = run("enqueue", "in.jsonl", "--model", "mine")
    assert code == 0
    assert "using mine as --model says, not theirs" in err
    code, _, err = run("enqueue", "in.jsonl")
    assert code == 2
    assert "model is mine, not theirs" in err


def test_parameters_are_json_or_strings_and_dots_nest(run, prompts, here):
    pairs = ["temperature=0", "provider.sort=price", "provider.only=[1,null]", "seed=x=y", "n=nan", 'stop="a"']
    options = [part for pair in pairs for part in ("--set", pair)]
    assert run("enqueue", prompts, "--worker", "echo", "--system", "Be brief", *options)[0] == 0
    settings = json.loads(rows_of(here / "runs.db", "(SELECT settings FROM batches)")[0][0])
    assert settings == {
        "system": "Be brief",
        "params": {
            "temperature": 0, "provider": {"sort": "price", "only": [1, None]}, "seed": "x=y", "n": "nan", "stop": "a",
        },
    }  # fmt: skip


@pytest.mark.parametrize(
    "pairs",
    [["novalue"], ["=1"], ["a..b=1"], ["a=1", "a.b=2"], ["a.b=1", "a=2"], ["model=x"], ["a={"], ["a=[1"], ['a="x'],
     ["a=NaN"], ["a=-Infinity"], ["a=1e999"], ["a=[1e999]"], ["a=" + "9" * 5000]],
)  # fmt: skip
def test_a_malformed_parameter_is_a_usage_error(run, prompts, here, pairs):
    code, _, err = run("enqueue", prompts, *(part for pair in pairs for part in ("--set", pair)))
    assert code == 2
    assert "--set" in err
    assert not (here / "runs.db").exists()


def test_an_unknown_worker_lists_the_installed_ones_and_a_users_is_not_imported(run, prompts, here):
    code, _, err = run("enqueue", prompts, "--worker", "ecko")
    assert code == 2
    assert "echo, openrouter" in err
    (here / "mine.py").write_text("raise RuntimeError('imported')\n")
    code, _, err = run("enqueue", prompts, "--worker", here / "mine.py:answer")
    assert code == 0
    assert "--worker" in err
    assert rows_of("runs.db", "(SELECT worker FROM batches)")[0] == ("mine.py:answer",)


def test_from_standard_input_the_batch_needs_a_name_and_stays_open():
    lines = '"a"\n"b"\n'
    assert "--batch NAME" in program("enqueue", "-", "--worker", "echo", input=lines).stderr
    found = program("enqueue", "-", "--worker", "echo", "--batch", "piped", input=lines)
    assert (found.returncode, found.stdout) == (0, "")
    assert "`batchq seal piped` when it is complete" in found.stderr
    assert rows_of("runs.db", "(SELECT sealed_at FROM batches)")[0] == (None,)


def test_bad_rows_may_be_set_aside(run, here):
    (here / "in.txt").write_text("one\n\ntwo\n")
    code, _, err = run("enqueue", "in.txt", "--worker", "echo", "--skip-bad", "bad.txt")
    assert code == 0
    assert "added 2 jobs to in, 1 bad row left out, see bad.txt" in err
    assert (here / "bad.txt").read_text() == "\n"


def test_killed_half_way_and_run_again_every_line_is_there_once(run, here):
    count = 30_000
    write_lines(here / "in.jsonl", [f"prompt {i}" for i in range(count)])
    process = subprocess.Popen([*PROGRAM, "enqueue", "in.jsonl", "--worker", "echo"], stderr=subprocess.PIPE)
    added = 0
    while not added:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)
        try:
            with closing(sqlite3.connect("file:runs.db?mode=ro", uri=True)) as database:
                added = database.execute("SELECT count(*) FROM jobs").fetchone()[0]
        except sqlite3.Error:
            continue
    process.kill()
    process.communicate()
    held = len(rows_of("runs.db"))
    assert 0 < held < count
    code, _, err = run("collect", "in", "--wait-timeout", "0.1s", "-o", "half.jsonl")
    assert code == 4
    assert not (here / "half.jsonl").exists()
    code, _, err = run("enqueue", "in.jsonl", "--worker", "echo")
    assert code == 0
    assert f"added {count - held:,} jobs to in, {held:,} were there already" in err
    assert rows_of("runs.db") == [(i, None, f'"prompt {i}"') for i in range(count)]
    assert "nothing to add" in run("enqueue", "in.jsonl", "--worker", "echo")[2]


def test_bad_rows_never_go_into_the_queue_or_over_another_file(run, prompts, here):
    run("enqueue", prompts, "--worker", "echo")
    (here / "in.txt").write_text("one\n\n")
    (here / "link").symlink_to("runs.db")
    (here / "hard").hardlink_to("runs.db")
    (here / "mine").write_text("precious\n")
    before = (here / "runs.db").read_bytes()
    for name in ("runs.db", "link", "hard", "runs.db-wal", "runs.db-shm", "sub/../runs.db"):
        code, _, err = run("enqueue", "in.txt", "--worker", "echo", "--skip-bad", name)
        assert (code, f"{name} belongs to the queue {here}/runs.db" in err) == (2, True), err
    code, _, err = run("enqueue", "in.txt", "--worker", "echo", "--skip-bad", "mine")
    assert (code, "mine exists" in err, "name another" in err) == (2, True, True)
    assert ((here / "runs.db").read_bytes(), (here / "mine").read_text()) == (before, "precious\n")
    for _ in range(2):  # what it wrote itself is no other file
        assert run("enqueue", "in.txt", "--worker", "echo", "--skip-bad", "aside")[0] == 0
    assert len(rows_of("runs.db")) == 5


def test_an_endpoint_that_nobody_here_knows_is_told(run, prompts, here):
    code, _, err = run("run", prompts, "-o", "out", "--worker", "echo", "--endpoint", "x")
    assert (code, err) == (78, "batchq: there is no endpoint 'x' in batchq.toml; known: default\n")
    assert not (here / "runs.db").exists()
    code, _, err = run("enqueue", prompts, "--worker", "echo", "--endpoint", "x")
    assert code == 0
    assert "there is no endpoint 'x' in batchq.toml; known: default; a worker elsewhere must know it" in err
    code, _, err = run("worker", "--worker", "echo", "--until-empty")
    assert code == 0
    events = {event["event"]: event for event in map(json.loads, err.splitlines())}
    assert events["batch.left_alone"]["reason"] == "there is no endpoint 'x' in batchq.toml; known: default"
    assert events["worker.empty"]["waiting"] is False
    assert events["worker.serving"]["database"] == f"{here}/runs.db"


def test_what_is_no_part_of_the_request_may_change_and_is_told(run, prompts):
    run("enqueue", prompts, "--worker", "echo")
    options = ("--worker", "echo", "--priority", 5, "--max-attempts", 2, "--call-timeout", "90s")
    err = run("enqueue", prompts, *options)[2]
    assert "was there already; from now on it has --priority 5, --max-attempts 2, --call-timeout 90s" in err
    assert "from now on" not in run("enqueue", prompts, *options)[2]
    assert "from now on" not in run("enqueue", prompts, "--worker", "echo")[2]
    assert rows_of("runs.db", "(SELECT priority || max_attempts || call_timeout_ms FROM batches)")[0] == ("5290000",)
    run("run", prompts, "-o", "out", "--worker", "echo")
    assert "from now on it has --max-attempts 3" in run(
        "run", prompts, "-o", "out", "--worker", "echo", "--max-attempts", 3
    )[2]  # fmt: skip


def test_a_shorter_input_of_an_enqueue_is_told(run, here):
    write_lines(here / "in.jsonl", ["a", "b", "c"])
    run("enqueue", "in.jsonl", "--worker", "echo")
    write_lines(here / "in.jsonl", ["a"])
    err = run("enqueue", "in.jsonl", "--worker", "echo")[2]
    assert "its 1 row is in in already, the batch has 2 jobs more, which the input has no row for" in err


def test_a_second_standard_input_is_told_what_a_position_is():
    assert program("enqueue", "-", "--worker", "echo", "--batch", "piped", input='"a"\n').returncode == 0
    found = program("enqueue", "-", "--worker", "echo", "--batch", "piped", input='"b"\n')
    assert found.returncode == 2
    assert "rows without a custom_id are known by their position" in found.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["enqueue", "in.txt", "--batch=-x"], "begins with a dash"),
        (["enqueue", "in.txt", "--batch", "x" * 121], "121 characters"),
        (["run", "in.txt", "-o", "out", "--worker", "echo", "--batch", "x" * 121], "121 characters"),
        (["enqueue", "."], ". is a directory: name a file in it"),
        (["enqueue", "in.txt", "--priority", "9" * 30], "'--priority'"),
        (["enqueue", "in.txt", "--max-attempts", "9" * 30], "'--max-attempts'"),
        (["enqueue", "in.txt", "--call-timeout", "9" * 400], "'--call-timeout'"),
        (["worker", "--concurrency", "9" * 30], "'--concurrency'"),
        (["show", "in", "9" * 30], "'POSITION'"),
        (["purge", "in", "--older-than", "1d"], "not both"),
        (["status", "--db", "."], "is a directory: name a file in it with --db"),
        (["run", "in.txt", "-o", "aside", "--skip-bad", "aside", "--worker", "echo"], "can't hold both"),
    ],
)
def test_what_can_not_be_meant_is_a_usage_error(run, here, arguments, message):
    (here / "in.txt").write_text("one\n")
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert not (here / "runs.db").exists()


def test_run_enqueues_nothing_without_its_key(run, prompts, here):
    (here / "empty").touch()
    (here / "letter").write_text("dear all\n")
    for options, message in [
        ([], "openrouter.ai needs a key: set OPENROUTER_API_KEY"),
        (["--api-key-file", "nosuch"], "can't read the key from nosuch: No such file"),
        (["--api-key-file", "empty"], "empty holds no key"),
        (["--api-key-file", "letter"], "letter should hold a key and nothing else"),
        (["--base-url", "notaurl"], "--base-url: 'notaurl' is not the URL of a server"),
    ]:
        code, _, err = run("run", prompts, "-o", "out", "--model", "m", *options)
        assert (code, message in err, err.count("\n")) == (78, True, 1), err
    assert not (here / "runs.db").exists()


def test_a_worker_names_the_batch_whose_key_is_missing_and_the_ways_out(run, prompts):
    run("enqueue", prompts, "--model", "m", "--batch", "keyed")
    code, _, err = run("worker", "--until-empty")
    assert code == 78
    failed = json.loads(err.splitlines()[-1])
    assert (failed["event"], failed["exit_code"]) == ("worker.failed", 78)
    for part in ("batch 'keyed'", "OPENROUTER_API_KEY", "--worker echo", "--batch NAME"):
        assert part in failed["reason"]


def test_a_run_that_leaves_jobs_behind_does_not_end_well(run, prompts, here, monkeypatch):
    async def stop_at_once(_runner, _say):
        return 0

    monkeypatch.setattr("batchq.process.run_until_interrupted", stop_at_once)
    code, _, err = run("run", prompts, "-o", "out", "--worker", "echo")
    assert code == 5
    assert "has 4 unfinished jobs: no live worker" in err
    assert not (here / "out").exists()


# settings


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (".env", "MODEL=m\n\nnot a line\n", ".env:3: this line can't be read"),
        (".env", "MODEL='m\n", ".env:1: this line can't be read"),
        ("batchq.toml", "x = \n", "batchq.toml can't be read: Invalid value (at line 1"),
        ("batchq.toml", "modle = 'm'\n", "batchq.toml: there is no setting 'modle'"),
        ("batchq.toml", "[endpoints.a]\nurl = 'http://h'\n", "there is no setting 'endpoints.a.url'"),
        ("batchq.toml", "[endpoints.a]\napi_key = 'k'\n", "batchq.toml: Field required"),
        ("batchq.toml", "endpoints = 'a'\n", "endpoints in "),
        ("batchq.toml", "[endpoints.a]\nbase_url = 'h'\n", "endpoints.a.base_url in "),
        (".env", "BATCHQ_BASE_URL=http://\n", "BATCHQ_BASE_URL in "),
    ],
)
def test_settings_that_mean_nothing_name_their_file(run, here, name, text, message):
    (here / name).write_text(text)
    code, out, err = run("status")
    assert (code, out, err.count("\n")) == (78, "", 1)
    assert str(here / name) in err
    assert message in err


@pytest.mark.parametrize("url", ["x", "ftp://h", "http://", "http://[x", "http://h:99999", "http://a b/"])
def test_a_base_url_needs_a_scheme_and_a_host(run, monkeypatch, url):
    monkeypatch.setenv("BATCHQ_BASE_URL", url)
    code, _, err = run("status")
    assert code == 78
    assert f"BATCHQ_BASE_URL in the environment: {url!r} is not the URL of a server" in err


# collect


def test_collect_writes_data_to_stdout_and_messages_to_stderr(prompts):
    assert program("enqueue", prompts, "--worker", "echo").returncode == 0
    complete_batch("runs.db", fail_odd)
    found = program("collect", "prompts", "--strict")
    assert found.returncode == 3
    lines = [json.loads(line) for line in found.stdout.splitlines()]
    assert [(line["position"], line["state"]) for line in lines] == [
        (0, "done"),
        (1, "failed"),
        (2, "done"),
        (3, "failed"),
    ]
    assert "prompts: 2 done, 2 failed, 6 tokens in, 10 out" in found.stderr
    assert "2 with bad_request, e.g. position 1: no \\x1b[31m1" in found.stderr
    assert "\x1b" not in found.stderr


def test_collect_twice_gives_the_same_bytes_and_spares_other_files(run, prompts, here):
    run("enqueue", prompts, "--worker", "echo")
    complete_batch("runs.db")
    code, out, err = run("collect", "prompts", "-o", "out.jsonl", "--with-prompt")
    assert (code, out) == (0, "")
    assert "wrote 4 lines to out.jsonl" in err
    before = (here / "out.jsonl").read_bytes()
    assert run("collect", "prompts", "-o", "out.jsonl", "--with-prompt")[0] == 0
    assert (here / "out.jsonl").read_bytes() == before
    assert json.loads(before.splitlines()[3])["prompt"] == "prompt 3"
    code, _, err = run("collect", "prompts", "-o", prompts)
    assert code == 2
    assert "does not hold results" in err
    assert prompts.read_text().startswith('"prompt 0"')


def test_nothing_lets_results_replace_the_input_or_the_queue(run, prompts, here):
    run("enqueue", prompts, "--worker", "echo")
    complete_batch("runs.db")
    before = (here / "runs.db").read_bytes(), prompts.read_bytes()
    (here / "link").symlink_to("runs.db")
    (here / "below").mkdir()
    (here / "below" / "input").symlink_to(prompts)
    for name in ("runs.db", "link", "runs.db-wal", "runs.db-shm"):
        code, _, err = run("collect", "prompts", "--force", "-o", name)
        assert (code, "belongs to the queue" in err) == (2, True)
        assert run("run", prompts, "--worker", "echo", "--force", "-o", name)[0] == 2
    for name in (prompts, "below/input"):
        code, _, err = run("collect", "prompts", "--force", "-o", name)
        assert (code, "is the input of prompts itself" in err) == (2, True)
    assert ((here / "runs.db").read_bytes(), prompts.read_bytes()) == before
    write_lines(here / "moved.jsonl", [f"prompt {i}" for i in range(4)])
    run("enqueue", "moved.jsonl", "--batch", "prompts", "--worker", "echo")
    assert "is the input" in run("collect", "prompts", "--force", "-o", "moved.jsonl")[2]
    assert "no file can be made in /proc" in run("collect", "prompts", "-o", "/proc/x")[2]


@pytest.mark.parametrize("command", [["collect", "prompts"], ["status"], ["--help"]])
@pytest.mark.parametrize(
    ("redirected", "reason"), [(">&-", "it is closed"), ("> /dev/full", "No space left on device")]
)
def test_a_stdout_that_takes_nothing_is_one_sentence(run, prompts, command, redirected, reason):
    run("enqueue", prompts, "--worker", "echo")
    complete_batch("runs.db")
    line = f"exec {sys.executable} -m batchq {' '.join(command)} {redirected}"
    found = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=60, check=False)
    assert (found.returncode, found.stderr) == (1, f"batchq: can't write to standard output: {reason}\n")


def test_messages_need_no_stdout_and_data_needs_no_stderr(prompts):
    for line, expected in [
        ("enqueue prompts.jsonl --worker echo <&- >&-", 0),
        ("collect prompts --no-wait <&- 2>&-", 0),
        ("worker --worker echo --until-empty <&- >&- 2>&-", 0),
    ]:
        found = subprocess.run(
            ["sh", "-c", f"exec {sys.executable} -m batchq {line}"],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert (found.returncode, "Traceback" in found.stderr) == (expected, False), found.stderr


def test_collect_gives_up_with_exit_4_and_says_why_nothing_moves(run, prompts, here):
    run("enqueue", prompts, "--worker", "echo")
    code, out, err = run("collect", "prompts", "--wait-timeout", "1300ms")
    assert (code, out) == (4, "")
    first, why, last = err.splitlines()
    assert first == "batchq: prompts: 0 of 4 done"
    assert f"waiting: no live worker serves echo: start one with `batchq worker --db {here}/runs.db`" in why
    assert "not finished: 0 of 4 jobs have ended" in last


def test_no_wait_writes_what_there_is(run, prompts):
    run("enqueue", prompts, "--worker", "echo")
    with_store("runs.db", lambda store: end_jobs(store, at_most=1))
    code, out, err = run("collect", "prompts", "--no-wait")
    assert code == 0
    assert sorted(json.loads(line)["state"] for line in out.splitlines()) == ["done", "pending", "pending", "pending"]
    assert "1 done, 3 not finished" in err


def test_an_unknown_batch_suggests_the_nearest(run, prompts):
    run("enqueue", prompts, "--worker", "echo")
    code, _, err = run("collect", "promts")
    assert code == 2
    assert "did you mean 'prompts'" in err


@pytest.mark.parametrize(
    "command",
    [["collect", "x"], ["status"], ["status", "x"], ["show", "x", "0"], ["retry", "x"], ["cancel", "x"], ["pause", "x"],
     ["resume", "x"], ["resume"], ["seal", "x"], ["purge", "x", "--yes"], ["purge", "--older-than", "1d", "--yes"]],
)  # fmt: skip
def test_what_only_looks_or_operates_never_creates_a_database(run, here, command):
    code, out, err = run(*command)
    assert (code, out) == (2, "")
    assert f"there is no queue at {here}/runs.db" in err
    assert list(here.iterdir()) == []


def test_a_reader_that_goes_away_ends_it_quietly(here):
    write_lines(here / "in.jsonl", ["x" * 500 for _ in range(2000)])
    program("enqueue", "in.jsonl", "--worker", "echo")
    process = subprocess.Popen([*PROGRAM, "collect", "in", "--no-wait"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(30) == 1


def test_ctrl_c_exits_130_and_leaves_no_file(run, prompts, here):
    run("enqueue", prompts, "--worker", "echo")
    process = subprocess.Popen([*PROGRAM, "collect", "prompts", "-o", "out.jsonl"], stderr=subprocess.PIPE, text=True)
    assert process.stderr.readline().startswith("batchq: prompts: 0 of 4 done")
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[1].endswith("batchq: interrupted\n")
    assert process.returncode == 130
    assert sorted(path.name for path in here.iterdir() if not path.name.startswith("runs.db")) == ["prompts.jsonl"]


# status, show and the operator


def test_status_shows_batches_workers_and_why_one_waits(run, prompts, here):
    run("enqueue", prompts, "--worker", "echo")
    code, out, err = run("status")
    assert (code, err) == (0, "")
    assert f"database {here}/runs.db" in out
    assert "prompts waits: no live worker serves echo" in out
    assert "0 live workers" in out
    complete_batch("runs.db", fail_odd)
    row = next(line for line in run("status", "prompts")[1].splitlines() if line.startswith("prompts"))
    assert row.split() == ["prompts", "finished", "4", "2", "2", "0", "100%", "16", "$0.0020"]
    found = json.loads(run("status", "prompts", "--watch", "--json")[1])
    assert (found["batches"][0]["done"], found["batches"][0]["finished"], found["batches"][0]["waiting"]) == (
        2,
        True,
        None,
    )


def test_show_tells_all_about_a_job_and_moves_no_cursor(run, here):
    write_lines(
        here / "in.jsonl", [{"custom_id": "a", "prompt": "x"}, {"custom_id": "b", "prompt": "\x1b[2Jclear\nme"}]
    )
    run("enqueue", "in.jsonl", "--worker", "echo")
    complete_batch("runs.db", fail_odd)
    code, out, _ = run("show", "in", 1)
    assert code == 0
    assert "\x1b" not in out
    for part in ("in 1, custom_id b: failed, attempts 1", "\\x1b[2Jclear\n  me", "error (bad_request)", "400"):
        assert part in out
    found = json.loads(run("show", "in", 0, "--json")[1])
    assert (found["prompt"], found["result"], found["log"][0]["outcome"]) == ("x", "answer 0", "succeeded")
    code, _, err = run("show", "in", 2)
    assert code == 2
    assert "positions are 0 to 1" in err


def test_retry_sends_back_what_failed_and_nothing_else(run, prompts):
    run("enqueue", prompts, "--worker", "echo")
    assert "no job of prompts has failed" in run("retry", "prompts")[2]
    complete_batch("runs.db", fail_odd)
    assert "failed with 'timeout'; there is bad_request" in run("retry", "prompts", "--error", "timeout")[2]
    assert "2 jobs of prompts will run again" in run("retry", "prompts", "--error", "bad_request")[2]
    run("cancel", "prompts")
    assert "failed with 'timeout'; there is cancelled" in run("retry", "prompts", "--error", "timeout")[2]
    assert "2 jobs of prompts will run again" in run("retry", "prompts", "--error", "cancelled")[2]
    assert [state for (state,) in rows_of("runs.db", "state")] == ["done", "pending", "done", "pending"]


def test_pause_resume_and_cancel(run, prompts):
    run("enqueue", prompts, "--worker", "echo")
    assert "was neither paused nor halted: nothing changed" in run("resume", "prompts")[2]
    assert "is paused;" in run("pause", "prompts")[2]
    assert "is paused already: nothing changed" in run("pause", "prompts")[2]
    assert with_store("runs.db", end_jobs) == 0
    assert "paused: `batchq resume prompts" in run("status")[1]
    assert "goes on" in run("resume", "prompts")[2]
    assert "nothing was halted" in run("resume")[2]
    with_store("runs.db", lambda store: end_jobs(store, at_most=1))
    assert "cancelled 3 jobs" in run("cancel", "prompts")[2]
    assert "nothing to cancel" in run("cancel", "prompts")[2]
    for command in ("pause", "resume"):
        code, _, err = run(command, "prompts")
        assert code == 2
        assert "`batchq retry prompts` revives it" in err
    assert run("enqueue", prompts, "--worker", "echo")[0] == 2
    assert run("collect", "prompts", "--strict")[0] == 3
    assert "3 jobs of prompts will run again" in run("retry", "prompts")[2]
    assert with_store("runs.db", end_jobs) == 3
    for command in ("pause", "resume"):
        assert "has ended" in run(command, "prompts")[2]
    assert "goes on" not in run("resume", "prompts")[2]


def test_a_single_attempt_is_told_in_the_singular(run, prompts):
    run("enqueue", prompts, "--worker", "echo", "--max-attempts", 1)
    complete_batch("runs.db", lambda _: Retry(Reason("timeout", "too slow")))
    assert "4 with timeout, e.g. position 0: too slow (gave up after 1 attempt)" in run("collect", "prompts")[2]


def test_a_halted_batch_is_called_so(run, prompts):
    run("enqueue", prompts, "--worker", "echo")
    with_store("runs.db", lambda store: end_jobs(store, lambda _: Halted(Reason("no_credit", "no credit")), at_most=1))
    found = json.loads(run("status", "--json")[1])
    assert found["batches"][0]["state"] == "halted"
    assert "goes on; 1 halt lifted" in run("resume", "prompts")[2]


def test_seal_completes_a_batch(run, prompts):
    run("enqueue", prompts, "--worker", "echo", "--no-seal")
    complete_batch("runs.db")
    assert run("collect", "prompts", "--wait-timeout", "0.1s")[0] == 4
    assert "complete with 4 jobs" in run("seal", "prompts")[2]
    assert run("collect", "prompts", "--wait-timeout", "5s")[0] == 0


def test_purge_asks_and_spares_what_is_unfinished(run, prompts):
    run("enqueue", prompts, "--worker", "echo")
    code, _, err = run("purge", "prompts", "--yes")
    assert code == 2
    assert "4 unfinished jobs" in err
    complete_batch("runs.db")
    code, _, err = run("purge", "prompts")
    assert code == 2
    assert "give --yes" in err
    assert "no batch has been finished for that long" in run("purge", "--older-than", "30d", "--yes")[2]
    assert len(rows_of("runs.db")) == 4
    time.sleep(0.01)
    assert "deleted 1 batch with 4 jobs" in run("purge", "--older-than", "0s", "--yes")[2]
    assert rows_of("runs.db") == []
    assert rows_of("runs.db", "(SELECT count(*) FROM batches)") == []
    run("enqueue", prompts, "--worker", "echo")
    code, text = on_terminal("purge", "prompts", "--force", answer=b"n\n")
    assert (code, "nothing was deleted" in text, "interrupted" in text) == (1, True, False)
    code, text = on_terminal("purge", "prompts", "--force", answer=b"\x03")
    assert (code, "interrupted" in text) == (130, True)
    assert run("purge", "prompts", "--force", "--yes")[0] == 0
    assert run("purge")[0] == 2


# the frame


def test_help_imports_nothing_heavy():
    heavy = {
        "sqlalchemy",
        "openai",
        "pydantic",
        "pydantic_settings",
        "aiosqlite",
        "structlog",
        "rich.progress",
        "anyio",
    }
    script = (
        "import sys; from batchq.cli.commands import batchq; from batchq.cli.exits import run_command;"
        "code = run_command(batchq, ['--help']); print(code, sorted(set(sys.modules) & set(sys.argv[1:])), file=sys.stderr)"
    )
    found = subprocess.run(
        [sys.executable, "-c", script, *heavy], capture_output=True, text=True, timeout=60, check=True
    )
    assert found.stderr == "0 []\n"
    for name in COMMANDS:
        assert f"\n  {name} " in found.stdout


def test_every_command_has_help(run):
    for name in COMMANDS:
        code, out, _ = run(name, "--help")
        assert code == 0
        assert out.startswith(f"Usage: batchq {name}")
    assert run("--version")[1].startswith("batchq ")


def test_an_unknown_command_is_a_usage_error_and_so_is_none(run):
    code, out, err = run("colect", "x")
    assert (code, out) == (2, "")
    assert "No such command 'colect'. Did you mean 'collect'?" in err
    assert "No such command 'x'." in run("x")[2]
    assert run()[0] == 2


def test_an_unexpected_error_is_one_line_that_names_the_way_to_the_traceback(capfd, monkeypatch):
    @click.command()
    def broken():
        raise RuntimeError("a bug\x07")

    assert run_command(broken, []) == 1
    assert (
        capfd.readouterr().err
        == "batchq: unexpected RuntimeError: a bug\\x07; run with BATCHQ_DEBUG=1 for the traceback\n"
    )
    monkeypatch.setenv("BATCHQ_DEBUG", "1")
    with pytest.raises(RuntimeError):
        run_command(broken, [])


def test_a_foreign_file_is_refused_and_left_alone(run, here):
    (here / "runs.db").write_text("not a database at all, but more than a hundred bytes long" * 4)
    code, _, err = run("status")
    assert code == 1
    assert "runs.db" in err


def test_durations():
    assert [DURATION.convert(text, None, None) for text in ("90", "90s", "15m", "2h", "30d", "250ms", "1.5h")] == [
        90, 90, 900, 7200, 2_592_000, 0.25, 5400,
    ]  # fmt: skip
    for text in ("", "x", "-1s", "1w", "1h30m"):
        with pytest.raises(click.BadParameter):
            DURATION.convert(text, None, None)


def test_what_is_said_while_a_bar_is_shown_stands_above_it(monkeypatch):
    class Terminal(io.TextIOWrapper):
        def isatty(self):
            return True

    screen = Terminal(io.BytesIO(), encoding="utf-8", write_through=True)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    with show_progress("runs.db") as update:
        update(progress_of(3, 1))
        time.sleep(0.3)
        say("batchq: a message")
        print("a log line", file=sys.stderr)
    say("batchq: the end")
    assert sys.stderr is screen
    shown = lines_on_screen(screen.buffer.getvalue().decode())
    assert shown == ["batchq: a message", "a log line", "batchq: the end"]


def test_costs_are_never_rounded_to_nothing():
    assert [dollars(nano) for nano in (None, 0, 1, 99_999, 100_000, 1_500_000_000)] == [
        "-", "$0.0000", "<$0.0001", "<$0.0001", "$0.0001", "$1.5000",
    ]  # fmt: skip


def test_control_characters_are_written_out():
    assert clean("a\x1b[31m\x00\x9b\u202e\ud800\r\U000e0001") == "a\\x1b[31m\\x00\\x9b\\u202e\\ud800\\x0d\\U000e0001"
    assert clean("tab\tand\nline é 漢字 👍") == "tab\tand\nline é 漢字 👍"


def test_the_input_formats_are_those_that_can_be_read():
    assert INPUT_FORMATS == FORMATS


def test_the_program_is_installed():
    found = subprocess.run(
        [Path(sys.executable).with_name("batchq"), "--version"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (found.returncode, found.stdout[:7]) == (0, "batchq ")


@pytest.mark.parametrize(
    ("ended", "code", "told"), [("'set FOO first'", 1, "batchq: set FOO first"), ("", 0, ""), ("7", 7, "")]
)
def test_a_script_that_ends_python_ends_the_command_with_its_word(run, here, ended, code, told):
    (here / "own.py").write_text(f"import sys\nsys.exit({ended})\n")
    (here / "a.txt").write_text("a\n")
    found, _, err = run("run", "a.txt", "-o", "out.txt", "--worker", "own.py:f")
    assert (found, told in err) == (code, True), err
