"""Every answer a provider gives becomes one verdict, and nothing makes the classifier raise."""

import json
import time
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from email.utils import format_datetime, formatdate
from pathlib import Path

import httpx2
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from batchq.executor import shorten
from batchq.worker import Answer, Halt, Reject, RetryLater, Steer, Throttled, Usage
from batchq_workers.classify import classify

FIXTURES = Path(__file__).parent / "fixtures" / "llm"
ACTIONS = {"done": Answer, "retry": RetryLater, "throttle": Throttled, "fail": Reject, "pause": Halt}
CLASSES = {
    "err200_choice_error": "server_error",
    "err200_empty_choices": "broken_answer",
    "err200_empty_completion": "broken_answer",
    "err200_top_level": "server_error",
    "err200_whitespace_only": "broken_answer",
    "err_400_context_length": "context_length",
    "err_400_model_not_found": "unknown_model",
    "err_400_provider_raw": "bad_request",
    "err_401_bad_key": "bad_key",
    "err_402_credits": "no_credit",
    "err_402_in_flight_budget": "in_flight_budget",
    "err_403_budget": "no_credit",
    "err_403_moderation": "moderation",
    "err_404_no_endpoints": "not_found",
    "err_408_timeout": "timeout",
    "err_413_payload": "too_large",
    "err_429_free_per_day": "rate_limited",
    "err_429_upstream": "rate_limited",
    "err_500_masked": "server_error",
    "err_502_provider": "server_error",
    "err_503_no_provider": "overloaded",
    "err_529_overloaded": "overloaded",
    "ok_cache_hit": None,
    "ok_content_filter": "content_filter",
    "ok_json_schema": None,
    "ok_length_truncated": "truncated",
    "ok_usage_cost": None,
    "openai_429_rate_limit": "rate_limited",
    "vllm_400_context": "context_length",
}


def load(name: str) -> tuple[dict, int, dict, bytes]:
    fixture = json.loads((FIXTURES / f"{name}.json").read_text())
    body = fixture["raw_body"] if "raw_body" in fixture else json.dumps(fixture["body"])
    return fixture["suggested"], fixture["status"], fixture["headers"], body.encode()


def decide(status, body, headers=None, url="/v1/chat/completions"):
    return classify(status, headers or {}, body if isinstance(body, bytes) else json.dumps(body).encode(), url)


def answer(message, *, finish="stop", url="/v1/chat/completions", headers=None, **rest):
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", **message}}
    return decide(200, {"choices": [choice], **rest}, headers, url)


def name_of(verdict) -> tuple[type, str | None]:
    return type(verdict), getattr(verdict, "error_class", None)


def test_the_table_names_every_fixture():
    assert sorted(CLASSES) == sorted(path.stem for path in FIXTURES.glob("*.json"))


@pytest.mark.parametrize(("fixture", "error_class"), CLASSES.items(), ids=CLASSES)
def test_every_recorded_answer_gets_the_action_it_calls_for(fixture, error_class):
    suggested, status, headers, body = load(fixture)

    verdict = classify(status, headers, body)

    assert name_of(verdict) == (ACTIONS[suggested["action"]], error_class), verdict
    if isinstance(suggested.get("retry_after_s"), int | float):
        assert verdict.after == pytest.approx(suggested["retry_after_s"], abs=1)


@pytest.mark.parametrize(
    ("status", "kind", "error_class"),
    [
        (400, Reject, "bad_request"),
        (401, Halt, "bad_key"),
        (402, Halt, "no_credit"),
        (403, Halt, "forbidden"),
        (404, Halt, "not_found"),
        (408, RetryLater, "timeout"),
        (409, RetryLater, "conflict"),
        (413, Reject, "too_large"),
        (418, Reject, "refused"),
        (422, Reject, "bad_request"),
        (425, RetryLater, "conflict"),
        (429, Throttled, "rate_limited"),
        (451, Reject, "refused"),
        (500, RetryLater, "server_error"),
        (502, RetryLater, "server_error"),
        (503, Throttled, "overloaded"),
        (504, RetryLater, "timeout"),
        (522, RetryLater, "timeout"),
        (524, RetryLater, "timeout"),
        (529, Throttled, "overloaded"),
        (599, RetryLater, "server_error"),
        (101, RetryLater, "unexpected_status"),
        (304, RetryLater, "unexpected_status"),
        (600, RetryLater, "unexpected_status"),
        (999, RetryLater, "unexpected_status"),
        (0, RetryLater, "unexpected_status"),
        (-1, RetryLater, "unexpected_status"),
    ],
)
@pytest.mark.parametrize("body", [b"", b"<html>gateway</html>", b'{"error": {}}', b'{"error": null}', b"[[]]"])
def test_the_status_decides_where_the_body_says_nothing(status, kind, error_class, body):
    verdict = decide(status, body)

    assert name_of(verdict) == (kind, error_class)
    assert (verdict.status, bool(str(verdict))) == (status, True)


