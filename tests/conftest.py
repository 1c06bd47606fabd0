"""A real store in a temporary file, under a clock that tests set."""

from __future__ import annotations

import pytest
from store_driver import Clock, open_queue


@pytest.fixture(scope="session")
def anyio_backend():
    return "asyncio"


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "queue.db"


@pytest.fixture
async def store(path, clock):
    async with await open_queue(path, clock) as opened:
        yield opened
