"""Lanes in a real store: pauses, halts, limits and budgets hold for all runners together."""

from __future__ import annotations

import pytest
from store_driver import (
    LEASE_MS,
    SERVING,
    Clock,
    Hand,
    check_tallies,
    done,
    failed,
    fill,
    halt,
    halted,
    identity,
    job_row,
    log_of,
    retry,
    rows,
    states,
    throttled,
)

from batchq.jobs import JobState, Serving, Usage
from batchq.pacing import Limits
from batchq.store import Store

pytestmark = pytest.mark.anyio


LANE = ("echo", "http://localhost/v1", "")


# Throttles and halts


async def two_lanes(store: Store, count: int = 3) -> None:
    await fill(store, count, "a", model="model-a")
    await fill(store, count, "b", model="model-b")


async def test_a_throttled_lane_waits_and_another_does_not(store, clock):
    await two_lanes(store)
    hand = Hand(store)
    claims = await hand.claim(2)
    throttle = next(claim for claim in claims if claim.batch.name == "a")
    await hand.settle(throttled(throttle, after=5))
    assert [claim.batch.name for claim in await hand.claim(10)] == ["b", "b"]
    clock.advance(4_999)
    reply = await hand.send(hand.request(slots=10))
    assert (reply.claims, reply.wake_in_ms) == ((), 1)
    clock.advance(1)
    assert [claim.batch.name for claim in await hand.claim(10)] == ["a"]  # from here on at a rate that it learns


async def test_the_longest_pause_of_a_lane_holds(store, clock):
    await fill(store, 3)
    hand = Hand(store)
    long, short = await hand.claim(2)
    await hand.settle(throttled(long, after=60), throttled(short, after=1))
    clock.advance(59_999)
    assert await hand.claim() == ()
    clock.advance(1)
    assert len(await hand.claim()) == 1


async def test_a_halted_lane_claims_nothing_until_its_probe_and_then_one_job(store, clock):
    await fill(store, 5)
    hand = Hand(store)
    await halt(store, hand)
    (lane,) = await store.lanes()
    assert (lane.halted_at, lane.reason) == (clock.now, "no credit")
    clock.now = lane.probe_at - 1
    assert await hand.claim(5) == ()
    clock.advance(1)
    claims = await hand.claim(5)
    assert [claim.probe for claim in claims] == [True]
    assert await hand.claim(5) == await Hand(store, "b").claim(5) == ()


async def test_batches_that_share_a_halted_lane_share_its_probe(store, clock):
    for name in ("a", "b", "c", "d"):
        await fill(store, 3, name)
    hand = Hand(store)
    await halt(store, hand)
    clock.now = (await store.lanes())[0].probe_at
    assert [claim.probe for claim in await hand.claim(16)] == [True]
    assert await hand.claim(16) == ()


async def test_a_probe_that_is_told_to_wait_is_not_followed_by_another_before(store, clock):
    await fill(store, 5)
    hand = Hand(store)
    await halt(store, hand)
    clock.now = (await store.lanes())[0].probe_at
    (probe,) = await hand.claim(5)
    await hand.settle(throttled(probe, after=3_600))
    clock.advance(3_599_999)
    reply = await hand.send(hand.request(slots=5))
    assert (reply.claims, reply.wake_in_ms) == ((), 1)
    clock.advance(1)
    assert [claim.probe for claim in await hand.claim(5)] == [True]


async def test_a_probe_that_succeeds_reopens_its_lane(store, clock):
    await fill(store, 5)
    hand = Hand(store)
    await halt(store, hand)
    clock.now = (await store.lanes())[0].probe_at
    (probe,) = await hand.claim(5)
    await hand.settle(done(probe))
    (lane,) = await store.lanes()
    assert (lane.halted_at, lane.reason) == (None, None)
    assert [claim.probe for claim in await hand.claim(5)] == [False] * 4


