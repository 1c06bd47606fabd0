"""Runs batches against the fake provider and draws what `top` and `run` show meanwhile."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
import sys
from pathlib import Path

from fake_provider import running_provider
from processes import bench, wait_for
from terminal import on_terminal

from batchq import open_queue
from scripts.picturing.drawing import svg_of

_MODEL = "fake/large"
_HOST = "build-1"
_COLUMNS = 110
# It is seen in them.
_SCRATCH = Path("/tmp/batchq")  # made here, and an error where there is one


def main(directory: Path) -> None:
    """Make both pictures in a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    _SCRATCH.mkdir()
    try:
        for name, draw in (("run", _run), ("top", _top)):
            picture = draw(_SCRATCH / name)
            path = directory / f"{name}.svg"
            path.write_text(picture, encoding="utf-8")
            print(f"{path}: {len(picture.encode()) / 1000:.1f} kB")
    finally:
        shutil.rmtree(_SCRATCH)


def _top(scratch: Path) -> str:
    scratch.mkdir()
    provider_running = running_provider(latency=0.4, spread=0.2, error_mix="400:0.01,500:0.02", seed=7)
    with provider_running as provider, bench(scratch, TERM="xterm-256color") as place:
        asyncio.run(_fill(place.database, provider.base_url))
        serve = ("worker", "--worker", "openrouter", "--base-url", provider.base_url, "-c", "16")
        for _ in range(2):
            place.start(*serve)
        wait_for(lambda: _rename_hosts(place.database) == 2, "two workers")
        shown = ("top", "--db", "runs.db", "--interval", "500ms")
        with on_terminal(scratch, place.environment, *shown, columns=_COLUMNS, lines=24) as (terminal, _):
            terminal.wait_for("bad_request", "/s", "/h", "2 workers", "over budget", "100%")
            wait_for(lambda: place.count("done") > 300, "some hundred answers")
            _rename_hosts(place.database)
            terminal.wait_for(_HOST, "/h")
            return svg_of(terminal.cells(), "batchq top")


async def _fill(database: Path | str, base_url: str) -> None:
    async with open_queue(str(database)) as queue:
        for name, count, budget in (
            ("reviews", 2_400, 2.0), ("titles", 900, None), ("summaries", 400, 0.0003), ("smoke-test", 20, None),
        ):  # fmt: skip
            prompts = [f"{name} {number}" for number in range(count)]
            await queue.enqueue(prompts, batch=name, worker="openrouter", model=_MODEL, budget=budget)
        await queue.set_limits(_MODEL, rpm=3_000, max_inflight=28, base_url=base_url)


def _rename_hosts(database: Path | str) -> int:
    """Name the workers' host as if it were another one: pictures tell nothing of the machine that made them."""
    with sqlite3.connect(database, timeout=30) as connection:
        return connection.execute("UPDATE runners SET host = ?", [_HOST]).rowcount


def _run(scratch: Path) -> str:
    scratch.mkdir()
    prompts = scratch / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"Question {number}"}) + "\n" for number in range(600)))
    provider_running = running_provider(latency=0.4, spread=0.2, seed=7)
    with provider_running as provider, bench(scratch, TERM="xterm-256color") as place:
        shown = (
            "run", "prompts.jsonl", "--batch", "reviews", "--worker", "openrouter", "--model", _MODEL,
            "--base-url", provider.base_url, "-c", "16", "-o", "answers.jsonl",
        )  # fmt: skip
        with on_terminal(scratch, place.environment, *shown, columns=_COLUMNS, lines=3) as (terminal, _):
            wait_for(lambda: place.count("done") > 200, "some answers")
            terminal.wait_for("/s", "left", "$")
            return svg_of(terminal.cells(), "batchq run prompts.jsonl --batch reviews -o answers.jsonl")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
