"""A runner: what it has in hand, what it has lost, and the exchange whose answer it did not hear."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from store_driver import Hand

from batchq.jobs import Claim, Exchanged, Held
from batchq.settlement import Settlement
from batchq.store import ExchangeRequest
from machine.arena import Arena
from machine.stage import OUTCOMES


class Runner:
    """Exchanges through `judged`, which asks the store and holds it to what it may do."""

    def __init__(self, arena: Arena, name: str, judged: Callable[[ExchangeRequest], Exchanged]) -> None:
        self.name = name
        self.hand = Hand(arena.store, name)
        self._arena = arena
        self._judged = judged
        self._zombies: list[Claim] = []
        self._unanswered: ExchangeRequest | None = None

    @property
    def claims(self) -> list[Claim]:
        return list(self.hand.held.values())

    def ends(self, kinds: Iterable[str]) -> list[Settlement]:
        return [OUTCOMES[kind](claim) for kind, claim in zip(kinds, self.claims, strict=False)]

    def send(self, request: ExchangeRequest) -> Exchanged:
        reply = self._judged(request)
        held = self.hand.held
        for settlement in request.settlements:
            claim = settlement.ended.claim
            if held.get(claim.job_id) == claim:
                del held[claim.job_id]
        self._zombies += [held.pop(job_id) for job_id in sorted(reply.lost) if job_id in held]
        held.update({claim.job_id: claim for claim in reply.claims})
        return reply

    def send_unheard(self, request: ExchangeRequest) -> None:
        """Exchange, and do not hear that it was committed."""
        self._judged(request)
        self._unanswered = request

    def repeat_unanswered(self) -> None:
        """Repeat the exchange whose commit was not confirmed, as a runner does before any other."""
        if self._unanswered is not None:
            request, self._unanswered = self._unanswered, None
            # Without a beat, which is where a clock that was set back meanwhile would be noticed.
            self.send(replace(request, adopt=True, beat=False))

    def vanish(self) -> None:
        """Die, or be cut off: what is in hand may come back as late answers."""
        self._unanswered = None
        self._zombies += self.hand.forget()

    def come_back(self, kind: str, index: int, slots: int) -> None:
        """Settle what was forgotten; nothing where nothing was."""
        if not self._zombies:
            return
        self.repeat_unanswered()
        claim = self._zombies.pop(index % len(self._zombies))
        if self.hand.held.get(claim.job_id) != claim:
            request = self.hand.request([OUTCOMES[kind](claim)], slots)
            self.send(replace(request, held=[*request.held, Held(claim.job_id, claim.token, renew=False)]))

    def renew_lost(self) -> None:
        """Ask for the leases of what was forgotten."""
        last = {claim.job_id: claim for claim in self._zombies}
        held = [Held(claim.job_id, claim.token, renew=True) for claim in last.values()]
        if held:
            self._judged(replace(self.hand.request(), held=held))

    def arrive(self) -> None:
        self._arena.run(self._arena.store.register(self.hand.runner))

    def leave(self) -> None:
        """Give back what is in hand, and say goodbye."""
        self.repeat_unanswered()
        self.send(self.hand.request(self.ends(["released"] * len(self.claims))))
        self._arena.run(self._arena.store.retire(self.hand.runner))
