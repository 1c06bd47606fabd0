"""What one exchange may do to lanes: a pause and a halt hold, one call probes, and old news changes nothing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from store_driver import SERVING

from batchq.settlement import Settlement
from batchq.store.find import lane_name
from machine.arena import Arena, Row, Snapshot

if TYPE_CHECKING:
    from machine.exchanges import Exchange

LIMITED_BY = ("rpm", "tpm", "max_inflight", "learned_rate", "cut_at")


class LaneJudge:
    """Compares the lanes before and after an exchange."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena

    def check(self, done: Exchange) -> None:
        for name, lane in done.after.lanes.items():
            settled = [item for item in done.accepted if item.ended.claim.lane == name]
            was = done.before.lanes.get(name) or {"epoch": 0, "halted_at": None, "paused_until": None, "probe_at": None}
            self._check_claims(done, name, was, lane)
            self._check_news(was, lane, settled)

    def free_at(self, seen: Snapshot, batch: Row) -> int | None:
        """Return from when on calls may start in the lane of a batch; None where it counts its calls."""
        lane = seen.lanes.get(lane_name(batch["worker"], SERVING[0].base_url, batch["model"]))
        if lane is None:
            return 0
        if any(lane[limit] is not None for limit in LIMITED_BY):
            return None
        return max(lane["paused_until"] or 0, (lane["probe_at"] or 0) if lane["halted_at"] is not None else 0)

    def _check_claims(self, done: Exchange, name: str, was: Row, lane: Row) -> None:
        now, check = self._arena.clock.now, self._arena.check
        taken = [claim for claim in done.fresh if claim.lane == name]
        ids = [claim.job_id for claim in taken]
        if not taken:
            return
        check((lane["paused_until"] or 0) <= now, f"a call started in a lane that pauses: {lane}", *ids)
        if lane["halted_at"] is None:
            check(not any(claim.probe for claim in taken), "a probe went through an open lane", *ids)
            return
        check([claim.probe for claim in taken] == [True], f"more than a probe went through a halted lane: {lane}", *ids)
        if was["halted_at"] is not None:
            check(was["probe_at"] <= now, f"a halted lane was probed before its time: {was}", *ids)
        check(lane["probe_at"] > now, f"a lane that is being probed is open to the next probe: {lane}", *ids)

    def _check_news(self, was: Row, lane: Row, settled: Iterable[Settlement]) -> None:
        current = [item for item in settled if item.ended.claim.epoch == was["epoch"]]
        shuts = [item for item in current if item.throttled or item.halt]
        proves = any(item.ended.claim.probe and (item.proves_lane or item.halt) for item in settled)
        # Who halts its lane again and again is told off instead, and opens it.
        told = f"{[item.outcome for item in settled]} made of a lane, which was {was}: {lane}"
        # A halt of the same exchange makes old news of a 429.
        if any(item.throttled for item in current) and not any(item.halt for item in current):
            self._arena.check((lane["paused_until"] or 0) > self._arena.clock.now, f"no pause after a 429: {told}")
        if shuts or proves:
            return
        same = (lane["epoch"], lane["halted_at"]) == (was["epoch"], was["halted_at"])
        self._arena.check(same, f"news of another epoch: {told}")
        if not any(item.throttled for item in settled):
            self._arena.check(lane["paused_until"] == was["paused_until"], f"a pause without a 429: {told}")