def available(code, retryable, **rest):
    return {"message": "m", "availability": {"code": code, "retryable": retryable, **rest}}


def limited(**metadata):
    return {"message": "m", "metadata": metadata}


LANE_CODES = ["wrong_endpoint", "no_endpoints", "model_deprecated", "model_unavailable_upstream", "privacy_restricted"]
LANE_CODES += ["constraint_filtered", "free_variant_ended", "region_restricted"]
BUDGETS = ["openrouter_credits", "openrouter_key_limit", "openrouter_guardrail_budget", "openrouter_workspace_budget"]
BILLING = ["insufficient_quota", "credit_balance_exhausted", "organization_spend_limit_exceeded"]
BILLING += ["project_spend_limit_exceeded", "organization_usage_limit_exceeded", "billing_hard_limit_reached"]
TOO_MANY_TOKENS = "Request too large for gpt-4o on tokens per min (TPM): Limit 30000, Requested 37313."


@pytest.mark.parametrize(
    ("status", "error", "kind", "error_class"),
    [
        # availability: what is not retryable is so for the whole lane, or for this request
        *((404, available(code, False), Halt, code) for code in LANE_CODES),
        *((400, available(code, False), Halt, code) for code in LANE_CODES),
        (404, available("no_endpoints", None), Halt, "no_endpoints"),
        (400, available("model_not_found", False), Halt, "unknown_model"),
        (400, available("prompt_unsupported", False), Reject, "bad_request"),
        (400, available(None, False), Reject, "bad_request"),
        (429, available("new_code", False), Reject, "refused"),
        (503, available("new_code", False), Reject, "refused"),
        (401, available("new_code", False), Halt, "bad_key"),
        (402, available("new_code", False), Halt, "no_credit"),
        (403, available("new_code", False), Halt, "forbidden"),
        (404, available("new_code", False), Halt, "not_found"),
        (403, available("new_code", False) | limited(flagged_input="x"), Reject, "moderation"),
        (400, available(None, False) | {"message": "a/b is not a valid model ID"}, Halt, "unknown_model"),
        (400, available("new_code", False) | {"error_type": "context_length_exceeded"}, Reject, "context_length"),
        (503, available("new_code", False) | {"error_type": "provider_overloaded"}, Reject, "refused"),
        (429, available("capacity_exhausted", True), Throttled, "rate_limited"),
        (503, available("temporarily_unavailable", True), Throttled, "overloaded"),
        (404, available("new_code", True), Throttled, "overloaded"),
        (429, available("new_code", True), Throttled, "rate_limited"),
        (404, available("new_code", "yes"), Halt, "not_found"),
        # limits
        *((403, limited(limit_source=source), Halt, "no_credit") for source in BUDGETS),
        *((402, limited(limit_source=source), Halt, "no_credit") for source in BUDGETS),
        (402, limited(limit_source="openrouter_in_flight_budget"), Throttled, "in_flight_budget"),
        (402, limited(reason="in_flight_budget_exhausted"), Throttled, "in_flight_budget"),
        (402, limited(reason="weight_exceeds_budget"), Reject, "too_expensive"),
        *(
            (402, limited(reason="weight_exceeds_budget", limit_source=source), Reject, "too_expensive")
            for source in ["openrouter_in_flight_budget", "openrouter_credits", "elsewhere"]
        ),
        (429, limited(limit_source="upstream_provider_shared_pool"), Throttled, "rate_limited"),
        # billing
        *((429, {"message": "m", "type": word}, Halt, "no_credit") for word in BILLING),
        *((429, {"message": "m", "type": "insufficient_quota", "code": word}, Halt, "no_credit") for word in BILLING),
        # what is said of one prompt, against what every request meets
        (403, limited(reasons=["violence"], error_type="permission_denied"), Reject, "moderation"),
        (403, limited(patterns=["ssn"]), Reject, "moderation"),
        (400, limited(flagged_input="x"), Reject, "moderation"),
        (403, limited(reasons=None, error_type="permission_denied"), Halt, "forbidden"),
        # sentences
        (400, {"message": "acme/x is not a valid model ID"}, Halt, "unknown_model"),
        (400, {"message": "role: narrator is not a valid model ID"}, Reject, "bad_request"),
        (400, {"message": "API key not valid. Please pass a valid API key."}, Halt, "bad_key"),
        (400, {"message": "the request exceeds the available context size"}, Reject, "context_length"),
        (429, {"message": TOO_MANY_TOKENS, "type": "tokens", "code": "rate_limit_exceeded"}, Reject, "too_large"),
        # words
        (400, limited(error_type="context_length_exceeded"), Reject, "context_length"),
        (500, limited(error_type="context_length_exceeded"), Reject, "context_length"),
        (400, {"message": "m", "code": "context_length_exceeded"}, Reject, "context_length"),
        (400, limited(error_type="max_tokens_exceeded"), Reject, "truncated"),
        (400, limited(error_type="token_limit_exceeded"), Reject, "too_expensive"),
        (400, limited(error_type="string_too_long"), Reject, "too_large"),
        (400, limited(error_type="content_policy_violation"), Reject, "moderation"),
        (403, limited(error_type="refusal"), Reject, "moderation"),
        (400, {"message": "m", "code": "content_filter"}, Reject, "moderation"),
        (400, limited(error_type="unsupported_image_format"), Reject, "bad_image"),
        (404, limited(error_type="image_not_found"), Reject, "image_unavailable"),
        (400, limited(error_type="image_download_failed"), Reject, "image_unavailable"),
        (400, limited(error_type="authentication"), Halt, "bad_key"),
        (400, limited(error_type="payment_required"), Halt, "no_credit"),
        (403, {"message": "m", "code": "unsupported_country_region_territory"}, Halt, "region_restricted"),
        (404, {"message": "m", "code": "model_not_found"}, Halt, "unknown_model"),
        (403, {"message": "m", "code": "model_not_found"}, Halt, "unknown_model"),
        (400, limited(error_type="rate_limit_exceeded"), Throttled, "rate_limited"),
        (502, limited(error_type="provider_overloaded"), Throttled, "overloaded"),
        (500, {"message": "m", "type": "overloaded_error"}, Throttled, "overloaded"),
        (413, {"message": "m", "code": "rate_limit_exceeded"}, Reject, "too_large"),
        (400, {"message": "m", "type": "BadRequestError", "code": 400}, Reject, "bad_request"),
        (503, {"message": "m", "error_type": "timeout"}, Throttled, "overloaded"),
        (404, limited(error_type="not_found"), Halt, "not_found"),
        (412, limited(error_type="precondition_failed"), Reject, "refused"),
        (500, limited(error_type="invalid_request"), RetryLater, "server_error"),
        (418, limited(error_type="unheard_of"), Reject, "refused"),
    ],
)  # fmt: skip
def test_what_an_error_says_decides_before_its_status(status, error, kind, error_class):
    assert name_of(decide(status, {"error": error})) == (kind, error_class)


