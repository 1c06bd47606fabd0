"""The workers: one in each slot, which meets the faults of its slot and is started anew when it has ended."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from scripts.chaos_campaign.faults import Fault, Kind
from scripts.chaos_campaign.ground import Ground, Process, wait_for
from scripts.chaos_campaign.history import Blow

DRAIN_SECONDS = 20
_DRAINED, _RELEASED, _TERMINATED = 0, 75, 128 + signal.SIGTERM


@dataclass
class Slot:
    """A place for one worker. `blows` are the faults that were carried out, `surprises` what was not expected."""

    ground: Ground
    lease_seconds: float
    concurrency: int
    blows: list[Blow] = field(default_factory=list)
    surprises: list[str] = field(default_factory=list)
    _worker: Process | None = None

    def meet(self, faults: Iterable[Fault], on_blow: Callable[[], None]) -> None:
        """Carry out the faults, one after the other, and leave a worker that is at work."""
        for fault in faults:
            worker = self.at_work()
            time.sleep(fault.work)
            if worker.command.poll() is not None:
                self._surprise(worker, "ended by itself")
                continue
            _CARRY_OUT[fault.kind](self, worker, fault)
            on_blow()
        self.at_work()

    def meet_calmly(self, fault: Fault) -> None:
        """Be killed while all others are at work, and start anew when they have taken over."""
        worker = self.at_work()
        time.sleep(fault.work)
        self.kill(worker, fault)
        self.blows[-1] = replace(self.blows[-1], calm=True)
        held = f"state = 'inflight' AND claimed_by = '{worker.told.runner()}'"
        wait_for(lambda: self.ground.count(held) == 0, "the jobs of a killed worker to be taken over")
        self.at_work()

    def at_work(self) -> Process:
        """Return a worker that is registered, started if there is none."""
        worker = self._worker
        if worker is None or worker.command.poll() is not None:
            worker = self._worker = self.ground.start(
                "worker", "--base-url", self.ground.base_url, "--concurrency", str(self.concurrency),
                "--lease", f"{self.lease_seconds}s", "--drain-timeout", f"{DRAIN_SECONDS}s",
            )  # fmt: skip
        wait_for(lambda: worker.told.runner() or worker.command.poll() is not None, "a worker to be at work")
        return worker

    def dismiss(self) -> None:
        """Have the last worker end in good order."""
        if self._worker is not None and self._worker.command.poll() is None:
            self._worker.signal(signal.SIGTERM)
            self._expect(self._worker, "when it was dismissed", _DRAINED)

    def kill(self, worker: Process, fault: Fault) -> None:
        """Kill it; it is not heard of again."""
        at = self._send(worker, signal.SIGKILL, fault)
        self._expect(worker, f"by a {fault}", -signal.SIGKILL)
        self._blow(worker, fault, at())

    def stop(self, worker: Process, fault: Fault) -> None:
        """Stop it past its lease, and let it go on."""
        at = self._send(worker, signal.SIGSTOP, fault)()
        time.sleep(fault.hold * self.lease_seconds)
        self._blow(worker, fault, at, worker.signal(signal.SIGCONT))

    def terminate(self, worker: Process, fault: Fault) -> None:
        """Have it drain."""
        at = self._send(worker, signal.SIGTERM, fault)
        self._expect(worker, f"by a {fault}", _DRAINED, _RELEASED)
        self._blow(worker, fault, at())

    def terminate_twice(self, worker: Process, fault: Fault) -> None:
        """Have it drain, and then release at once."""
        at = worker.signal(signal.SIGTERM)
        time.sleep(fault.hold)
        if worker.command.poll() is None:
            worker.signal(signal.SIGTERM)
        self._expect(worker, f"by a {fault}", _DRAINED, _RELEASED, _TERMINATED)
        self._blow(worker, fault, at)

    def _send(self, worker: Process, number: signal.Signals, fault: Fault) -> Callable[[], int]:
        """Send a signal now, or at the point; return what waits for it and tells when it struck."""
        if fault.point is None:
            at = worker.signal(number)
            return lambda: at
        worker.order(number, fault.point)
        wait_for(worker.told.struck_at, f"a worker to pass the point {fault.point!r}: {worker.last_words()}")
        return lambda: worker.told.struck_at() or 0

    def _expect(self, worker: Process, how: str, *codes: int) -> None:
        if (code := worker.ended(how)) not in codes:
            self._surprise(worker, f"ended {how} with {code}")

    def _surprise(self, worker: Process, what: str) -> None:
        self.surprises.append(f"a worker {what}: {worker.last_words()}")

    def _blow(self, worker: Process, fault: Fault, at: int, until: float = math.inf) -> None:
        self.blows.append(Blow(fault.kind.value, fault.point, worker.told.runner(), at, until))


_CARRY_OUT: dict[Kind, Callable[[Slot, Process, Fault], None]] = {
    Kind.KILL: Slot.kill,
    Kind.STOP: Slot.stop,
    Kind.TERMINATE: Slot.terminate,
    Kind.TERMINATE_TWICE: Slot.terminate_twice,
}
