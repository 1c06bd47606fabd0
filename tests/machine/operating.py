"""An operator: pauses, cancels, retries, purges, sets limits and budgets; sometimes gone half-way."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from store_driver import SERVING

from batchq.store import operate
from machine.arena import Arena, Row
from machine.exchanges import ExchangeJudge
from machine.judge import Judge
from machine.producer import Producer
from machine.stage import BUDGETS, LANES, LIMITS, MODELS


class Operator:
    """Acts on batches by name; `number` says how much, or how far."""

    def __init__(self, arena: Arena, producers: Mapping[str, Producer], judge: Judge, exchanges: ExchangeJudge) -> None:
        self._arena = arena
        self._store = arena.store
        self._producers = producers
        self._judge = judge
        self._exchanges = exchanges

    def pause(self, name: str, number: int = 0) -> None:
        self._arena.run(self._store.pause(self._producers[name].batch))

    def resume(self, name: str, number: int = 0) -> None:
        self._arena.run(self._store.resume(self._producers[name].batch))

    def reopen(self, name: str, number: int = 0) -> None:
        self._arena.run(self._store.reopen_lanes())

    def cancel(self, name: str, number: int = 0) -> None:
        self._cancelling(self._store.cancel(self._producers[name].batch))

    def begin_to_cancel(self, name: str, number: int = 0) -> None:
        """Cancel up to `number` chunks, and live no longer than that."""
        batch_id = self._producers[name].batch.id
        steps = [operate.start_cancel, *[operate.cancel_chunk] * (number % 2)]
        for step in steps:
            self._cancelling(self._store._write(partial(step, batch_id=batch_id)))

    def finish_cancels(self, name: str = "", number: int = 0) -> None:
        self._cancelling(self._store.finish_cancels())
        states = {batch_id: batch["state"] for batch_id, batch in self._arena.look().batches.items()}
        for job_id, row in self._arena.look().jobs.items():
            live = row["leader_id"] is None and row["state"] in {"pending", "inflight"}
            held_back = not live or states[row["batch_id"]] != "cancelled"
            self._arena.check(held_back, "it outlived the cancel of its batch", job_id)

    def retry(self, name: str, number: int = 0) -> None:
        batch = self._producers[name].batch
        before = self._arena.look()
        revive = number != 3
        shut = not revive and before.batches[batch.id]["state"] == "cancelled"
        chosen = {"error_class": "bad_request"} if number == 2 else {}
        again = [] if shut else [row for row in before.jobs.values() if self._goes_back(row, batch.id, chosen)]
        count = self._arena.run(self._store.retry(batch, revive=revive, **chosen))
        self._arena.check(count == len(again), f"{count} jobs of {name} went back, not {len(again)}")
        after = self._arena.look()
        for row in again:
            now = after.jobs[row["id"]]
            right = (now["state"], now["attempts"], now["token"]) == ("pending", 0, row["token"])
            self._arena.check(right, "retry must make it pending, and keep its token", row["id"])
            self._arena.note(row["id"], "an operator sends it back")
            self._judge.allow_again(row)

    def start_over(self, name: str, number: int = 0) -> None:
        self.cancel(name)
        self.retry(name)
        self.resume(name)

    def purge(self, name: str, number: int = 0) -> None:
        """Delete a batch, whatever is in hand; another of its name is made."""
        producer = self._producers[name]
        removed = self._arena.run(self._store.purge(producer.batch))
        self._arena.check(removed == producer.stored, f"{removed} of {producer.stored} rows of {name} were purged")
        kept = [row["id"] for row in self._arena.look().jobs.values() if row["batch_id"] == producer.batch.id]
        self._arena.check(not kept, "it outlived its batch", *kept)
        told = self._arena.rows(f"SELECT * FROM tallies WHERE batch_id = {producer.batch.id}")
        self._arena.check(told == [], f"a purged batch is told of: {told}")
        producer.open()

    def limit(self, name: str, number: int = 0) -> None:
        limits = LIMITS[number % len(LIMITS)]
        model = MODELS[name]
        forget = number == 0
        self._arena.run(self._store.set_limits("echo", SERVING[0].base_url, model, limits, forget=forget))
        lane = LANES[sorted(set(MODELS.values())).index(model)]
        self._exchanges.limits.set(lane, limits)

    def budget(self, name: str, number: int = 0) -> None:
        changes = {"budget": BUDGETS[number % len(BUDGETS)]}
        self._arena.run(self._store.update_policy(self._producers[name].batch, changes))

    def prefer(self, name: str, number: int = 0) -> None:
        self._arena.run(self._store.update_policy(self._producers[name].batch, {"priority": number % 3}))

    def mend(self, name: str, number: int = 0) -> None:
        off = self._arena.run(self._store.mend_tallies(self._producers[name].batch))
        self._arena.check(off == {}, f"the tallies of {name} were off by {off}")

    def _goes_back(self, row: Row, batch_id: int, chosen: Mapping[str, str]) -> bool:
        ended = row["batch_id"] == batch_id and row["state"] in {"failed", "cancelled"}
        return ended and row["error_class"] == chosen.get("error_class", row["error_class"])

    def _cancelling(self, call) -> None:
        before = self._arena.look().jobs
        self._arena.run(call)
        for job_id, row in self._arena.look().jobs.items():
            if row == before[job_id]:
                continue
            right = (before[job_id]["state"] in {"pending", "inflight"}) and row["state"] == "cancelled"
            self._arena.check(right, "a cancel made something else of it", job_id)
            self._arena.note(job_id, "it is cancelled")
            self._exchanges.end_lease([job_id])
