"""Known ways to find each mistake: the shortest that chance came to, or that thought did."""

from __future__ import annotations

from store_driver import LEASE_MS

from machine.arena import Arena
from machine.queue_machine import QueueMachine
from machine.stage import BATCHES, HOUR_MS


def end_what_has_ended(machine):
    machine.claim("a", 1)
    machine.vanish_or_come_back("a")
    machine.claim("b", 1)
    machine.settle("b", ["done"])
    machine.vanish_or_come_back("a", "failed")


def end_what_another_holds(machine):
    machine.claim("a", 1)
    machine.vanish_or_come_back("a")
    machine.claim("b", 1)
    machine.vanish_or_come_back("a", "done")


def end_what_was_claimed_again_since(machine):
    machine.claim("a", 1)
    machine.vanish_or_come_back("a")
    machine.claim("a", 1)
    machine.vanish_or_come_back("a", "done")


def repeat_a_release_that_another_has_claimed_since(machine):
    machine.claim("a", 1)
    machine.exchange("a", ["released"], 0, answered=False)
    machine.claim("b", 1)
    machine.exchange("a", [], 0, answered=True)


def claim_what_is_paused(machine):
    machine.operate("first", "pause")
    machine.claim("a", 1)


def spend_a_budget_and_claim(machine):
    machine.set_limit("first", "budget", 2)
    machine.claim("a", 1)
    machine.settle("a", ["retry"])
    machine.claim("a", 1)


def claim_more_than_may_be_in_flight(machine):
    machine.set_limit("first", "limit", 1)
    machine.claim("a", 1)
    machine.claim("b", 1)


def claim_twice_at_a_rate(machine):
    machine.set_limit("first", "limit", 2)
    machine.claim("a", 1)
    machine.claim("b", 1)


def claim_behind_a_429(machine):
    machine.claim("a", 1)
    machine.settle("a", ["throttled"])
    machine.claim("b", 1)


def halt_twice(machine):
    machine.claim("a", 1)
    machine.claim("b", 1)
    machine.settle("a", ["halted"])
    machine.settle("b", ["halted"])