@pytest.mark.parametrize(
    ("error", "kind", "error_class", "status"),
    [
        ({"code": 429, "http_status": 500}, Throttled, "rate_limited", 429),
        ({"code": "503"}, Throttled, "overloaded", 503),
        ({"code": 401}, Halt, "bad_key", 401),
        ({"code": 418}, Reject, "refused", 418),
        ({"code": 400}, Reject, "bad_request", 400),
        ({"code": 599}, RetryLater, "server_error", 599),
        ({"code": 600}, RetryLater, "broken_answer", 200),
        ({"code": "RESOURCE_EXHAUSTED", "status": 429}, Throttled, "rate_limited", 429),
        ({"http_status": 404, "availability": {"code": "privacy_restricted", "retryable": False}}, Halt,
         "privacy_restricted", 404),
        ({"http_status": 429, "error_type": "rate_limit_exceeded"}, Throttled, "rate_limited", 429),
        ({"availability": {"code": "capacity_exhausted", "retryable": True}}, Throttled, "rate_limited", 200),
        ({"error_type": "provider_overloaded"}, Throttled, "overloaded", 503),
        ({"metadata": {"error_type": "provider_unavailable"}}, RetryLater, "server_error", 502),
        ({"metadata": {"error_type": "permission_denied", "reasons": ["hate"]}}, Reject, "moderation", 403),
        ({"code": "server_error"}, RetryLater, "server_error", 500),
        ({"code": "invalid_prompt"}, Reject, "bad_request", 400),
        ({"type": "invalid_request_error"}, Reject, "bad_request", 400),
        ({"code": 200}, RetryLater, "broken_answer", 200),
        ({"code": "²³¹"}, RetryLater, "broken_answer", 200),
        ({"code": "9" * 5000}, RetryLater, "broken_answer", 200),
        ({"code": True}, RetryLater, "broken_answer", 200),
    ],
)  # fmt: skip
def test_an_error_inside_a_200_has_the_status_that_it_says(error, kind, error_class, status):
    error = {"message": "why", **error}
    for body in [{"error": error}, {"choices": [{"finish_reason": "error", "error": error}]}]:
        verdict = decide(200, body)
        assert (*name_of(verdict), verdict.status) == (kind, error_class, status)
        assert str(verdict) == "why"


