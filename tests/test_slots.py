"""The slots of a process: how many calls begin at once, and what becomes of those that did not."""

from __future__ import annotations

import asyncio
from collections import Counter

import anyio

from batchq import log
from batchq.jobs import Batch, BatchState, Claim, Released
from batchq.slots import BEGIN_AT_ONCE, Slots
from batchq.worker import Request

MANY = 5 * BEGIN_AT_ONCE


def claim(number: int, losses: int = 0) -> Claim:
    batch = Batch(1, "b", "w", "default", "m", {}, 0, 8, 60_000, None, BatchState.OPEN, MANY, 0, 0, None)
    return Claim(number, 1, batch, number, None, '"hello"', 1, losses, 0, "lane")


def slots(concurrency: int = MANY) -> Slots:
    return Slots(concurrency, lambda: None, log.get_logger().bind())


def test_the_event_loop_gets_to_its_sockets_between_calls_that_begin():
    async def main() -> None:
        rounds, begun = [0], Counter[int]()

        def next_round() -> None:
            rounds[0] += 1
            asyncio.get_running_loop().call_soon(next_round)

        async def answer(_request: Request) -> str:
            begun[rounds[0]] += 1
            return "ok"

        next_round()
        hand = slots()
        async with anyio.create_task_group() as calls:
            for number in range(MANY):
                hand.assign(claim(number), answer, calls)
            while hand.running:
                await anyio.sleep(0)
            calls.cancel_scope.cancel()
        assert sum(begun.values()) == MANY
        assert max(begun.values()) <= BEGIN_AT_ONCE
        assert [item.claim.position for item in hand.ended] == list(range(MANY))

    asyncio.run(main())


def test_slots_serve_again_and_again():
    async def main() -> None:
        async def answer(request: Request) -> str:
            await anyio.sleep(0.001 * (request.position % 3))
            return "ok"

        hand = slots(10)
        async with anyio.create_task_group() as calls:
            for number in range(300):
                while hand.running == 10:
                    await anyio.sleep(0.001)
                hand.assign(claim(number), answer, calls)
            while hand.running:
                await anyio.sleep(0.001)
            calls.cancel_scope.cancel()
        assert sorted(item.claim.position for item in hand.ended) == list(range(300))

    asyncio.run(main())


def test_what_did_not_begin_is_given_back_and_what_began_is_released():
    async def main() -> None:
        begun = []

        async def hang(request: Request) -> str:
            begun.append(request.position)
            await anyio.sleep_forever()
            return "never"

        hand = slots()
        async with anyio.create_task_group() as calls:
            for number in range(MANY):
                hand.assign(claim(number, losses=2 * (number == MANY - 1)), hang, calls)
            assert hand.holds_suspect
            while not begun:
                await asyncio.sleep(0)
            hand.cancel()
            hand.give_back_unbegun()
            assert not hand.holds_suspect
            assert len(begun) <= BEGIN_AT_ONCE
            assert hand.running == len(begun)
            while hand.running:
                await asyncio.sleep(0)
            calls.cancel_scope.cancel()
        assert sorted(item.claim.position for item in hand.ended) == list(range(MANY))
        assert {type(item.outcome) for item in hand.ended} == {Released}

    asyncio.run(main())


def test_a_cancelled_process_loses_none_of_what_it_holds():
    async def main() -> None:
        async def hang(_request: Request) -> str:
            await anyio.sleep_forever()
            return "never"

        hand = slots()
        with anyio.CancelScope() as around:
            async with anyio.create_task_group() as calls:
                for number in range(MANY):
                    hand.assign(claim(number), hang, calls)
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                around.cancel()
                await asyncio.sleep(0)
        hand.give_back_unbegun()
        assert sorted(item.claim.position for item in hand.rest()) == list(range(MANY))

    asyncio.run(main())