async def test_a_probe_that_is_halted_keeps_the_lane_halted_until_the_next(store, clock):
    await fill(store, 5)
    hand = Hand(store)
    await halt(store, hand)
    clock.now = (await store.lanes())[0].probe_at
    (probe,) = await hand.claim(5)
    await hand.settle(halted(probe, "still no credit"))
    (lane,) = await store.lanes()
    assert (lane.probe_at > clock.now, lane.reason) == (True, "still no credit")
    assert await hand.claim(5) == ()
    clock.now = lane.probe_at
    assert len(await hand.claim(5)) == 1


async def test_resume_reopens_a_halted_lane_at_once(store, clock):
    batch = await fill(store, 5)
    hand = Hand(store)
    await halt(store, hand)
    assert await store.resume(batch) == 1
    clock.advance(1)
    assert [claim.probe for claim in await hand.claim(5)] == [False] * 5


async def test_a_halt_of_before_a_resume_does_not_halt_again(store, clock):
    batch = await fill(store, 5)
    hand = Hand(store)
    old, older = await hand.claim(2)
    await hand.settle(halted(old))
    await store.resume(batch)
    await hand.settle(halted(older))
    assert (await store.lanes())[0].halted_at is None
    clock.advance(1)
    assert len(await hand.claim(5)) == 5


async def test_a_probe_of_before_a_newer_halt_does_not_reopen_the_lane(store, clock):
    batch = await fill(store, 5)
    hand = Hand(store)
    await halt(store, hand)
    clock.now = (await store.lanes())[0].probe_at
    (probe,) = await hand.claim(1)
    await store.resume(batch)
    await halt(store, hand)
    await hand.settle(done(probe))
    assert (await store.lanes())[0].halted_at is not None


async def test_a_late_outcome_does_not_act_on_its_lane(store, clock):
    await fill(store, 3)
    frozen = Hand(store, "frozen")
    (stale,) = await frozen.claim()
    clock.advance(LEASE_MS)
    await Hand(store, "b").claim()
    assert (await frozen.settle(halted(stale))).late == 1
    assert await store.lanes() == ()


async def test_a_runner_that_starts_probes_halted_lanes(store):
    await fill(store, 5)
    hand = Hand(store)
    await halt(store, hand)
    assert await hand.claim(5) == ()
    await store.register(identity("fresh"))
    assert [claim.probe for claim in await Hand(store, "fresh").claim(5)] == [True]


async def test_the_probe_comes_soon_at_first_and_then_every_minute(store, clock):
    await fill(store, 5)
    hand = Hand(store)
    await halt(store, hand)
    waits = []
    for _ in range(9):
        (lane,) = await store.lanes()
        waits.append(lane.probe_at - clock.now)
        clock.now = lane.probe_at
        (probe,) = await hand.claim(5)
        await hand.settle(halted(probe))
    assert waits == [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000, 60_000]


async def halted_by_one_job_while_others_succeed(store, clock, error_class):
    """Let one job halt its lane three times, with answers to others in between; return its row."""
    batch = await fill(store, 6)
    hand = Hand(store)
    (culprit,) = await hand.claim(1)
    await hand.settle(halted(culprit, error_class=error_class))
    for _ in range(2):
        clock.now = (await store.lanes())[0].probe_at
        (probe,) = await hand.claim(5)
        assert probe.job_id != culprit.job_id
        await hand.settle(done(probe))
        claims = await hand.claim(5)
        others = [retry(claim) for claim in claims if claim.job_id != culprit.job_id]
        again = [halted(claim, error_class=error_class) for claim in claims if claim.job_id == culprit.job_id]
        await hand.settle(*others, *again)
    await check_tallies(store, batch)
    return job_row(store, culprit.job_id)


async def test_a_job_that_halts_its_lane_again_and_again_while_others_succeed_fails(store, clock):
    row = await halted_by_one_job_while_others_succeed(store, clock, "forbidden")
    assert (row["state"], row["error_class"]) == ("failed", "forbidden")
    assert "halted its lane 3 times while others were answered" in row["error"]
    assert (await store.lanes())[0].halted_at is None