def test_a_broken_off_answer_keeps_what_was_paid_for():
    body = {"choices": [{"message": {"content": "half"}, "finish_reason": "error", "error": {"code": 502}}]}
    verdict = decide(200, body | {"usage": {"cost": 0.25}})
    assert (verdict.answer.result, verdict.answer.cost) == ("half", Decimal("0.25"))

    verdict = decide(200, {"error": {"code": 502}, "usage": {"prompt_tokens": 3, "cost": 0.25}})
    assert (verdict.answer.usage.input_tokens, verdict.answer.cost) == (3, Decimal("0.25"))
    assert decide(200, {"error": {"code": 502}}).answer is None


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ({"message": "Provider returned error", "metadata": {"raw": '{"error": {"message": "too hot"}}'}}, "too hot"),
        ({"message": "Provider returned error", "metadata": {"raw": '[{"error": {"message": "a"}}]'}}, "a"),
        ({"message": "Provider returned error", "metadata": {"raw": '{"error": "in words"}'}}, "in words"),
        ({"message": "Provider returned error", "metadata": {"raw": '{"message": "flat"}'}}, "flat"),
        ({"message": "Provider returned error", "metadata": {"raw": {"error": {"message": "object"}}}}, "object"),
        ({"message": "Provider returned error", "metadata": {"raw": " error code: 502\n"}}, "error code: 502"),
        ({"message": "Provider returned error", "metadata": {"raw": "{broken"}}, "{broken"),
        ({"message": "said outside", "metadata": {"raw": " "}}, "said outside"),
        ({"message": "said outside", "metadata": {"raw": None}}, "said outside"),
        ({"message": "said outside", "metadata": ["raw"]}, "said outside"),
    ],
)
def test_the_reason_is_the_providers_own(error, reason):
    assert str(decide(400, {"error": error})) == reason
    assert str(decide(200, {"error": error})) == reason


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"error": "model is loading"}, "model is loading"),
        ({"object": "error", "message": "flat", "code": 40301}, "flat"),
        ({"detail": "Not Found"}, "Not Found"),
        ({"detail": [{"msg": "field required"}, {"msg": "too long"}]}, "field required; too long"),
        ([{"error": {"code": 400, "message": "in a list"}}], "in a list"),
        ({"fault": {"text": "who knows"}}, '{"fault": {"text": "who knows"}}'),
        (b"\n \n upstream connect error", "upstream connect error"),
        (b"<!DOCTYPE html><html><head><title>\n502:\n Bad gateway</title>", "502: Bad gateway"),
        (b"<html></html>", "a page of HTML"),
        (b"\xff" + b"x" * 9999, "�" + "x" * 999),
        (b"", "HTTP 400 without a reason"),
    ],
)
def test_a_reason_is_found_in_every_shape_of_body(body, reason):
    assert str(decide(400, body)) == reason


def test_a_spent_budget_says_when_it_is_there_again():
    error = limited(limit_source="openrouter_key_limit", resets_at="2026-12-01T00:00:00.000Z")
    assert str(decide(403, {"error": error})) == "m (resets at 2026-12-01T00:00:00.000Z)"
    assert str(decide(403, {"error": limited(limit_source="openrouter_key_limit", resets_at=None)})) == "m"
    assert str(decide(403, {"error": limited(scope="team", resets_at="soon")})) == "m (resets at soon)"


def test_a_long_reason_with_a_key_is_kept_short_and_without_it():
    verdict = decide(401, {"error": {"message": "Incorrect API key: sk-or-v1-0123456789abcdef " + "x" * 2000}})
    assert shorten(str(verdict)).startswith("Incorrect API key: [redacted] x")
    assert len(shorten(str(verdict))) == 1000


def in_seconds(seconds, scale=1):
    return lambda: str(round((time.time() + seconds) * scale))


def now(value):
    """`value` with each function in it replaced by what it returns."""
    if isinstance(value, dict):
        return {name: now(inner) for name, inner in value.items()}
    return value() if callable(value) else value


SPENT = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-remaining-tokens": "0"}
REFILL = {"x-ratelimit-reset-requests": "12ms", "x-ratelimit-reset-tokens": "6m0s"}


