"""Every answer a provider gives becomes one verdict, and nothing makes the classifier raise."""

import json
import time
from email.utils import formatdate
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchq.worker import Answer, Halt, Reject, RetryLater, Steer, Throttled
from batchq_workers.classify import classify

FIXTURES = Path(__file__).parent / "fixtures" / "llm"
VERDICTS = {"done": Answer, "retry": RetryLater, "throttle": Throttled, "fail": Reject, "pause": Halt}


def load(path: Path) -> tuple[dict, int, dict, bytes]:
    fixture = json.loads(path.read_text())
    body = fixture["raw_body"] if "raw_body" in fixture else json.dumps(fixture["body"])
    return fixture["suggested"], fixture["status"], fixture["headers"], body.encode()


@pytest.mark.parametrize("path", sorted(FIXTURES.glob("*.json")), ids=lambda path: path.stem)
def test_every_recorded_answer_gets_the_action_it_calls_for(path):
    suggested, status, headers, body = load(path)

    verdict = classify(status, headers, body)

    assert isinstance(verdict, VERDICTS[suggested["action"]]), verdict
    if isinstance(suggested.get("retry_after_s"), int | float):
        assert verdict.after == pytest.approx(suggested["retry_after_s"], abs=1)


def test_the_reason_is_the_providers_own():
    _, status, headers, body = load(FIXTURES / "err_400_provider_raw.json")

    verdict = classify(status, headers, body)

    assert str(verdict).startswith("'messages' must contain the word 'json'")


def test_usage_cost_and_origin_are_kept():
    _, status, headers, body = load(FIXTURES / "ok_usage_cost.json")

    answer = classify(status, headers, body)
    usage = json.loads(body)["usage"]

    assert answer.usage.input_tokens == usage["prompt_tokens"]
    assert answer.usage.output_tokens == usage["completion_tokens"]
    assert float(answer.cost) == usage["cost"]
    assert set(answer.meta) == {"id", "provider", "model"}


def test_a_truncated_answer_is_paid_for_and_kept():
    _, status, headers, body = load(FIXTURES / "ok_length_truncated.json")

    verdict = classify(status, headers, body)

    assert (type(verdict), verdict.error_class) == (Reject, "truncated")
    assert verdict.answer.result


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after": "7"}, 7),
        ({"retry-after": "0"}, 0),
        ({"retry-after": "6m0s"}, 360),
        (lambda: {"retry-after": formatdate(time.time() + 30, usegmt=True)}, 30),
        (lambda: {"x-ratelimit-reset": str(int((time.time() + 20) * 1000))}, 20),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-5"}, None),
        ({}, None),
    ],
)
def test_the_time_to_wait_is_read_in_every_form(headers, seconds):
    headers = headers() if callable(headers) else headers

    verdict = classify(429, headers, b'{"error": {"message": "slow down", "code": 429}}')

    if seconds is None:
        assert verdict.after is None
    else:
        assert verdict.after == pytest.approx(seconds, abs=2)


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, Reject), (401, Halt), (402, Halt), (404, Halt), (408, RetryLater), (413, Reject), (418, Reject)]
    + [(422, Reject), (429, Throttled), (500, RetryLater), (502, RetryLater), (503, Throttled)]
    + [(504, RetryLater), (524, RetryLater), (529, Throttled), (599, RetryLater)],
)
def test_the_status_decides_where_the_body_says_nothing(status, kind):
    assert isinstance(classify(status, {}, b"<html>gateway</html>"), kind)


@pytest.mark.parametrize(
    "body",
    [b"", b"  \n\n", b"<html>", b"null", b"[]", b"3", b"{}", b'{"choices": null}', b'{"choices": []}']
    + [b'{"choices": [null]}', b'{"choices": [{"message": null, "finish_reason": "stop"}]}', b"\xff\xfe"]
    + [b'{"choices": [{"message": {"content": null}, "finish_reason": null}]}']
    + [b'{"choices": [{"message": {"content": " \\n"}, "finish_reason": "stop"}]}', b'{"error": {"message": "x"}}'],
)
def test_a_200_without_an_answer_is_no_success(body):
    assert isinstance(classify(200, {}, body), RetryLater)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(
        ["error", "choices", "message", "content", "usage", "code", "metadata", "raw", "availability", "cost",
         "retryable", "retry_after", "headers", "X-RateLimit-Reset", "finish_reason", "prompt_tokens", "data"]
    ) | st.text(), inner),
    max_leaves=20,
)  # fmt: skip
STATUSES = st.sampled_from([200, 201, 400, 401, 402, 403, 404, 408, 429, 500, 503, 529, 999])
HEADERS = st.dictionaries(st.sampled_from(["retry-after", "retry-after-ms", "x-ratelimit-reset"]), st.text())
URLS = st.sampled_from(["", "/v1/chat/completions", "/v1/embeddings", "/v1/responses", "/v1/completions"])


@given(STATUSES, HEADERS, st.binary() | JSON.map(lambda value: json.dumps(value).encode()), URLS)
def test_no_bytes_make_it_raise(status, headers, body, url):
    assert isinstance(classify(status, headers, body, url), Answer | Steer)