@pytest.mark.parametrize("error_class", ["bad_key", "no_credit"])
async def test_a_key_or_credit_that_comes_and_goes_fails_no_job(store, clock, error_class):
    row = await halted_by_one_job_while_others_succeed(store, clock, error_class)
    assert (row["state"], row["attempts"]) == ("pending", 0)


async def test_jobs_that_halt_a_lane_in_which_nothing_succeeds_stay(store, clock):
    batch = await fill(store, 2)
    hand = Hand(store)
    await halt(store, hand)
    for _ in range(10):
        clock.now = (await store.lanes())[0].probe_at
        (probe,) = await hand.claim(5)
        await hand.settle(halted(probe))
        await store.resume(batch)
        await hand.settle(*map(halted, await hand.claim(5)))
    assert states(store, batch) == {"pending": 2}


# Limits


def a_moment(store: Store) -> int:
    """How long hands that are never idle wait between two exchanges: an exchange with a server takes its time."""
    return 20 if store.file is not None else 200


async def claimed_in(hand: Hand, clock: Clock, seconds: float, slots: int = 100) -> int:
    """Claim and answer as fast as the store lets a hand do, for so long; return how many."""
    count, end = 0, clock.now + round(seconds * 1000)
    while clock.now < end:
        claims = await hand.claim(slots)
        count += len(claims)
        await hand.settle(*map(done, claims))
        clock.advance(a_moment(hand.store))
    return count


async def test_requests_per_minute_hold_for_all_runners_together(store, clock):
    await fill(store, 400)
    await store.set_limits(*LANE, Limits(rpm=600, burst=10))
    hands = [Hand(store, name) for name in "abcd"]
    count, end = 0, clock.now + 30_000
    while clock.now < end:
        for hand in hands:
            claims = await hand.claim(16)
            count += len(claims)
            await hand.settle(*map(done, claims))
        clock.advance(a_moment(store))
    assert 300 <= count <= 310


async def test_a_runner_is_told_when_the_next_request_may_start(store, clock):
    await fill(store, 10)
    await store.set_limits(*LANE, Limits(rpm=60, burst=1))
    hand = Hand(store)
    reply = await hand.send(hand.request(slots=5))
    assert (len(reply.claims), reply.wake_in_ms) == (1, 1_000)
    clock.advance(999)
    assert await hand.claim(5) == ()
    clock.advance(1)
    assert len(await hand.claim(5)) == 1


async def test_more_full_lanes_than_one_look_shows_hide_no_other(store, clock):
    for number in range(12):
        await fill(store, 1, f"full-{number}", priority=1)
    await fill(store, 1, "free", model="free")
    await store.set_limits(*LANE, Limits(max_inflight=1))
    hand = Hand(store)
    assert len(await hand.claim(1)) == 1
    assert [claim.batch.name for claim in await hand.claim(20)] == ["free"]


async def test_calls_in_flight_are_limited_across_runners_and_expired_leases_do_not_count(store, clock):
    await fill(store, 20)
    await store.set_limits(*LANE, Limits(max_inflight=3))
    first, second = Hand(store, "a"), Hand(store, "b")
    assert len(await first.claim(2)) == 2
    claims = await second.claim(5)
    assert len(claims) == 1
    assert await first.claim(5) == ()
    await second.settle(done(claims[0]))
    assert len(await second.claim(5)) == 1
    first.forget()
    second.forget()
    clock.advance(LEASE_MS)
    assert len(await Hand(store, "c").claim(9)) == 3


async def test_calls_at_one_server_leave_the_room_at_another(store, clock):
    await fill(store, 20)
    await store.set_limits("echo", "http://b/v1", "", Limits(max_inflight=2))
    at_a = (Serving("echo", "default", "http://a/v1", opened=True),)
    at_b = (Serving("echo", "default", "http://b/v1", opened=True),)
    assert len(await Hand(store, "a").claim(9, serving=at_a)) == 9
    assert len(await Hand(store, "b").claim(9, serving=at_b)) == 2
    (lane,) = await store.lanes()
    assert lane.in_flight == 2