@pytest.mark.parametrize(
    ("headers", "error", "seconds"),
    [
        ({"retry-after-ms": "1500", "retry-after": "9"}, {}, 1.5),
        ({"Retry-After-Ms": "1500"}, {}, 1.5),
        ({"retry-after": "7"}, {"availability": {"retry_after": 99}}, 7),
        ({"RETRY-AFTER": "0.5"}, {}, 0.5),
        ({"retry-after": "0"}, {"availability": {"retry_after": 99}}, 0),
        ({"retry-after": "6m0s"}, {}, 360),
        ({"retry-after": lambda: formatdate(time.time() + 30, usegmt=True)}, {}, 30),
        ({"retry-after": lambda: formatdate(time.time() + 30)}, {}, 30),
        (
            {
                "retry-after": lambda: format_datetime(
                    datetime.now(timezone(timedelta(hours=9))) + timedelta(seconds=30)
                )
            },
            {},
            30,
        ),
        ({"retry-after": lambda: formatdate(time.time() - 30, usegmt=True)}, {}, 0),
        ({"retry-after": "soon"}, {"availability": {"retry_after": 12}}, 12),
        ({}, {"availability": {"retry_after": "12"}}, 12),
        ({}, {"availability": {"retry_after": None}}, None),
        ({"x-ratelimit-reset": "9"}, {"availability": {"retry_after": 12}}, 12),
        ({"X-RateLimit-Reset": in_seconds(20, 1000)}, {}, 20),
        ({"x-ratelimit-reset": in_seconds(20)}, {}, 20),
        ({"x-ratelimit-reset": in_seconds(-20, 1000)}, {}, 0),
        ({"x-ratelimit-reset": "8"}, {}, 8),
        ({"x-ratelimit-reset": "1h2m3.5s"}, {}, 3723.5),
        ({}, {"metadata": {"headers": {"X-RateLimit-Reset": in_seconds(20, 1000)}}}, 20),
        ({}, {"metadata": {"headers": {"x-ratelimit-reset": in_seconds(20, 1000)}}}, 20),
        ({}, {"metadata": {"headers": {"X-RateLimit-Reset": lambda: int(in_seconds(20, 1000)())}}}, 20),
        ({"x-ratelimit-reset": "3"}, {"message": "try again in 9s"}, 3),
        ({}, {"message": "Please try again in 240ms."}, 0.24),
        ({}, {"message": "Please try again in 7m12.5s."}, 432.5),
        ({}, {"message": "Please retry after 6 seconds."}, 6),
        ({}, {"message": "Please retry in 38.2s."}, 38.2),
        ({}, {"message": "Please try again in 2 hours."}, 7200),
        ({}, {"message": "Please try again in 1 day 30 min."}, 88_200),
        ({}, {"message": "Provider returned error", "metadata": {"raw": "try again in 9s"}}, 9),
        (REFILL, {"message": "Please try again in 240ms."}, 0.24),
        (REFILL, {}, 0.012),
        (REFILL | SPENT, {}, 360),
        (REFILL | SPENT | {"x-ratelimit-remaining-tokens": "5"}, {}, 0.012),
        (REFILL | {"x-ratelimit-reset-requests": "-1"}, {}, 360),
        (REFILL | {"retry-after": "3"}, {}, 3),
        ({"retry-after": "-5"}, {}, None),
        ({"retry-after": "nan"}, {}, None),
        ({"retry-after": "1e400"}, {}, None),
        ({"retry-after": "9" * 400 + "s"}, {}, None),
        ({"x-ratelimit-reset": "-1s"}, {}, None),
        ({}, {"message": "try again in a moment"}, None),
        ({}, {}, None),
    ],
)
def test_the_time_to_wait_is_read_in_every_form(headers, error, seconds):
    given, said = now(headers), now({"message": "slow down", "code": 429, **error})
    body = json.dumps({"error": said}).encode()

    verdicts = [classify(429, given, body), classify(429, httpx2.Headers(given), body), classify(200, given, body)]

    timeless = given == headers and said.items() >= error.items()
    expected = (
        None
        if seconds is None
        else pytest.approx(seconds)
        if timeless
        else pytest.approx(seconds, abs=2 if seconds else 0)
    )
    assert [verdict.after for verdict in verdicts] == [expected] * 3


