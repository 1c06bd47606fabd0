"""Helpers for tests of what stands above the store: make a queue, end its jobs without a runner."""

import asyncio
import json

from raw_connection import connect

from batchq.jobs import Answered, Ended, Failed, Reason, RunnerIdentity, Serving, Succeeded, Usage, Wants
from batchq.settlement import settle
from batchq.store import ExchangeRequest, open_store

RUNNER = RunnerIdentity("runner-1", "host", 4711, 16, "echo", 60_000)


def succeed(claim):
    return Succeeded(Answered(json.dumps(f"answer {claim.position}"), Usage(3, 5), cost=1_000_000))


def fail_odd(claim):
    if claim.position % 2 == 0:
        return succeed(claim)
    return Failed(Reason("bad_request", f"no \x1b[31m{claim.position}", 400))


async def end_jobs(store, outcome=succeed, *, at_most=None, runner=RUNNER, worker="echo"):
    """Claim and settle up to `at_most` jobs; return how many."""
    serving = (Serving(worker, "default", "http://127.0.0.1:1/v1", opened=True),)
    ended, count = [], 0
    while True:
        slots = 500 if at_most is None else min(500, at_most - count)
        reply = await store.exchange(ExchangeRequest(runner, ended, [], Wants(slots, serving)))
        if not reply.claims:
            return count
        ended = [settle(Ended(claim, outcome(claim), 7)) for claim in reply.claims]
        count += len(ended)


def with_store(location, body, *, create=True):
    """Run `await body(store)` on the queue at a path or URL."""

    async def main():
        async with await open_store(str(location), create=create) as store:
            return await body(store)

    return asyncio.run(main())


def complete_batch(location, outcome=succeed):
    return with_store(location, lambda store: end_jobs(store, outcome))


def rows_of(location, columns="position, custom_id, payload", order="position"):
    with connect(location) as database:
        return database.tuples(f"SELECT {columns} FROM jobs ORDER BY {order}")


def write_lines(path, values):
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path