async def test_a_batch_waits_for_lanes_of_the_servers_that_its_runners_call(store, clock):
    from dataclasses import replace

    await fill(store, 5)
    hand = Hand(store)
    await halt(store, hand)
    told = lambda url: replace(identity("told"), endpoints=f'{{"default": "{url}"}}')  # noqa: E731
    await store.register(told("http://another/v1"))
    assert (await store.progress("demo")).lanes == ()
    await store.register(replace(told(SERVING[0].base_url), id="ours"))
    assert [lane.base_url for lane in (await store.progress("demo")).lanes] == [SERVING[0].base_url]


async def test_limits_change_while_runners_work(store, clock):
    await fill(store, 100)
    await store.set_limits(*LANE, Limits(max_inflight=2))
    hand = Hand(store)
    assert len(await hand.claim(50)) == 2
    await store.set_limits(*LANE, Limits(max_inflight=10))
    assert len(await hand.claim(50)) == 8
    await store.set_limits(*LANE, Limits())
    assert len(await hand.claim(50)) == 50


async def test_tokens_are_reserved_by_what_calls_cost_and_corrected_when_they_end(store, clock):
    await fill(store, 200)
    await store.set_limits(*LANE, Limits(tpm=60_000))
    hand = Hand(store)
    used = 0
    start = clock.now
    while clock.now - start < 60_000:
        claims = await hand.claim(50)
        used += 500 * len(claims)
        await hand.settle(*(done(claim, usage=Usage(400, 100)) for claim in claims))
        clock.advance(250)
    assert 55_000 <= used <= 60_000 + 6_000 + 500


async def test_tokens_hold_also_where_answers_tell_none(store, clock):
    await fill(store, 200)
    await store.set_limits(*LANE, Limits(tpm=60_000))
    assert 60 <= await claimed_in(Hand(store), clock, 60) <= 67


async def test_answers_that_come_later_do_not_put_off_the_next_call(store, clock):
    await fill(store, 200)
    await store.set_limits(*LANE, Limits(rpm=60, burst=1))
    hand, running, count = Hand(store), [], 0
    end = clock.now + 60_000
    while clock.now < end:
        over = [claim for at, claim in running if at <= clock.now]
        running = [(at, claim) for at, claim in running if at > clock.now]
        reply = await hand.send(hand.request([done(claim) for claim in over], 16))
        running += [(clock.now + 900, claim) for claim in reply.claims]
        count += len(reply.claims)
        clock.advance(100)
    assert 59 <= count <= 61


async def test_limits_beyond_all_reason_stop_nobody_else(store, clock):
    await two_lanes(store)
    await store.set_limits("echo", "http://localhost/v1", "model-a", Limits(rpm=1e-20, burst=1))
    hand = Hand(store)
    for _ in range(3):
        await hand.settle(*map(done, await hand.claim(10)))
    assert (await store.progress("b")).counts.done == 3


async def test_a_limited_lane_leaves_another_alone(store, clock):
    await two_lanes(store, 50)
    await store.set_limits("echo", "http://localhost/v1", "model-a", Limits(rpm=1, burst=1))
    hand = Hand(store)
    claims = [*await hand.claim(80), *await hand.claim(80)]
    names = [claim.batch.name for claim in claims]
    assert (names.count("a"), names.count("b")) == (1, 50)


async def test_a_runner_claims_no_more_in_a_lane_than_its_own_window_has_room_for(store, clock):
    from dataclasses import replace

    await two_lanes(store, 20)
    hand = Hand(store)
    request = hand.request(slots=30)
    narrow = replace(request, wants=replace(request.wants, rooms=(("echo http://localhost/v1 model-a", 2),)))
    names = [claim.batch.name for claim in (await hand.send(narrow)).claims]
    assert names.count("a") == 2
    assert names.count("b") >= 15


