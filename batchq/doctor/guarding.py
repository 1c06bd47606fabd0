"""Runs a check so that the others are run, too, whatever becomes of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator

import anyio

from batchq.concealing import without_keys
from batchq.doctor.finding import Finding, error
from batchq.errors import BatchqError

CHECK_SECONDS = 30.0


async def guarded(
    name: str, check: Callable[[], AsyncIterator[Finding]], seconds: float = CHECK_SECONDS
) -> list[Finding]:
    """Return what a check finds; where it fails, or takes too long, what it had found and that."""
    found: list[Finding] = []
    try:
        with anyio.fail_after(seconds):
            async for finding in check():
                found.append(finding)  # noqa: PERF401 - what was found before it failed counts
    except TimeoutError:
        found.append(
            error(name, f"this took longer than {seconds:g} s, and is not known", "run it again; see the load")
        )
    except Exception as failure:  # noqa: BLE001 - a check that fails says so, and the others go on
        found.append(_failed(name, failure))
    return found


def guarded_plain(name: str, check: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """Return what a check finds that waits for nothing."""
    found: list[Finding] = []
    try:
        for finding in check():
            found.append(finding)  # noqa: PERF402 - as above
    except Exception as failure:  # noqa: BLE001 - as above
        found.append(_failed(name, failure))
    return found


def _failed(name: str, failure: Exception) -> Finding:
    if isinstance(failure, BatchqError):
        return error(name, without_keys(str(failure)))
    what = f"this could not be looked at: {type(failure).__name__}: {without_keys(str(failure))}"
    return error(name, what, "see that this user may read it; BATCHQ_DEBUG=1 with `batchq status` may show more")
