"""Answers with the prompt: for trying batchq out, and for tests."""

from __future__ import annotations

from batchq.worker import Json


async def echo(prompt: str | dict[str, Json]) -> str | dict[str, Json]:
    """Return the prompt."""
    return prompt
