"""A coordinator: reads a batch in pages while others change it, follows what ends, and asks how far it is."""

from __future__ import annotations

from collections import Counter

from batchq.jobs import FinishedPlace, Result
from machine.arena import Arena
from machine.limits import spent
from machine.producer import Producer
from machine.stage import FINAL_STATES

PAGE_ROWS = 2


class Coordinator:
    """Reads one batch, and holds what it is told against the rows."""

    def __init__(self, arena: Arena, producer: Producer) -> None:
        self._arena = arena
        self._store = arena.store
        self._producer = producer
        self._place = -1
        self._followed = (producer.batch.id, FinishedPlace())
        self._ended: dict[int, int | None] = {}

    def read(self) -> list[Result]:
        """Read what a reader sees: who follows has its leader's state and answer, its own prompt, and cost nothing."""
        found = self._arena.run(self._collect(page_rows=3, with_prompt=True))
        self._check_results(found, 0)
        places = [result.position for result in found]
        self._arena.check(places == list(self._producer.positions), f"rows came in the order {places}")
        unique = [result.position for result in self._arena.run(self._collect(unique=True))]
        roots = self._producer.roots[: self._producer.stored]
        self._arena.check(unique == sorted(set(roots)), f"{unique} run, not {sorted(set(roots))}")
        counted = Counter(result.state for result in found)
        recounted = self._arena.run(self._store.recount(self._producer.batch))
        self._arena.check(recounted == counted, f"the recount says {recounted}, not {counted}")
        return found

    def read_on(self) -> None:
        """Read the next page, whatever others did since the last one; from the start behind the last."""
        found = self._arena.run(self._page(self._place))
        self._check_results(found, self._place + 1)
        end = self._place + 1 + len(found)
        whole = len(found) == PAGE_ROWS or end >= self._producer.stored
        self._arena.check(whole, f"a page behind row {self._place} has {len(found)} rows")
        self._place = -1 if len(found) < PAGE_ROWS else end - 1

    def follow(self) -> None:
        """Take what ended since the last time; what ended once comes once, unless it was sent back meanwhile."""
        batch_id, place = self._followed
        if batch_id != self._producer.batch.id:
            place, self._ended = FinishedPlace(), {}
        page = self._arena.run(self._store.finished(self._producer.batch, place, page_rows=PAGE_ROWS))
        self._followed = (self._producer.batch.id, page.place)
        for result in page.results:
            told = f"row {result.position} of {self._producer.name} was told of as {result.state}"
            self._arena.check(result.state in FINAL_STATES, told)
            # Sent back and ended again within one millisecond, it is told of once, or twice.
            again = self._ended.get(result.position) == result.finished_at
            self._arena.check(not again, f"{told} for the second time")
            self._ended[result.position] = result.finished_at

    def ask(self) -> None:
        """Ask how far the batch is: finished means sealed, or cancelled, and no live row."""
        producer, seen = self._producer, self._arena.look()
        told = self._arena.run(self._store.progress(producer.name))
        states = Counter(
            seen.jobs[row["leader_id"] or row["id"]]["state"]
            for row in seen.jobs.values()
            if row["batch_id"] == producer.batch.id
        )
        live = states["pending"] + states["inflight"]
        complete = producer.sealed or seen.batches[producer.batch.id]["state"] == "cancelled"
        self._arena.check(told.finished == (complete and not live), f"{producer.name} is finished or not: {told}")
        counts = {name: getattr(told.counts, name) for name in ("pending", "inflight", *FINAL_STATES)}
        self._arena.check({k: n for k, n in counts.items() if n} == dict(states), f"told {counts}, found {states}")
        cost, priced, unpriced = spent(seen, producer.batch.id)
        money = (told.cost or 0, told.priced, told.unpriced)
        self._arena.check(money == (cost, priced, unpriced), f"told {money}, logged {(cost, priced, unpriced)}")

    def check_drained(self) -> None:
        """Check that all has ended, comes in order, twice the same, and as who follows what ends is told it."""
        self._arena.check(self._arena.run(self._store.progress(self._producer.name)).finished, "it is not finished")
        found = self.read()
        self._arena.check(all(result.state in FINAL_STATES for result in found), "a row is live in a finished batch")
        again = self._arena.run(self._collect(with_prompt=True))
        self._arena.check(again == found, "the same batch was collected twice, and differs")
        ended = sorted(self._arena.run(self._collect_finished()), key=lambda result: result.position)
        self._arena.check(ended == found, f"who follows what ends was told {ended}, not {found}")

    def _check_results(self, found: list[Result], start: int) -> None:
        rows = {
            row["position"]: row
            for row in self._arena.look().jobs.values()
            if row["batch_id"] == self._producer.batch.id
        }
        for position, result in enumerate(found, start):
            job, ran = self._producer.rows[position], rows[self._producer.roots[position]]
            leader = None if ran["position"] == position else ran["position"]
            told = (
                result.position, result.custom_id, result.payload, result.key, result.state, result.attempts,
                result.result, result.error, result.error_class, result.leader, result.cost,
            )  # fmt: skip
            expected = (
                position, job.custom_id, job.payload, job.key, ran["state"], ran["attempts"],
                ran["result"], ran["error"], ran["error_class"], leader, ran["cost"] if leader is None else 0,
            )  # fmt: skip
            self._arena.check(told == expected, f"a reader was told {told}, not {expected}", ran["id"])

    async def _collect(self, **options) -> list[Result]:
        return [result async for result in self._store.results(self._producer.batch, **options)]

    async def _page(self, after: int) -> list[Result]:
        results = self._store.results(self._producer.batch, after=after, page_rows=PAGE_ROWS, with_prompt=True)
        found = []
        async for result in results:
            found.append(result)
            if len(found) == PAGE_ROWS:
                break
        await results.aclose()
        return found

    async def _collect_finished(self) -> list[Result]:
        found, page = [], await self._store.finished(self._producer.batch, FinishedPlace(), page_rows=3)
        while page.results:
            found += page.results
            page = await self._store.finished(self._producer.batch, page.place, page_rows=3)
        return found
