"""Waits for work that can't be broken off."""

from __future__ import annotations

import asyncio
from typing import TypeVar

T = TypeVar("T")


async def end_of(future: asyncio.Future[T]) -> None:
    """Wait until a future has ended, whoever cancels the waiting task; then let the cancellation go on."""
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        future.exception()  # taken note of: it is the cancellation that is raised
        raise cancelled
