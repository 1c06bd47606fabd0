"""One attempt at one job: every way it can end becomes exactly one outcome."""

import asyncio
import datetime as dt
import decimal
import enum
import json
from dataclasses import dataclass, replace

import anyio
import numpy as np
import pydantic
import pytest

from batchq.discovery import adapt
from batchq.executor import build_request, execute, shorten
from batchq.jobs import (
    Batch,
    BatchState,
    Claim,
    Ended,
    Failed,
    Halted,
    Released,
    Retry,
    Succeeded,
    Throttled,
)
from batchq.settlement import settle
from batchq.worker import Answer, Halt, Reject, Request, RetryLater, Usage
from batchq.worker import Throttled as SlowDown


def claim(payload: object = "hello", *, timeout_ms: int = 5_000, settings: dict | None = None) -> Claim:
    batch = Batch(1, "b", "w", "default", "m", settings or {}, 0, 8, timeout_ms, None, BatchState.OPEN, 1, 0, 0, None)
    text = payload.text if isinstance(payload, Raw) else json.dumps(payload)
    return Claim(1, 1, batch, 0, "id-0", text, 1, 0, 0)


@dataclass
class Raw:
    """A payload that is stored as it stands."""

    text: str


def run(function, **options):
    return asyncio.run(execute(claim(**options), adapt(function)))


def returning(value):
    async def worker(prompt):
        return value

    return worker


def raising(error):
    async def worker(prompt):
        raise error

    return worker


@pytest.mark.parametrize("value", ["text", "", None, 3, 1.5, True, [1, {"a": None}], {"k": "\ud800\x00"}])
def test_any_json_is_an_answer(value):
    outcome = run(returning(value))

    assert isinstance(outcome, Succeeded)
    assert json.loads(outcome.answer.result) == value


@pytest.mark.parametrize("value", [object(), {b"bytes"}, float("nan"), {"a": float("inf")}, b"bytes"])
def test_what_json_cannot_hold_fails_the_job_alone(value):
    outcome = run(returning(value))

    assert isinstance(outcome, Failed)
    assert outcome.reason.error_class == "bad_result"


def test_an_answer_carries_usage_cost_and_meta():
    answer = Answer("x", Usage(10, 5, 2, 1), 0.000_001_35, {"provider": "P"}, "stop")

    kept = run(returning(answer)).answer

    assert (kept.result, kept.usage, kept.cost, kept.cost_source) == ('"x"', Usage(10, 5, 2, 1), 1_350, "provider")
    assert (kept.meta, kept.finish_reason) == ('{"provider":"P"}', "stop")


def test_an_unknown_cost_stays_unknown():
    kept = run(returning(Answer("x"))).answer

    assert (kept.cost, kept.cost_source) == (None, None)


@pytest.mark.parametrize(
    ("error", "kind", "error_class"),
    [
        (RetryLater("soon", after=3), Retry, "retry_later"),
        (Reject("no"), Failed, "rejected"),
        (SlowDown("wait", after=7), Throttled, "throttled"),
        (Halt("bad key"), Halted, "halted"),
        (ValueError("oops"), Retry, "ValueError"),
        (TimeoutError(), Retry, "timeout"),
        (SystemExit(3), Retry, "SystemExit"),
        (RecursionError(), Retry, "RecursionError"),
        (asyncio.CancelledError(), Retry, "cancelled_itself"),
    ],
)
def test_whatever_a_worker_raises_is_one_outcome(error, kind, error_class):
    outcome = run(raising(error))

    assert isinstance(outcome, kind)
    assert outcome.reason.error_class == error_class


class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    "error",
    [
        RetryLater("x", after="2"),
        RetryLater("x", after="soon"),
        SlowDown("x", after=float("inf")),
        SlowDown("x", after=-5),
        Reject(ValueError("not text")),
        Reject("x", error_class=404),
        Reject("x", status="400"),
        Reject("x", answer=Answer("half", cost=float("inf"))),
        Reject("x", answer="half"),
        Halt(None),
        Unprintable(),
    ],
    ids=repr,
)
def test_odd_values_in_what_a_worker_raises_harm_nobody(error):
    outcome = run(raising(error))

    settled = settle(Ended(claim(), outcome, 1))
    assert isinstance(settled.delay_ms, int)
    assert settled.pause_ms is None or settled.pause_ms >= 0
    assert isinstance(settled.reason.message, str)
    assert isinstance(settled.reason.error_class, str)


def test_a_time_to_wait_may_be_text():
    assert run(raising(RetryLater("x", after="2"))).after == 2