def test_a_date_without_a_zone_is_in_utc(monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        headers = {"retry-after": formatdate(time.time() + 30)}
        assert headers["retry-after"].endswith("-0000")
        assert decide(429, b"", headers).after == pytest.approx(30, abs=2)
    finally:
        monkeypatch.undo()
        time.tzset()


def test_the_reset_of_a_limit_is_no_time_to_wait_after_another_error():
    headers = {"x-ratelimit-reset": "3600"} | REFILL
    assert decide(500, {"error": {"message": "m"}}, headers).after is None
    assert decide(503, {"error": {"message": "m"}}, REFILL).after is None
    busy = {"error": limited(reason="in_flight_budget_exhausted")}
    assert [decide(status, busy, headers).after for status in (402, 503, 529)] == [3600] * 3
    assert decide(503, {"error": {"message": "m"}}, headers | {"retry-after": "4"}).after == 4


def test_a_status_that_no_api_gives_is_said_plainly():
    assert str(decide(304, b"")) == "HTTP 304 without a reason"
    assert str(decide(999, b"<title>denied</title>")) == "denied"
    assert str(decide(301, b"", {"Location": "https://x/v1"})) == "HTTP 301: moved to https://x/v1"


@pytest.mark.parametrize(
    "body",
    [b"", b"  \n\n", b"<html>", b"null", b"[]", b"3", b'"yes"', b"{}", b'{"choices": null}', b'{"choices": []}']
    + [b'{"choices": [null]}', b'{"choices": {"0": 1}}', b"\xff\xfe", b"[" * 100_000, b'{"choices": [{"message": {"c']
    + [b'{"choices": [{"message": {"content": null}, "finish_reason": null}]}']
    + [b'{"choices": [{"message": {"content": " "}, "finish_reason": " "}]}']
    + [b'{"choices": [{"message": {"content": "half"}, "finish_reason": "error"}]}']
    + [b'{"choices": [{"text": ""}]}', b'{"error": {"message": "x"}}', b'{"error": "x"}']
    + [b'{"choices": null, "provider": {"choices": null}}', b'{"choices": null, "provider": {"choices": []}}'],
)
@pytest.mark.parametrize("url", ["", "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"])
def test_a_200_without_an_answer_is_tried_again(body, url):
    verdict = decide(200, body, url=url)
    assert name_of(verdict) == (RetryLater, "broken_answer")
    assert (verdict.status, verdict.at_most) == (200, None)


def test_what_came_instead_of_an_answer_is_said():
    assert str(decide(200, b" \n")) == "HTTP 200 without a JSON object: nothing"
    assert str(decide(206, b"[1]")) == "HTTP 206 without a JSON object: [1]"
    assert str(decide(200, b'{"choices": []}')) == "an answer without choices"


@pytest.mark.parametrize("error", [None, {}, "", [], False])
def test_an_error_that_is_empty_is_none(error):
    assert answer({"content": "hi"}, error=error).result == "hi"


@pytest.mark.parametrize("content", [None, "", " \n\t", [], {}, [{"type": "text", "text": " "}]])
def test_an_empty_answer_that_was_finished_is_tried_three_times_in_all(content):
    verdict = answer({"content": content}, usage={"cost": 0.5})
    assert name_of(verdict) == (RetryLater, "empty_answer")
    assert (verdict.at_most, verdict.answer.cost) == (3, Decimal("0.5"))


@pytest.mark.parametrize(
    ("finish", "kind", "error_class"),
    [
        ("length", Reject, "truncated"),
        ("max_tokens", Reject, "truncated"),
        ("model_length", Reject, "truncated"),
        ("content_filter", Reject, "content_filter"),
        ("error", RetryLater, "broken_answer"),
        ("abort", RetryLater, "broken_answer"),
        ("insufficient_system_resource", RetryLater, "broken_answer"),
        ("tool_calls", Answer, None),
        ("eos", Answer, None),
        (None, Answer, None),
    ],
)
def test_how_an_answer_ended_decides(finish, kind, error_class):
    verdict = answer({"content": "text"}, finish=finish, usage={"cost": 1})
    assert name_of(verdict) == (kind, error_class)
    kept = verdict if kind is Answer else verdict.answer
    assert (kept.result, kept.cost, kept.finish_reason) == ("text", 1, finish)


def test_an_error_of_an_old_server_has_no_envelope():
    body = {"object": "error", "message": "too busy", "type": "x", "code": 503}
    assert name_of(decide(200, body)) == name_of(decide(503, body)) == (Throttled, "overloaded")
    assert str(decide(200, body)) == "too busy"


def test_a_refusal_is_kept_as_the_answer():
    verdict = answer({"content": None, "refusal": "I can't help with that."})
    assert name_of(verdict) == (Reject, "content_filter")
    assert (str(verdict), verdict.answer.result) == ("I can't help with that.", "I can't help with that.")
    assert answer({"content": "so far", "refusal": "No."}).answer.result == "so far"


CALLS = [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]


@pytest.mark.parametrize(
    ("message", "result"),
    [
        ({"content": "hi"}, "hi"),
        ({"content": '{"a": 1}', "tool_calls": [], "refusal": None, "reasoning": "hm"}, '{"a": 1}'),
        ({"content": None, "tool_calls": CALLS}, {"content": None, "tool_calls": CALLS}),
        ({"content": "", "images": [{"url": "x"}]}, {"content": "", "images": [{"url": "x"}]}),
        ({"content": None, "function_call": {"name": "f"}}, {"content": None, "function_call": {"name": "f"}}),
        ({"content": [{"type": "text", "text": "a"}]}, [{"type": "text", "text": "a"}]),
        ({"content": [{"type": "image_url"}]}, [{"type": "image_url"}]),
    ],
)
def test_the_result_is_what_the_message_holds(message, result):
    assert answer(message).result == result


def test_several_choices_are_a_list_in_the_order_of_their_index():
    def choice(index, content, finish="stop"):
        return {"index": index, "message": {"content": content}, "finish_reason": finish}

    assert decide(200, {"choices": [choice(1, "b"), choice(2, ""), choice(0, "a")]}).result == ["a", "b", ""]
    assert decide(200, {"choices": [choice(None, "x"), choice(0, "y")]}).result == ["x", "y"]
    assert name_of(decide(200, {"choices": [choice(0, ""), choice(1, " ")]})) == (RetryLater, "empty_answer")
    cut = decide(200, {"choices": [choice(1, "whole"), choice(0, "ha", "length")]})
    assert (*name_of(cut), cut.answer.result) == (Reject, "truncated", ["ha", "whole"])


def test_a_completion_inside_provider_is_unwrapped():
    inner = {"id": "gen-1", "model": "m", "provider": "Google", "usage": {"cost": 1}}
    inner["choices"] = [{"message": {"content": "hi"}, "finish_reason": "stop"}]
    whole = {"id": None, "choices": None, "model": None, "provider": inner}

    verdict = decide(200, whole)

    assert (verdict.result, verdict.cost, verdict.response) == ("hi", 1, whole)
    assert verdict.meta == {"id": "gen-1", "model": "m", "provider": "Google"}
    assert answer({"content": "outside"}, provider=inner).result == "outside"


def test_text_completions_and_embeddings_have_their_own_shapes():
    assert decide(200, {"choices": [{"text": "ab", "finish_reason": "stop"}]}, url="/v1/completions").result == "ab"
    second, first = {"index": 1, "embedding": [0.5]}, {"index": 0, "embedding": "AAAA"}
    for url in ["/v1/embeddings", ""]:
        assert decide(200, {"data": [second]}, url=url).result == [0.5]
        assert decide(200, {"data": [second, first]}, url=url).result == ["AAAA", [0.5]]
        for data in [[], [first, {"index": 1}], [{"embedding": []}], {"embedding": [1]}]:
            assert name_of(decide(200, {"data": data}, url=url)) == (RetryLater, "broken_answer")


def response(*parts, status="completed", items=(), **rest):
    message = {"type": "message", "role": "assistant", "content": list(parts)}
    thought = {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hm"}]}
    return decide(200, {"status": status, "output": [thought, message, *items], **rest}, url="/v1/responses")


def test_without_an_url_the_shape_tells_a_response():
    body = {"status": "completed", "output": [{"content": [HI]}]}
    assert decide(200, body, url="").result == "hi"
    assert decide(200, body | {"choices": [{"text": "ab"}], "data": []}, url="").result == "ab"


HI = {"type": "output_text", "text": "hi"}
NO = {"type": "refusal", "refusal": "no"}
CALL = {"type": "function_call", "id": "fc", "call_id": "c1", "name": "f", "arguments": "{}"}


@pytest.mark.parametrize(
    ("verdict", "kind", "error_class", "result"),
    [
        (response(HI, HI), Answer, None, "hihi"),
        (response(HI, items=[CALL]), Answer, None, {"content": "hi", "tool_calls": CALLS}),
        (response(items=[CALL]), Answer, None, {"content": None, "tool_calls": CALLS}),
        (response(NO), Reject, "content_filter", "no"),
        (response(HI, status="incomplete", incomplete_details={"reason": "max_output_tokens"}),
         Reject, "truncated", "hi"),
        (response(HI, status="incomplete", incomplete_details={"reason": "content_filter"}),
         Reject, "content_filter", "hi"),
        (response(HI, status="incomplete"), Reject, "truncated", "hi"),
        (response(status="completed"), RetryLater, "empty_answer", ""),
        (response(status=None), RetryLater, "broken_answer", ""),
        (response(HI, status="failed"), RetryLater, "broken_answer", "hi"),
        (response(HI, status="cancelled"), RetryLater, "broken_answer", "hi"),
        (response(status="queued"), Reject, "bad_request", ""),
        (response(status="in_progress"), Reject, "bad_request", ""),
        (response(status="failed", error={"code": "rate_limit_exceeded", "message": "m"}, usage={}),
         Throttled, "rate_limited", None),
        (response(status="failed", error={"code": "server_error", "message": "m"}, usage={}),
         RetryLater, "server_error", None),
        (response(status="failed", error={"code": "image_too_large", "message": "m"}, usage={}),
         Reject, "bad_image", None),
    ],
)  # fmt: skip
def test_a_response_is_read_like_a_chat_answer(verdict, kind, error_class, result):
    assert name_of(verdict) == (kind, error_class)
    assert (verdict if kind is Answer else verdict.answer).result == result
    assert getattr(verdict, "at_most", None) == (3 if error_class == "empty_answer" else None)


CHAT_USAGE = {
    "prompt_tokens": 5, "completion_tokens": 4,
    "prompt_tokens_details": {"cached_tokens": 3}, "completion_tokens_details": {"reasoning_tokens": 2},
}  # fmt: skip
RESPONSES_USAGE = {
    "input_tokens": 5, "output_tokens": 4,
    "input_tokens_details": {"cached_tokens": 3}, "output_tokens_details": {"reasoning_tokens": 2},
}  # fmt: skip


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (CHAT_USAGE, Usage(5, 4, 3, 2)),
        (RESPONSES_USAGE, Usage(5, 4, 3, 2)),
        ({"prompt_tokens": 0, "completion_tokens": 0, "prompt_tokens_details": None}, Usage(0, 0, None, None)),
        ({"prompt_tokens": -1, "completion_tokens": 10**18}, Usage()),
        ({"prompt_tokens": True, "completion_tokens": "4", "prompt_tokens_details": [1]}, Usage()),
        (None, Usage()),
        ([], Usage()),
    ],
)
def test_usage_is_counted_or_unknown(usage, expected):
    assert answer({"content": "hi"}, usage=usage).usage == expected


