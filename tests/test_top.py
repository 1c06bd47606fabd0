"""`batchq top` on a real terminal: what it shows, how it ends, and what it leaves behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
from contextlib import closing

import forked
import psycopg
import pytest
from fake_provider import running_provider
from processes import ON_BOTH, bench, bench_for, wait_for
from terminal import on_terminal

from batchq import open_queue

EVIL = "\x1b[2J\x1b]52;c;ZXZpbA==\x07\u202eevil\x9b31m"


@pytest.fixture
def place(request, tmp_path):
    with bench_for(request, tmp_path, TERM="xterm-256color") as made:
        yield made


def top(place, *arguments, **size):
    return on_terminal(place.directory, place.environment, "top", "--interval", "200ms", *arguments, **size)


def enqueue(place, *batches):
    async def main():
        async with open_queue(str(place.database)) as queue:
            for name, count, options in batches:
                await queue.enqueue([f"{name} {i}" for i in range(count)], batch=name, **options)

    asyncio.run(main())


OPENROUTER = {"worker": "openrouter", "model": "m/large"}
ECHO = {"worker": "echo"}


@ON_BOTH
def test_top_shows_batches_lanes_workers_and_errors_as_they_are(place):
    with running_provider(latency=0.1, error_mix="400:0.1", seed=3) as provider:
        enqueue(place, ("demo", 3_000, OPENROUTER | {"budget": 5}), ("later", 2, ECHO))

        async def limit():
            async with open_queue(str(place.database)) as queue:
                await queue.set_limits("m/large", max_inflight=6, base_url=provider.base_url)

        asyncio.run(limit())
        worker, other = (
            place.start("worker", "--worker", "openrouter", "--base-url", provider.base_url, "-c", "4", "--lease", "1s")
            for _ in range(2)
        )
        with top(place) as (terminal, process):
            shown = terminal.wait_for("demo", "running", "/3,000", "bad_request", "$5.0000", f":{worker.pid}")
            shown = terminal.wait_for("/s", "left", "/min)", "2 workers, 6 of 8 calls")
            lines = {line.split()[0]: line.split() for line in shown.splitlines() if line.strip()}
            done, total = (int(number.replace(",", "")) for number in lines["demo"][4].split("/"))
            assert 0 < done < total == 3_000
            assert lines["later"][1] == "waiting"
            assert "no live worker serves echo" in shown
            assert lines["m/large"][1:4] == [provider.base_url, "6", "6"]
            assert any(line.endswith("at 0") or " at " in line for line in shown.splitlines() if "bad_request" in line)
            assert f"/{provider.base_url}" not in shown

            other.kill()
            terminal.wait_for("it died")
            terminal.wait_until_gone(f":{other.pid}")
            terminal.wait_for("1 worker, ", f":{worker.pid}")

            terminal.press("q")
            assert process.wait(20) == 0
            assert terminal.is_as_before()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_it_and_leaves_the_terminal_as_it_was(place, number, code):
    enqueue(place, ("demo", 1, ECHO))
    with top(place) as (terminal, process):
        terminal.wait_for("demo")
        assert not terminal.is_as_before()
        process.send_signal(number)
        assert process.wait(20) == code
        assert terminal.is_as_before()
        assert "Traceback" not in terminal.sent.decode()


def test_it_gives_the_terminal_back_while_it_is_stopped(place):
    enqueue(place, ("demo", 1, ECHO))
    with top(place) as (terminal, process):
        terminal.wait_for("demo")
        process.send_signal(signal.SIGTSTP)
        wait_for(lambda: os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT), "it to stop") if (
            os.getpid() == os.getppid()
        ) else wait_for(terminal.is_as_before, "the terminal to be given back")
        process.send_signal(signal.SIGCONT)
        wait_for(lambda: not terminal.is_as_before(), "the screen again")
        terminal.press("q")
        assert process.wait(20) == 0
        assert terminal.is_as_before()