@pytest.mark.parametrize(
    "extra",
    [
        {"usage": {"input_tokens": 3}},
        {"usage": Usage(input_tokens="12")},
        {"usage": Usage(input_tokens=-1)},
        {"usage": Usage(input_tokens=2**80)},
        {"cost": float("nan")},
        {"cost": "free"},
        {"cost": -1},
        {"meta": {"when": {1, 2}}},
        {"meta": 3},
        {"finish_reason": 3},
    ],
    ids=repr,
)
def test_a_paid_answer_survives_odd_accounting(extra):
    answer = run(returning(Answer("paid for", **extra))).answer

    assert answer.result == '"paid for"'
    assert answer.usage.input_tokens is None
    assert answer.cost is None


def test_a_call_given_up_is_released_even_if_the_worker_makes_an_error_of_it():
    async def main():
        scope, started = anyio.CancelScope(), anyio.Event()

        async def stubborn(prompt):
            started.set()
            try:
                await anyio.sleep_forever()
            except asyncio.CancelledError as error:
                raise ConnectionError("aborted") from error

        task = asyncio.create_task(execute(claim(), adapt(stubborn), scope))
        await started.wait()
        scope.cancel()
        assert isinstance(await task, Released)

    asyncio.run(main())


def test_a_worker_that_cancels_its_own_task_is_retried():
    async def suicidal(prompt):
        asyncio.current_task().cancel()
        await anyio.sleep(1)

    outcome = run(suicidal)

    assert isinstance(outcome, Retry)
    assert outcome.reason.error_class == "cancelled_itself"


def test_a_paid_answer_travels_with_a_rejection():
    outcome = run(raising(Reject("cut off", error_class="truncated", answer=Answer("half", cost=0.5))))

    assert outcome.answer.result == '"half"'
    assert outcome.answer.cost == 500_000_000


def test_a_call_that_hangs_ends_at_its_deadline():
    async def hang(prompt):
        await anyio.sleep_forever()

    outcome = run(hang, timeout_ms=50)

    assert isinstance(outcome, Retry)
    assert (outcome.reason.error_class, outcome.reason.message) == ("timeout", "no answer within 0.05 s")


@pytest.mark.parametrize(
    "turned_into", [None, RetryLater("stopped"), Reject("stopped"), ValueError("stopped")], ids=repr
)
def test_what_a_call_has_cost_by_its_deadline_is_kept(turned_into):
    async def hang(prompt):
        try:
            await anyio.sleep_forever()
        except asyncio.CancelledError as cancelled:
            ended = turned_into or cancelled
            ended.answer = Answer("so far", Usage(5, 7), cost=0.5)
            raise ended from None

    outcome = run(hang, timeout_ms=50)

    assert isinstance(outcome, Retry)
    assert (outcome.reason.error_class, outcome.reason.message) == ("timeout", "no answer within 0.05 s")
    assert (outcome.answer.result, outcome.answer.usage.output_tokens) == ('"so far"', 7)
    assert outcome.answer.cost == 500_000_000
    settled = settle(Ended(replace(claim(), attempts=8), outcome, 50))
    assert settled.answer is outcome.answer


@pytest.mark.parametrize("error", [ValueError("no"), TimeoutError(), SystemExit(3)], ids=repr)
def test_any_exception_may_carry_what_was_paid_for_and_nothing_else(error):
    error.answer = "not an Answer"
    assert run(raising(error)).answer is None
    error.answer = Answer("so far", cost=0.5)
    assert run(raising(error)).answer.cost == 500_000_000


def test_a_cancellation_from_outside_is_raised():
    async def main():
        started, outcomes = anyio.Event(), []

        async def hang(prompt):
            started.set()
            try:
                await anyio.sleep_forever()
            except asyncio.CancelledError as cancelled:
                cancelled.answer = Answer("so far", cost=0.5)
                raise

        async def attempt():
            outcomes.append(await execute(claim(), adapt(hang)))

        async with anyio.create_task_group() as group:
            group.start_soon(attempt)
            await started.wait()
            group.cancel_scope.cancel()
        assert outcomes == []

    asyncio.run(main())


@pytest.mark.parametrize("payload", [Raw("{broken"), Raw("3"), Raw("null"), Raw("[1]"), Raw("")])
def test_a_row_that_cannot_be_read_fails_alone(payload):
    outcome = run(returning("never"), payload=payload)

    assert isinstance(outcome, Failed)
    assert outcome.reason.error_class == "bad_row"


def test_a_worker_that_asks_for_the_request_gets_all_of_it():
    seen = []

    async def worker(request: Request) -> str:
        seen.append(request)
        return "ok"

    run(worker, payload="hi", settings={"system": "Be brief.", "params": {"temperature": 0}})

    (request,) = seen
    assert request.body == {
        "model": "m",
        "temperature": 0,
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}],
    }
    assert (request.prompt, request.batch, request.position, request.custom_id, request.attempt) == (
        "hi",
        "b",
        0,
        "id-0",
        1,
    )