async def test_what_a_lane_has_learned_is_forgotten_on_demand(store, clock):
    await fill(store, 100)
    hand = Hand(store)
    first = await hand.claim(10)
    await hand.settle(*(throttled(claim, 1.0) for claim in first))
    clock.advance(1_000)
    assert len(await hand.claim(10)) == 1
    await store.set_limits(*LANE, Limits(), forget=True)
    assert len(await hand.claim(50)) == 50


async def test_a_pause_that_a_provider_did_not_mean_is_forgotten_too(store, clock):
    await fill(store, 10)
    hand = Hand(store)
    (claim,) = await hand.claim(1)
    await hand.settle(throttled(claim, 86_400.0))
    assert await hand.claim(10) == ()
    await store.set_limits(*LANE, Limits(), forget=True)
    assert len(await hand.claim(10)) == 10


async def test_of_two_probes_the_one_that_succeeds_reopens_the_lane(store, clock):
    await fill(store, 5)
    hand, other = Hand(store), Hand(store, "other")
    await halt(store, hand)
    clock.now = (await store.lanes())[0].probe_at
    (first,) = await hand.claim(5)
    await store.register(identity("fresh"))
    (second,) = await other.claim(5)
    await hand.settle(halted(first))
    await other.settle(done(second))
    assert (await store.lanes())[0].halted_at is None


async def test_a_row_that_can_not_be_read_proves_nothing(store, clock):
    await fill(store, 5)
    hand = Hand(store)
    await halt(store, hand)
    clock.now = (await store.lanes())[0].probe_at
    (probe,) = await hand.claim(5)
    await hand.settle(failed(probe, error_class="bad_row"))
    assert (await store.lanes())[0].halted_at is not None


async def test_a_lane_without_limits_or_news_is_not_written(store, clock):
    await fill(store, 10)
    hand = Hand(store)
    await hand.settle(*map(done, await hand.claim(10)))
    assert rows(store, "SELECT * FROM lanes") == []


# Money


async def test_claiming_stops_when_the_budget_is_spent_and_goes_on_when_it_is_raised(store, clock):
    batch = await fill(store, 10, budget=30)
    hand = Hand(store)
    for _ in range(3):
        (claim,) = await hand.claim(1)
        await hand.settle(done(claim, cost=10))
    assert await hand.claim(10) == ()
    progress = await store.progress("demo")
    assert (progress.cost, progress.counts.done, progress.over_budget) == (30, 3, True)
    await store.update_policy(batch, {"budget": 1_000})
    assert len(await hand.claim(10)) == 7


async def test_retries_and_late_answers_are_paid_from_the_budget_too(store, clock):
    await fill(store, 3, budget=30)
    frozen = Hand(store, "frozen")
    (claim,) = await frozen.claim(1)
    await frozen.settle(retry(claim, cost=10))
    (stale,) = await frozen.claim(1)
    clock.advance(LEASE_MS)
    other = Hand(store, "other")
    (again,) = await other.claim(1)
    assert again.job_id == stale.job_id
    await frozen.settle(done(stale, cost=20))
    assert await other.claim(10) == ()
    assert (await store.progress("demo")).cost == 30


async def test_a_budget_without_known_costs_stops_after_a_few_answers(store, clock):
    batch = await fill(store, 100, budget=30)
    hand = Hand(store)
    claims = await hand.claim(50)
    assert len(claims) == 3
    assert await hand.claim(50) == ()
    await hand.settle(*map(done, claims))
    assert await hand.claim(50) == ()
    progress = await store.progress("demo")
    assert progress.batch.lacks_costs(progress.cost, progress.unpriced)
    await store.update_policy(batch, {"allow_unknown_cost": True})
    assert len(await hand.claim(50)) == 50


