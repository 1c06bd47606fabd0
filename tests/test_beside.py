"""`beside`: what several do at once ends together, and raises what the first of them raised."""

from __future__ import annotations

import asyncio

import anyio
import pytest

from batchq.errors import CannotGoOn, StoreError, UnknownBatch
from batchq.process import beside

pytestmark = pytest.mark.anyio


async def forever():
    await anyio.sleep_forever()


def failing(error):
    async def fail():
        await anyio.sleep(0)
        raise error

    return fail


async def test_what_the_main_one_returns_ends_the_others():
    ended = []

    async def other():
        try:
            await anyio.sleep_forever()
        finally:
            ended.append(True)

    async def main():
        await anyio.sleep(0)
        return 7

    assert await beside(main, other, other) == 7
    assert ended == [True, True]


@pytest.mark.parametrize("error", [UnknownBatch("gone"), StoreError("no disk"), RuntimeError("mine")], ids=repr)
async def test_what_one_raises_is_raised_itself(error):
    for main, other in ((failing(error), forever), (forever, failing(error))):
        with pytest.raises(type(error)) as caught:
            await beside(main, other)
        assert caught.value is error


async def test_the_first_one_to_fail_is_heard():
    async def stubborn():
        try:
            await anyio.sleep_forever()
        finally:
            raise StoreError("second")

    with pytest.raises(UnknownBatch, match="first"):
        await beside(stubborn, failing(UnknownBatch("first")))
    with pytest.raises(UnknownBatch, match="first"):
        await beside(failing(UnknownBatch("first")), stubborn)


async def test_a_group_of_one_is_unwrapped_and_one_of_several_is_not():
    with pytest.raises(CannotGoOn):
        await beside(failing(ExceptionGroup("g", [ExceptionGroup("h", [CannotGoOn("x")])])), forever)
    with pytest.raises(ExceptionGroup):
        await beside(failing(ExceptionGroup("g", [CannotGoOn("x"), CannotGoOn("y")])), forever)


@pytest.mark.parametrize("fails", [False, True])
async def test_a_cancellation_goes_before_what_fails_because_of_it(fails):
    async def main():
        try:
            await anyio.sleep_forever()
        finally:
            if fails:
                raise StoreError("while leaving")

    task = asyncio.create_task(beside(main, forever))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with anyio.move_on_after(0.01) as scope:
        await beside(main, forever)
    assert scope.cancelled_caught