def test_the_row_wins_over_the_batch_and_objects_merge():
    request = build_request(
        claim(
            {"body": {"messages": [{"role": "user", "content": "x"}], "temperature": 1, "provider": {"order": ["A"]}}},
            settings={"params": {"temperature": 0, "top_p": 1, "provider": {"sort": "price"}}},
        )
    )

    assert request.body == {
        "model": "m",
        "temperature": 1,
        "top_p": 1,
        "provider": {"sort": "price", "order": ["A"]},
        "messages": [{"role": "user", "content": "x"}],
    }


@pytest.mark.parametrize(
    "secret", ["sk-or-v1-0123456789abcdef", "Bearer abcdefgh12345678", "sk-proj-aaaa_bbbb-cccc", "hf_abcdefghij"]
)
def test_keys_never_stay_in_an_error(secret):
    assert secret.split()[-1] not in shorten(f"401 for key {secret} at host")


def test_error_texts_are_short_and_storable():
    text = shorten("a\x00b\ud800" + "x" * 5000)

    assert len(text) == 1000
    assert text.startswith("a?b?")


SCHEMA = {"type": "object", "properties": {"n": {"type": "number"}}, "required": ["n"]}


@pytest.mark.parametrize("text", ['{"n": NaN}', '{"n": 1e999}', '{"n": "x"}', "nothing"])
def test_what_misses_the_schema_keeps_its_answer_and_its_cost(text):
    outcome = run(returning(Answer(text, Usage(1, 2), 0.5)), settings={"schema": SCHEMA})

    assert isinstance(outcome, Retry)
    assert (outcome.reason.error_class, outcome.at_most) == ("schema_mismatch", 3)
    assert (outcome.answer.cost, json.loads(outcome.answer.result)) == (500_000_000, text)


def test_a_truncated_answer_that_fits_no_schema_is_paid_for_once_also_where_it_is_allowed():
    cut = Reject("cut off", error_class="truncated", answer=Answer('{"n": ', Usage(1, 2), 0.5, finish_reason="length"))
    allowing = replace(claim(settings={"schema": SCHEMA}).batch, allow_truncated=True)

    outcome = asyncio.run(execute(replace(claim(), batch=allowing), adapt(raising(cut))))

    assert isinstance(outcome, Failed)
    assert outcome.reason.error_class == "truncated"
    assert outcome.answer.cost == 500_000_000


def test_a_result_that_is_no_json_keeps_what_it_cost():
    outcome = run(returning(Answer(float("nan"), Usage(1, 2), 0.5)))

    assert isinstance(outcome, Failed)
    assert (outcome.reason.error_class, outcome.answer.cost) == ("bad_result", 500_000_000)


def test_an_estimated_cost_is_marked_and_a_response_kept_on_demand_only():
    answer = Answer("a", Usage(1, 2), 0.5, estimated=True, response={"id": "x"})
    keeping = replace(claim().batch, keep_response=True)

    plain = run(returning(answer)).answer
    kept = asyncio.run(execute(replace(claim(), batch=keeping), adapt(returning(answer)))).answer

    assert (plain.cost_source, plain.response) == ("estimate", None)
    assert kept.response == '{"id":"x"}'


@pytest.mark.parametrize(
    "key", ["sk-or-v1-0123456789abcdef", "AIzaSyA0123456789abcdefghijklmno", "xai-0123456789abcdef", "nvapi-0123456789"]
)
def test_keys_are_taken_out_of_errors(key):
    assert key not in shorten(f"API key not valid: {key}. Pass another")


@dataclass
class Labelled:
    label: str
    scores: tuple[float, ...]


class Colour(enum.Enum):
    RED = "red"


class Verdict(pydantic.BaseModel):
    day: dt.date


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (np.int64(3), 3),
        (np.float32(0.5), 0.5),
        (np.bool_(True), True),
        (np.array([1, 2]), [1, 2]),
        (Labelled("a", (0.5, 1.0)), {"label": "a", "scores": [0.5, 1.0]}),
        ({Colour.RED: {3}}, {"red": [3]}),
        (dt.datetime(2026, 1, 2, 3, tzinfo=dt.UTC), "2026-01-02T03:00:00+00:00"),
        (decimal.Decimal("1.50"), "1.50"),
        ([Verdict(day=dt.date(2026, 1, 2))], [{"day": "2026-01-02"}]),
    ],
)
def test_what_people_return_is_kept_as_json(value, kept):
    outcome = run(returning(value))
    assert isinstance(outcome, Succeeded)
    assert json.loads(outcome.answer.result) == kept


def test_what_is_told_of_a_lane_quotes_no_system_prompt():
    def halts(request: Request) -> str:
        raise Halt(f"refused: {request.body}")

    system = "The system prompt that nobody else should read."
    outcome = run(halts, settings={"system": system, "params": {"instructions": "And these neither, not in any log."}})
    assert isinstance(outcome, Halted)
    assert "nobody else" not in outcome.reason.message
    assert "neither" not in outcome.reason.message
