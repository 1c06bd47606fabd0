"""What has ended, page by page: each row once, in bounded memory, and the text of an answer only once."""

from __future__ import annotations

import json
import tracemalloc

import pytest
from completing import end_jobs, fail_odd, with_store

from batchq.jobs import Answered, FinishedPlace, NewBatch, NewJob, Succeeded, Usage


async def fill(store, followers):
    """Make a batch where job i has `followers[i]` that follow it, some with a prompt that is spelled otherwise."""
    batch = await store.open_batch(NewBatch("b", "echo"))
    count = len(followers)
    await store.add_jobs(batch, [NewJob(i, f"id{i}", f"{i:032x}", f'"p{i}"') for i in range(count)])
    position, led = count, []
    for leader, many in enumerate(followers):
        for number in range(many):
            prompt = f'"p{leader}"' if number % 2 else f'"p{leader}" '
            led.append(NewJob(position, f"id{position}", f"{leader:032x}", prompt, leader=f"id{leader}"))
            position += 1
    await store.add_jobs(batch, led)
    await store.seal(batch)
    return await store.batch("b")


async def pages(store, batch, page_rows):
    page, found = await store.finished(batch, FinishedPlace(), page_rows=page_rows), []
    while page.results:
        found.append(page.results)
        page = await store.finished(batch, page.place, page_rows=page_rows)
    assert page.place.follower_id is None
    return found


@pytest.mark.parametrize(
    "followers",
    [(0, 0, 0), (1, 0, 7), (9, 9, 9), (3, 0, 0, 4, 1, 0, 2), (10,), (2, 2, 2, 2)],
    ids=lambda many: "-".join(map(str, many)),
)
def test_each_row_is_read_once_as_results_has_it(location, followers):
    async def main(store):
        batch = await fill(store, followers)
        await end_jobs(store, fail_odd)
        results = [result async for result in store.results(batch, with_prompt=True)]
        assert len(results) == len(followers) + sum(followers)
        for page_rows in (1, 2, 3, 5, 500):
            found = await pages(store, batch, page_rows)
            assert all(len(page) <= 2 * page_rows for page in found)
            assert sorted((row for page in found for row in page), key=lambda row: row.position) == results

    with_store(location, main)


def test_what_is_sent_back_between_two_pages_is_not_told_any_more(location):
    async def main(store):
        batch = await fill(store, (0, 5))
        await end_jobs(store, fail_odd)
        first = await store.finished(batch, FinishedPlace(), page_rows=1)
        second = await store.finished(batch, first.place, page_rows=2)
        assert (len(first.results), len(second.results)) == (1, 3)
        await store.retry(batch)
        third = await store.finished(batch, second.place, page_rows=2)
        assert (third.results, third.place.follower_id) == ((), None)
        await end_jobs(store, fail_odd)
        assert len((await store.finished(batch, third.place, page_rows=9)).results) == 6

    with_store(location, main)


def test_many_followers_of_a_long_answer_take_little_memory(location):
    text = json.dumps("x" * 100_000)

    async def main(store):
        batch = await fill(store, (3_000,))
        await end_jobs(store, lambda claim: Succeeded(Answered(text, Usage(), cost=None)))
        tracemalloc.start()
        try:
            found = await pages(store, batch, 500)
            assert sum(map(len, found)) == 3_001
            assert tracemalloc.get_traced_memory()[1] < 20_000_000
        finally:
            tracemalloc.stop()

    with_store(location, main)