@pytest.mark.parametrize(
    ("usage", "cost"),
    [
        ({"cost": 6.9e-06}, Decimal("0.0000069")),
        ({"cost": 0}, Decimal(0)),
        ({"cost": None}, None),
        ({"cost": -1}, None),
        ({"cost": 1e30}, None),
        ({"cost": float("nan")}, None),
        ({"cost": True}, None),
        ({"cost": "1"}, None),
        ({}, None),
        (None, None),
    ],
)
def test_what_is_not_known_to_be_free_has_no_cost(usage, cost):
    assert answer({"content": "hi"}, usage=usage).cost == cost


def test_where_an_answer_came_from_is_kept_with_its_whole_body():
    _, status, headers, body = load("ok_usage_cost")
    verdict = classify(status, headers | {"x-generation-id": "other"}, body)
    whole = json.loads(body)
    assert verdict.meta == {name: whole[name] for name in ("id", "provider", "model")}
    assert verdict.response == whole
    assert answer({"content": "x"}, finish="length").answer.response["choices"][0]["message"]["content"] == "x"

    for headers in [{"X-Generation-Id": "gen-2"}, httpx2.Headers({"X-Generation-Id": "gen-2"})]:
        assert answer({"content": "hi"}, id=None, model=7, headers=headers).meta == {"id": "gen-2"}
    assert answer({"content": "hi"}).meta == {}


