"""Fixtures for pytest: `from batchq.testing.fixtures import queue`, or `pytest_plugins = ["batchq.testing.fixtures"]`.

They are not async, so that every plug-in for async tests can use them: anyio's, pytest-asyncio, or none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchq.testing.clock import VirtualClock
from batchq.testing.temporary import TemporaryQueue, open_temporary


@pytest.fixture
def queue_url(tmp_path: Path) -> str:
    """The path of this test's queue, for code that opens it by itself."""
    return str(_path(tmp_path))


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[TemporaryQueue]:
    """This test's queue, open, under a VirtualClock: `queue.clock`."""
    # A loop of its own that is nobody's current one: what it opens belongs to no loop.
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        opened = runner.run(open_temporary(_path(tmp_path), VirtualClock()))
        try:
            yield opened
        finally:
            runner.run(opened.close())


def _path(directory: Path) -> Path:
    return directory / "queue.db"
