"""What came from outside moves no terminal's cursor; what goes into a pipe or a file stays as it is, byte for byte."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import sys
import threading
from contextlib import suppress

import forked
import pytest
from processes import bench
from raw_connection import connect

from batchq import open_queue

# Clears the screen, writes the clipboard, makes a link, turns text around, and the same in 8-bit controls.
EVIL = "\x1b[2J\x1b]52;c;ZXZpbA==\x07\x1b]8;;http://evil\x1b\\\u202eevil\u2066\x9b31m\x9d52;c;QQ==\x9c\r\x7f"
# What rich draws with: colours, the cursor shown and hidden, a line up, the line cleared.
OF_A_BAR = re.compile(r"\x1b\[[0-9;?]*[mlhAK]")
RAW = ("\x1b]", "\x1b[2J", "\x1b\\", "\x07", "\x9b", "\x9d", "\u202e", "\u2066", "\x7f")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A queue in which everything that is text is evil."""
    directory = tmp_path_factory.mktemp("evil")
    with bench(directory, TERM="xterm-256color") as made:
        asyncio.run(fill(str(made.database)))
        with connect(made.database) as connection:
            evil = f"name {EVIL}"
            connection.execute("UPDATE batches SET model = ?, endpoint = ? WHERE name = 'live'", [EVIL, EVIL])
            connection.execute("UPDATE batches SET name = ? WHERE name = 'live'", [evil])
            connection.execute("UPDATE jobs SET error = ?, error_class = ? WHERE state = 'failed'", [EVIL, EVIL])
            connection.execute("UPDATE attempts SET error = ?, error_class = ?", [EVIL, EVIL])
            runners = [(name, kind) for _, name, kind, *_ in connection.tuples("PRAGMA table_info(runners)")]
            texts = [name for name, kind in runners if kind == "TEXT" and name not in {"id", "endpoints", "batch_ids"}]
            connection.execute(f"UPDATE runners SET {', '.join(f'{name} = ?' for name in texts)}", [EVIL] * len(texts))
            connection.execute("UPDATE lanes SET halted_at = 1, probe_at = 1, reason = ?, model = ?", [EVIL, EVIL])
        yield made


async def fill(location: str) -> None:
    def answer(prompt: str) -> str:
        if "fails" in prompt:
            raise ValueError(prompt)
        return prompt

    async with open_queue(location) as queue:
        asked = [{"custom_id": EVIL, "prompt": EVIL}, {"custom_id": "b", "prompt": f"fails {EVIL}"}]
        await queue.enqueue(asked, batch="ended", worker=answer, max_attempts=1)
        await queue.work(answer)
        await queue.enqueue([EVIL], batch="live", worker="openrouter", model="m")
        await queue.set_limits("m", rpm=5)


def on_terminal(place, *arguments: str, deadline: float = 60) -> str:
    """Run a command on a terminal of its own; return all that it was sent."""
    ours, theirs = pty.openpty()
    sent = bytearray()

    def read() -> None:
        with suppress(OSError):  # the other side is closed
            while data := os.read(ours, 65536):
                sent.extend(data)

    reader = threading.Thread(target=read)
    reader.start()
    command = [sys.executable, "-m", "batchq", *arguments]
    with forked.Popen(
        command, cwd=place.directory, env=place.environment, stdin=theirs, stdout=theirs, stderr=theirs
    ) as process:
        process.wait(deadline)
    os.close(theirs)
    reader.join(deadline)
    os.close(ours)
    return sent.decode().replace("\r\n", "\n")


def harmless(shown: str) -> None:
    found = [raw for raw in RAW if raw in shown]
    found += ["escape"] if "\x1b" in OF_A_BAR.sub("", shown) else []
    assert not found, f"{found} in {shown!r}"


@pytest.mark.parametrize(
    "command",
    [["status"], ["show", "ended", "0"], ["show", "ended", "1"], ["collect", "ended", "--format", "csv"],
     ["collect", "ended", "--format", "txt"], ["collect", "ended", "--with-prompt"], ["collect", "ended", "-o", f"a{EVIL}/b"],
     ["enqueue", f"no such {EVIL}.txt", "--batch", "x"], ["budget", f"name {EVIL}"], ["limit", "m"], ["db", "check"], ["nonsense", EVIL],
     ["worker", "--worker", "echo", "--until-empty"], ["pause", f"name {EVIL}"]],
    ids=lambda command: " ".join(command[:2]).replace(EVIL, "…"),
)  # fmt: skip
def test_no_command_sends_a_terminal_what_came_from_outside(place, command):
    shown = on_terminal(place, *command)
    harmless(shown)
    # JSON has an escape of its own; the others name nothing that is evil, or not all of it.
    escapes = (r"\x1b]52;c;ZXZpbA==\x07", r"\u001b]52;c;ZXZpbA==\u0007")
    named_nothing = command[0] in {"db", "worker", "limit", "nonsense"}
    assert named_nothing or any(escape in shown for escape in escapes), f"it is shown, written out: {shown!r}"


def test_nor_does_a_bar_that_shows_progress(place):
    shown = on_terminal(place, "collect", f"name {EVIL}", "--wait-timeout", "1.5s")
    harmless(shown)
    assert "name \\x1b[2J" in shown
    assert "waiting: " in shown


def test_a_log_line_on_a_terminal_is_harmless_too(capsys):
    import structlog

    from batchq.log import get_logger, set_up_logging

    try:
        set_up_logging("info", json_lines=False)
        bare = "\x1b[2J\x1b]8;;evil\x1b\\\u202e\x9b31m"  # without what structlog quotes anyway
        get_logger().warning("worker.says", message=bare, batch=f"a {bare}", workers=[bare])
        shown = capsys.readouterr().err
    finally:
        structlog.reset_defaults()
    harmless(shown)
    assert "worker.says" in shown
    assert shown.count("evil") >= 3


def test_data_in_a_pipe_and_in_a_file_is_what_was_answered(place):
    piped = place.run("collect", "ended", "--format", "txt").stdout
    assert piped == EVIL.replace("\r", "\\r").replace("\x1b\\", "\x1b\\\\") + "\n\n"
    done = place.run("collect", "ended", "-o", "ended.csv", "--force")
    assert done.returncode == 0, done.stderr
    assert EVIL in (place.directory / "ended.csv").read_bytes().decode()
    harmless(done.stderr)
    row = json.loads(place.run("show", "ended", "0", "--json").stdout)
    assert row["result"] == row["prompt"] == EVIL