KEYS = st.sampled_from(
    ["error", "choices", "message", "content", "usage", "code", "metadata", "raw", "availability", "cost", "retryable",
     "retry_after", "headers", "X-RateLimit-Reset", "finish_reason", "prompt_tokens", "data", "embedding", "index",
     "provider", "output", "status", "http_status", "error_type", "type", "text", "refusal", "tool_calls", "limit_source",
     "reason", "resets_at", "incomplete_details", "prompt_tokens_details", "detail", "msg", "object", "id", "reasons"]
)  # fmt: skip
WORDS = st.sampled_from(
    ["error", "stop", "length", "429", "²³¹", "rate_limit_exceeded", "model_not_found", "message", "output_text",
     "function_call", "failed", "incomplete", "weight_exceeds_budget", "try again in 5s", "text", '{"error": ["x"]}']
)  # fmt: skip
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | WORDS
JSON = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(KEYS | st.text(), inner), max_leaves=30)
STATUSES = st.sampled_from([200, 201, 400, 401, 402, 403, 404, 408, 413, 429, 500, 503, 529]) | st.integers()
TIMES = st.text() | st.from_regex(r"\w{3}, ?\d+ \w{3} \d+ \d+:\d+:\d+ [-+\w]*", fullmatch=True)
HEADERS = st.dictionaries(
    st.sampled_from(
        [
            "retry-after",
            "Retry-After-Ms",
            "X-RateLimit-Reset",
            "x-ratelimit-reset-tokens",
            "location",
            "x-generation-id",
        ]
    )
    | st.text(),
    TIMES | st.integers().map(str),
)
URLS = st.sampled_from(["", "/v1/chat/completions", "/v1/embeddings", "/v1/responses", "/v1/completions"]) | st.text()
CHOSEN = st.fixed_dictionaries({"choices": st.lists(JSON)}) | st.fixed_dictionaries({"error": JSON})


@given(STATUSES, HEADERS, st.binary() | (JSON | CHOSEN).map(lambda value: json.dumps(value).encode()), URLS)
@example(200, {}, b'{"choices": [{"message": {"content": ' + b'[{"text": ' * 400 + b"1" + b"}]" * 400 + b"}}]}", "")
@example(200, {}, b'{"error": {"code": "\xc2\xb2"}}', "")
@example(400, {"retry-after": "Mon, 1 Jan 99999 00:00:00 -9999"}, b"", "")
def test_no_bytes_make_it_raise(status, headers, body, url):
    verdict = classify(status, headers, body, url)
    assert isinstance(verdict, Answer | Steer)
    if isinstance(verdict, Steer):
        assert str(verdict)
        assert verdict.error_class.replace("_", "").isalpha()
        assert verdict.error_class.islower()
