"""The machine: what may happen to a queue, in any order."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from store_driver import LEASE_MS

from batchq.jobs import Reuse
from machine.arena import Arena
from machine.exchanges import ExchangeJudge
from machine.judge import Judge
from machine.operating import Operator
from machine.producer import Producer
from machine.reading import Coordinator
from machine.runner import Runner
from machine.stage import BATCHES, FIRST_ROWS, JUMPS_MS, LANES, OUTCOMES, RUNNERS, STEPS_MS, answer

DRAIN_ROUNDS = 200
OPERATIONS = (
    "pause", "resume", "resume", "reopen", "cancel", "begin_to_cancel", "finish_cancels", "retry", "start_over",
    "start_over", "purge", "prefer", "prefer", "mend",
)  # fmt: skip
READINGS = ("read", "read_on", "read_on", "follow", "follow", "ask", "ask")

runners = st.sampled_from([*RUNNERS, "a", "a", "a", "b"])
batches = st.sampled_from([*BATCHES, "first"])
outcomes = st.sampled_from([*OUTCOMES, "done", "done", "retry", "throttled", "released"])
leads = st.lists(st.none() | st.integers(0, 7), min_size=1, max_size=6)


class QueueMachine(RuleBasedStateMachine):
    """A producer, runners, an operator and a coordinator for each batch, around one store."""

    def __init__(self, arena: Arena) -> None:
        super().__init__()
        arena.reset()
        self.arena = arena
        self.exchanges = ExchangeJudge(arena)
        self.runners = {name: Runner(arena, name, self.exchanges.exchange) for name in (*RUNNERS, "drainer")}
        self.producers = {name: Producer(arena, name) for name in BATCHES}
        self.coordinators = {name: Coordinator(arena, producer) for name, producer in self.producers.items()}
        self.judge = Judge(arena, self.producers)
        self.operator = Operator(arena, self.producers, self.judge, self.exchanges)

    # Runners

    @rule(
        name=runners,
        slots=st.integers(1, 4),
        expired_too=st.sampled_from([True, True, False]),
        only=st.none() | batches,
        room=st.sampled_from([None, None, None, 0, 1]),
    )
    def claim(self, name, slots, expired_too=True, only=None, room=None):
        runner = self.runners[name]
        runner.repeat_unanswered()
        narrowed = None if only is None else [self.producers[only].batch.id]
        request = runner.hand.request(slots=slots, batch_ids=narrowed, expired_too=expired_too)
        if room is not None:
            request = replace(request, wants=replace(request.wants, rooms=((LANES[0], room),)))
        runner.send(request)

    @rule(name=runners, ends=st.lists(outcomes, min_size=1, max_size=4))
    def settle(self, name, ends):
        runner = self.runners[name]
        runner.repeat_unanswered()
        runner.send(runner.hand.request(runner.ends(ends)))

    @rule(name=runners, kept=st.integers(0, 3), slots=st.integers(0, 2))
    def renew(self, name, kept, slots):
        runner = self.runners[name]
        runner.repeat_unanswered()
        runner.send(runner.hand.request(slots=slots, renew=list(runner.hand.held)[kept:]))

    @rule(name=runners, ends=st.lists(outcomes, max_size=3), slots=st.integers(0, 4), answered=st.booleans(),
          beat=st.booleans())  # fmt: skip
    def exchange(self, name, ends, slots, answered=True, beat=False):
        runner = self.runners[name]
        runner.repeat_unanswered()
        if beat:
            # A clock that was set back is noticed here, or by a beat; here it is known what may change.
            self._arrive(runner)
        renewed = list(runner.hand.held)[len(ends) :]
        request = runner.hand.request(runner.ends(ends), slots, renew=renewed, beat=beat)
        (runner.send if answered else runner.send_unheard)(request)

    @rule(name=runners, kind=st.none() | outcomes, index=st.integers(0, 3), slots=st.integers(0, 2),
          away=st.sampled_from([0, LEASE_MS]))  # fmt: skip
    def vanish_or_come_back(self, name, kind=None, index=0, slots=0, away=LEASE_MS):
        """Forget what is in hand, or settle what was forgotten."""
        if kind is None:
            self.runners[name].vanish()
            self.arena.pass_time(away)
        else:
            self.runners[name].come_back(kind, index, slots)

    @rule(name=runners, how=st.sampled_from(["arrive", "leave", "renew_lost"]))
    def arrive_or_leave(self, name, how):
        if how == "arrive":
            self._arrive(self.runners[name])
        else:
            getattr(self.runners[name], how)()

    @rule(milliseconds=st.sampled_from([*STEPS_MS, *STEPS_MS, *JUMPS_MS]))
    def advance(self, milliseconds):
        self.arena.pass_time(milliseconds)

    # All others. One rule for many acts, since each rule is as likely as any other and runners should act most.

    @rule(name=batches, leads=leads, reuse=st.booleans(), killed_after=st.none() | st.integers(0, 3))
    def enqueue(self, name, leads, reuse=False, killed_after=None):
        if self._is_open(name):
            self.producers[name].enqueue(leads, Reuse(refusals=True) if reuse else None, killed_after=killed_after)

    @rule(name=batches, killed_after=st.none() | st.integers(0, 3))
    def run_again(self, name, killed_after=None):
        if self._is_open(name):
            self.producers[name].run_again(killed_after)

    @rule(name=batches, action=st.sampled_from(OPERATIONS), number=st.integers(0, 4))
    def operate(self, name, action, number=0):
        getattr(self.operator, action)(name, number)

    @rule(name=batches, what=st.sampled_from(["limit", "budget"]), number=st.integers(0, 4))
    def set_limit(self, name, what, number):
        getattr(self.operator, what)(name, number)

    @rule(name=batches, action=st.sampled_from(READINGS))
    def coordinate(self, name, action):
        getattr(self.coordinators[name], action)()

    @invariant()
    def what_is_true_of_a_queue(self):
        self.arena.steps += 1
        self.judge.check_all()

    def teardown(self):
        """Let the faults end: the queue drains, what it holds comes out in order, and is taken over."""
        for name in BATCHES:
            self.operator.resume(name)
            self.operator.budget(name, 0)
        self.operator.finish_cancels()
        self._drain(self.runners["drainer"])
        for name in RUNNERS:
            runner = self.runners[name]
            runner.repeat_unanswered()
            runner.send(runner.hand.request([answer(claim) for claim in runner.claims]))
        self.judge.check_all()
        for name in BATCHES:
            if self._is_open(name):
                self.producers[name].complete()
        self._drain(self.runners["drainer"])
        for name in BATCHES:
            self.coordinators[name].check_drained()
        self._take_over()

    def _take_over(self):
        """Take over answers: many histories end before anything is there to reuse; now there is."""
        name = next((name for name in BATCHES if self._is_open(name)), None)
        if name is not None:
            self.producers[name].enqueue(FIRST_ROWS, Reuse(refusals=True))
            self.coordinators[name].read()

    def _drain(self, runner: Runner) -> None:
        """Do what is due, and sleep as long as the store says, until nothing is left."""
        self._arrive(runner)
        for _ in range(DRAIN_ROUNDS):
            reply = runner.send(runner.hand.request([answer(claim) for claim in runner.claims], 50))
            live = self.arena.rows("SELECT id FROM jobs WHERE state IN ('pending', 'inflight') AND leader_id IS NULL")
            if not live:
                return
            if not reply.claims:
                self.arena.pass_time(LEASE_MS if reply.wake_in_ms is None else max(1, reply.wake_in_ms))
        self.arena.check(False, "the queue does not drain", *[row["id"] for row in live])

    def _arrive(self, runner: Runner) -> None:
        before = self.arena.look()
        runner.arrive()
        self.exchanges.check_arrival(before, self.arena.look())

    def _is_open(self, name: str) -> bool:
        return self.arena.look().batches[self.producers[name].batch.id]["state"] in {"open", "paused"}


def explore(arena: Arena, *, examples: int, steps: int, **options) -> None:
    """Try histories, the same ones each time unless `derandomize` is off; one that fails shrinks, and is printed."""
    run_state_machine_as_test(
        lambda: QueueMachine(arena),
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
            **{"derandomize": True, **options},
        ),
    )
