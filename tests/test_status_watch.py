"""`batchq status --watch`: redrawn on a terminal, blocks and lines of JSON elsewhere, and how it ends."""

from __future__ import annotations

import asyncio
import json
import signal

import pytest
from processes import ON_BOTH, bench_for, wait_for
from terminal import on_terminal

from batchq import open_queue

WATCH = ("status", "--watch", "--interval", "100ms")


@pytest.fixture
def place(request, tmp_path):
    with bench_for(request, tmp_path) as made:
        yield made


def enqueue(place, name, count):
    async def add():
        async with open_queue(str(place.database)) as queue:
            await queue.enqueue([f"{name} {i}" for i in range(count)], batch=name, worker="echo")

    asyncio.run(add())


def printed(place, number):
    return (place.directory / f"{number}.out").read_text()


@ON_BOTH
def test_off_a_terminal_it_prints_a_block_when_something_changes_and_ends_with_the_batch(place):
    enqueue(place, "demo", 3)
    watching = place.start(*WATCH, "demo")
    wait_for(lambda: "waiting" in printed(place, 0), "the first block")
    assert place.run("worker", "--worker", "echo", "--until-empty").returncode == 0
    assert watching.wait(30) == 0
    blocks = printed(place, 0).split("\n\n20")
    assert "finished" in printed(place, 0)
    assert len(blocks) == len(set(blocks)) >= 2
    assert "\x1b" not in printed(place, 0)
    assert place.errors(watching) == ""


@ON_BOTH
def test_json_is_a_line_at_each_look_until_the_batch_is_finished(place):
    enqueue(place, "demo", 3)
    watching = place.start(*WATCH, "demo", "--json")
    wait_for(lambda: printed(place, 0).count("\n") >= 3, "three looks")
    assert place.run("worker", "--worker", "echo", "--until-empty").returncode == 0
    assert watching.wait(30) == 0
    looks = [json.loads(line)["batches"][0] for line in printed(place, 0).splitlines()]
    assert [looks[0]["done"], looks[0]["finished"]] == [0, False]
    assert [looks[-1]["done"], looks[-1]["finished"]] == [3, True]


def test_ctrl_c_ends_it_without_a_traceback(place):
    enqueue(place, "demo", 1)
    watching = place.start(*WATCH)
    wait_for(lambda: "demo" in printed(place, 0), "the first block")
    watching.send_signal(signal.SIGINT)
    assert watching.wait(30) == 130
    assert "Traceback" not in place.errors(watching)


def test_on_a_terminal_it_is_redrawn_in_whatever_window_there_is(place):
    enqueue(place, "demo", 2)
    with on_terminal(place.directory, place.environment, *WATCH, "demo", columns=60, lines=8) as (terminal, process):
        terminal.wait_for("Ctrl-C ends", "more lines")
        terminal.resize(120, 40, process)
        terminal.wait_for("no live worker serves echo")
        assert place.run("worker", "--worker", "echo", "--until-empty").returncode == 0
        assert process.wait(30) == 0
        terminal.wait_for("finished", "100%")


def test_an_unknown_batch_and_too_short_an_interval_are_usage_errors(place):
    enqueue(place, "demo", 1)
    assert "did you mean 'demo'?" in place.run("status", "--watch", "damo").stderr
    refused = place.run("status", "--watch", "--interval", "10ms")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "at least 100ms" in refused.stderr
