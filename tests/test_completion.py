"""What a shell completes: asked by its protocol, and by a real bash."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
from processes import ON_BOTH, bench_for


@pytest.fixture
def place(request, tmp_path):
    with bench_for(request, tmp_path) as opened:
        yield opened


def completed(place, *words):
    """Ask as zsh and fish do: pairs of lines, of a kind and a word."""
    environment = {
        "_BATCHQ_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(("batchq", *words)),
        "COMP_CWORD": str(len(words)),
    }
    done = place.run(env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    return [line.partition(",")[2] for line in done.stdout.splitlines() if line]


@ON_BOTH
def test_names_of_batches_are_completed_from_the_queue(place):
    for name in ("birds", "bats", "fish"):
        place.write_prompts(1)
        assert place.run("enqueue", "prompts.jsonl", "--batch", name, "--worker", "echo").returncode == 0
    assert sorted(completed(place, "collect", "b")) == ["bats", "birds"]
    assert completed(place, "status", "fi") == ["fish"]


def test_commands_options_and_choices_are_completed(place):
    assert completed(place, "st") == ["status"]
    assert completed(place, "db", "up") == ["upgrade"]
    assert "--concurrency" in completed(place, "worker", "--con")
    assert completed(place, "completion", "f") == ["fish"]


def test_where_there_is_no_queue_nothing_is_completed_and_nothing_is_made(place):
    assert completed(place, "collect", "") == []
    assert list(place.directory.iterdir()) == []
    (place.directory / "runs.db").write_bytes(b"no database " * 400)
    (place.directory / "batchq.toml").write_text("no settings")
    assert completed(place, "collect", "") == []


def test_a_name_that_a_shell_would_run_is_not_offered(place):
    place.write_prompts(1)
    place.run("enqueue", "prompts.jsonl", "--batch", "$(touch owned)", "--worker", "echo")
    assert completed(place, "collect", "") == []


def test_a_real_bash_completes_by_the_script(place):
    bash = shutil.which("bash")
    assert bash, "bash is not installed"
    place.write_prompts(1)
    place.run("enqueue", "prompts.jsonl", "--batch", "birds", "--worker", "echo")
    (place.directory / "batchq").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m batchq "$@"\n')
    (place.directory / "batchq").chmod(0o755)
    script = """
        PATH=$PWD:$PATH
        eval "$(batchq completion bash)"
        COMP_WORDS=(batchq collect bi) COMP_CWORD=2
        complete -p batchq | grep -o -- '-F [^ ]*' | { read -r _ function; $function batchq bi collect; echo "${COMPREPLY[@]}"; }
    """
    done = subprocess.run(
        [bash, "--norc", "-c", script], cwd=place.directory, env=place.environment, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert (done.stdout.split(), done.stderr) == (["birds"], "")


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_have_their_scripts(place, shell):
    done = place.run("completion", shell)
    assert (done.returncode, "_BATCHQ_COMPLETE" in done.stdout) == (0, True)
