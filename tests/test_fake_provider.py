"""The fake provider itself: what it answers, what it refuses and what its ledger says of it."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import openai
import pytest
from fake_provider import SCRIPT, Provider, running_provider
from openai import AsyncOpenAI

FIXTURES = Path(__file__).parent / "fixtures" / "llm"


@pytest.fixture(scope="module")
def shared_provider() -> Iterator[Provider]:
    with running_provider() as provider:
        yield provider


@pytest.fixture
def provider(shared_provider: Provider) -> Provider:
    """A provider with every option at its default; one process serves the whole file."""
    defaults = {"latency": 0, "spread": 0, "slow_fraction": 0, "error_mix": "", "error_calls": None}
    limits = {"retry_after": None, "strict_window": False, "rate": None, "burst": None, "max_in_flight": None}
    rest = {"answer": "echo", "require_key": None, "credits": None, "no_cost": False, "seed": 0}
    shared_provider.behave(**defaults, **limits, **rest)
    shared_provider.reset()
    return shared_provider


def with_client[T](provider, work):
    async def run():
        async with AsyncOpenAI(base_url=provider.base_url, api_key="x", max_retries=0, timeout=5) as client:
            return await work(client)

    return asyncio.run(run())


def chat(provider, *prompts, **options):
    """The answer, or the exception, of each prompt, asked one after the other."""

    async def work(client):
        return [await outcome(client, prompt, **options) for prompt in prompts]

    return with_client(provider, work)


def chat_together(provider, prompts, **options):
    async def work(client):
        return await asyncio.gather(*(outcome(client, prompt, **options) for prompt in prompts))

    return with_client(provider, work)