async def test_a_budget_goes_on_after_a_crash_of_those_who_were_to_find_out_its_costs(store, clock):
    await fill(store, 10, budget=1_000)
    hand = Hand(store)
    assert len(await hand.claim(9)) == 3
    hand.forget()
    clock.advance(LEASE_MS)
    other = Hand(store, "other")
    claims = await other.claim(9)
    assert len(claims) == 3
    await other.settle(*(done(claim, cost=1) for claim in claims))
    assert len(await other.claim(9)) == 7


async def test_answers_that_tell_no_cost_count_like_those_that_do(store, clock):
    batch = await fill(store, 200, budget=30)
    hand = Hand(store)
    first, *rest = await hand.claim(3)
    await hand.settle(done(first, cost=1), *map(done, rest))
    ended = 3
    while claims := await hand.claim(9):
        await hand.settle(*map(done, claims))
        ended += len(claims)
    assert 30 <= ended <= 38
    assert (await store.progress("demo")).over_budget
    await store.update_policy(batch, {"allow_unknown_cost": True})
    assert len(await hand.claim(200)) == 200 - ended


async def test_a_budget_with_known_costs_lets_all_slots_work_after_the_first_answer(store, clock):
    await fill(store, 100, budget=10_000)
    hand = Hand(store)
    first, *_ = await hand.claim(50)
    await hand.settle(done(first, cost=0))
    assert len(await hand.claim(50)) == 50


async def test_a_job_adds_up_what_its_attempts_cost_and_an_unknown_cost_is_not_zero(store, clock):
    batch = await fill(store, 2)
    hand = Hand(store)
    one, two = await hand.claim(2)
    await hand.settle(retry(one, cost=7), done(two))
    (again,) = await hand.claim(1)
    await hand.settle(done(again, cost=5, usage=Usage(10, 20, 3, 4)))
    row = job_row(store, one.job_id)
    assert (row["cost"], row["cost_source"], row["input_tokens"], row["reasoning_tokens"]) == (12, "provider", 10, 4)
    assert [entry["cost"] for entry in log_of(store, one.job_id)] == [7, 5]
    assert job_row(store, two.job_id)["cost"] is None
    await check_tallies(store, batch)


async def test_what_was_spent_survives_a_retry_by_an_operator(store, clock):
    batch = await fill(store, 1)
    hand = Hand(store)
    (claim,) = await hand.claim(1)
    await hand.settle(retry(claim, cost=7))
    (claim,) = await hand.claim(1)
    await hand.settle(failed(claim))
    assert await store.retry(batch) == 1
    (claim,) = await hand.claim(1)
    await hand.settle(done(claim, cost=5))
    found, _log = await store.job(batch, 0)
    assert (found.state, found.cost) == (JobState.DONE, 12)


# Errors that may come only so often in a row


async def test_an_error_that_may_come_twice_in_a_row_fails_the_job_the_second_time(store, clock):
    from store_driver import ended

    from batchq.jobs import Reason, Retry

    await fill(store, 1)
    hand = Hand(store)
    empty, broken = (Retry(Reason(kind, "bad"), 0.0, at_most=2) for kind in ("empty_answer", "broken_answer"))
    seen = []
    for outcome in (empty, broken, empty, empty):
        (claim,) = await hand.claim(1)
        await hand.settle(ended(claim, outcome))
        seen.append(job_row(store, claim.job_id)["state"])
    assert seen == ["pending", "pending", "pending", "failed"]
    assert job_row(store, claim.job_id)["error"] == "bad (gave up after 2 attempts)"


async def test_being_throttled_in_between_does_not_hide_a_row_of_errors(store, clock):
    from store_driver import ended

    from batchq.jobs import Reason, Retry

    await fill(store, 1)
    hand = Hand(store)
    empty = Retry(Reason("empty_answer", "bad"), 0.0, at_most=2)
    for outcome in (empty, None, empty):
        (claim,) = await hand.claim(1)
        await hand.settle(ended(claim, outcome) if outcome else throttled(claim))
        clock.advance(1_000)
    assert job_row(store, claim.job_id)["state"] == "failed"
