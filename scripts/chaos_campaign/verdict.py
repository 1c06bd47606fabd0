"""What came of a campaign: its figures, and how they are printed."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from scripts.chaos_campaign.faults import Kind
from scripts.chaos_campaign.history import History
from scripts.chaos_campaign.judge import DOUBLED, LOST, Breach, reason_of
from tests.killpoints import WORKER_POINTS

_TOLD_BREACHES = 10


@dataclass(frozen=True)
class Verdict:
    """The figures of a campaign. `others_killed` counts enqueues and collects, `drained` is in seconds."""

    history: History
    breaches: Sequence[Breach]
    others_killed: Counter[str]
    seed: int
    seconds: float
    drained: float

    @property
    def kills(self) -> Counter[str]:
        """Return how many workers were killed, by where."""
        return self.faults(Kind.KILL)

    def faults(self, kind: Kind) -> Counter[str]:
        """Return how often something was done to workers, by where."""
        return Counter(blow.point or "at random" for blow in self.history.blows if blow.kind == kind.value)

    @cached_property
    def repeats(self) -> Counter[str]:
        """Return the calls that were made and not used, by what happened to their attempts."""
        spent: Counter[str] = Counter()
        for attempt in self.history.attempts:
            if attempt.outcome != "succeeded" and (made := self.history.calls_of(attempt).made):
                spent[reason_of(self.history, attempt) or "nothing happened"] += made
        return spent

    def recovery(self, *, calm: bool) -> list[float]:
        """Return, of each attempt that was lost by a kill, the seconds until the queue had its job back."""
        kills = (blow for blow in self.history.blows if blow.kind == Kind.KILL.value and blow.calm == calm)
        killed = {blow.runner: blow.at for blow in kills}
        lost = (attempt for attempt in self.history.attempts if attempt.outcome == "lost" and attempt.runner in killed)
        seconds = ((attempt.ended_at - killed[attempt.runner]) / 1000 for attempt in lost)
        return sorted(each for each in seconds if each > 0)

    def broken(self, kind: str) -> int:
        """Return how many jobs were lost or doubled."""
        return sum(breach.kind == kind for breach in self.breaches)

    def figures(self) -> dict[str, object]:
        """Return everything as JSON has it."""
        return {
            "seed": self.seed,
            "seconds": round(self.seconds, 1),
            "kills": self.kills.total(),
            "kills_by_point": {name: self.kills[name] for name in ("at random", *WORKER_POINTS)},
            **{kind.name.lower(): self.faults(kind).total() for kind in Kind if kind is not Kind.KILL},
            "others_killed": dict(self.others_killed),
            "jobs": len(self.history.jobs),
            "attempts": len(self.history.attempts),
            "calls": sum(calls.made for calls in self.history.calls.values()),
            "late": sum(attempt.late for attempt in self.history.attempts),
            "gave_up": sum(job.state == "failed" for job in self.history.jobs),
            "lost": self.broken(LOST),
            "doubled": self.broken(DOUBLED),
            "breaches": len(self.breaches),
            "paid_repeats": self.repeats.total(),
            "paid_repeats_by_cause": dict(self.repeats),
            "lease": self.history.lease_ms / 1000,
            "recovery": _spread(self.recovery(calm=True)),
            "recovery_amid_faults": _spread(self.recovery(calm=False)),
            "drained": round(self.drained, 1),
        }

    def told_breaches(self) -> Iterator[str]:
        """Return what was broken, the first ones with the history of their jobs."""
        for breach in self.breaches[:_TOLD_BREACHES]:
            yield breach.text if breach.job is None else f"{breach.text}\n{self.history.told(breach.job)}"
        if len(self.breaches) > _TOLD_BREACHES:
            yield f"and {len(self.breaches) - _TOLD_BREACHES} more"


def _spread(seconds: Sequence[float]) -> dict[str, float]:
    return {"p50": round(statistics.median(seconds), 2), "max": round(seconds[-1], 2)} if seconds else {}