def probe_a_halted_lane(machine):
    machine.claim("a", 1)
    machine.settle("a", ["halted"])
    machine.advance(LEASE_MS // 4)
    machine.claim("a", 1)


def lose_a_job(machine):
    machine.claim("a", 1)
    machine.vanish_or_come_back("a")
    machine.claim("b", 1)


def claim_beside_one_that_expired(machine):
    machine.claim("a", 1)
    machine.advance(LEASE_MS - 1)
    machine.claim("b", 1)
    machine.advance(1)
    machine.claim("c", 3)


def renew_what_another_holds(machine):
    machine.claim("a", 1)
    machine.vanish_or_come_back("a")
    machine.claim("b", 1)
    machine.arrive_or_leave("a", "renew_lost")


def cancel_a_leader(machine):
    machine.operate("first", "cancel")


def retry_what_is_done(machine):
    machine.claim("a", 1)
    machine.settle("a", ["done"])
    machine.operate("first", "retry")


def claim_from_two_batches(machine):
    machine.operate("second", "resume")
    machine.operate("first", "prefer", 1)
    machine.claim("a", 1)


def end_what_a_killed_producer_left(machine):
    machine.enqueue("first", [None] * 6, killed_after=1)
    machine.claim("a", 4)
    machine.settle("a", ["done"] * 4)
    machine.coordinate("first", "ask")


def read_page_by_page(machine):
    machine.coordinate("first", "read_on")


def follow_what_ends(machine):
    machine.claim("a", 1)
    machine.settle("a", ["done"])
    machine.coordinate("first", "follow")
    machine.coordinate("first", "follow")


def renew_late_and_claim_in_a_full_lane(machine):
    machine.set_limit("first", "limit", 1)
    machine.claim("a", 1)
    machine.advance(LEASE_MS)
    machine.renew("a", 0, 2)


def spend_a_budget_that_was_set_meanwhile(machine):
    machine.claim("a", 1)
    machine.set_limit("first", "budget", 2)
    machine.exchange("a", ["retry"], 1, answered=True)


def spend_a_budget_by_a_late_answer(machine):
    machine.set_limit("first", "budget", 2)
    machine.claim("a", 1)
    machine.vanish_or_come_back("a")
    machine.claim("b", 1)
    machine.vanish_or_come_back("a", "retry", 0, 1)


def claim_at_a_rate_while_the_clock_is_set_back(machine):
    machine.set_limit("first", "limit", 3)
    machine.advance(LEASE_MS)
    machine.arrive_or_leave("a", "arrive")
    machine.advance(-HOUR_MS)
    machine.enqueue("first", [None, None])
    machine.claim("a", 2)
    machine.arrive_or_leave("a", "arrive")
    machine.settle("a", ["done", "done"])
    machine.claim("a", 1)


def claim_at_a_rate_behind_a_probe(machine):
    machine.claim("a", 1)
    machine.settle("a", ["halted"])
    machine.set_limit("first", "limit", 2)
    machine.advance(LEASE_MS // 4)
    machine.claim("a", 1)
    machine.operate("first", "resume")
    machine.claim("b", 1)


# The shortest forms of those that a store did not stand once.
FAILED_ONCE = {
    history.__name__: history
    for history in (
        renew_late_and_claim_in_a_full_lane,
        spend_a_budget_that_was_set_meanwhile,
        spend_a_budget_by_a_late_answer,
        claim_at_a_rate_while_the_clock_is_set_back,
        claim_at_a_rate_behind_a_probe,
    )
}

# For each mistake a history that finds it, and what a judge says then.
HISTORIES = {
    "guard by id": (end_what_has_ended, "a changed a job that it has nothing to do with"),
    "guard by state": (end_what_another_holds, "a changed a job that it has nothing to do with"),
    "guard by owner": (end_what_was_claimed_again_since, "a changed a job that it has nothing to do with"),
    "guard by owner and lease": (end_what_was_claimed_again_since, "a changed a job that it has nothing to do with"),
    "guard by attempt number": (
        repeat_a_release_that_another_has_claimed_since,
        "a changed a job that it has nothing to do with",
    ),
    "pause_is_not_looked_at": (claim_what_is_paused, "its batch is not open"),
    "budget_is_not_looked_at": (spend_a_budget_and_claim, "has spent 7 of 5"),
    "calls_in_flight_are_not_counted": (claim_more_than_may_be_in_flight, "2 calls are in flight"),
    "buckets_are_not_drawn": (claim_twice_at_a_rate, "2 calls started in .* within 0 ms"),
    "pauses_of_lanes_are_not_looked_at": (claim_behind_a_429, "a call started in a lane that pauses"),
    "old_news_halts": (halt_twice, "news of another epoch"),
    "every_exchange_probes": (probe_a_halted_lane, "open to the next probe"),
    "crashes_are_refunded": (lose_a_job, "charged, or refunded, against the rule"),
    "leases_are_not_looked_at": (claim_beside_one_that_expired, "claimed under another's lease"),
    "stale_renewals_count": (renew_what_another_holds, "was told the wrong thing of its lease"),
    "followers_weigh_nothing": (cancel_a_leader, "batch 1 tells .*, and holds"),
    "what_is_done_runs_again": (retry_what_is_done, "1 jobs of first went back, not 0"),
    "worse_priority_goes_first": (claim_from_two_batches, "left behind for what is of less priority"),
    "half_a_batch_is_taken_for_a_whole": (end_what_a_killed_producer_left, "first is finished or not"),
    "pages_leave_out_a_row": (read_page_by_page, "a reader was told"),
    "what_ended_is_told_again": (follow_what_ends, "for the second time"),
}


def replay(arena: Arena, history) -> None:
    """Let a history happen to the first batch, while the others are paused."""
    machine = QueueMachine(arena)
    for name in BATCHES[1:]:
        machine.operate(name, "pause")
    machine.judge.check_all()
    history(machine)
    machine.judge.check_all()
