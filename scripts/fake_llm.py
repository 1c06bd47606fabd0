#!/usr/bin/env python3
"""A fake OpenAI-compatible provider that answers from the prompt, misbehaves on demand and keeps a ledger.

    scripts/fake_llm.py --port 8080 --latency 0.2 --error-mix 429:0.1,hang:0.01

Tests hold the queue to what the ledger says was called; benchmarks use it as a provider that costs
nothing. It needs only the standard library.

A call is judged in this order: its key, the directives in its prompt, credits, the Retry-After window,
rate and calls in flight, the error mix. The directives are [[status 400]], [[fixture err_401_bad_key]],
[[sleep 2.5]], [[hang]], [[drop]], [[pad]], and [[fail 2 500]], which fails the first two calls of that
prompt; its last word may be any name known to the error mix.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import importlib
import itertools
import json
import math
import random
import re
import signal
import sys
import time
from array import array
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple, cast
from urllib.parse import parse_qs

PROMPT_PRICE, COMPLETION_PRICE = 1.5e-7, 6e-7  # dollars per token
PAD_INTERVAL = 0.2
FIXTURES = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "llm"
CREATED = 1795430400


# What it does: the options, each of them a command-line flag and a key of POST /behaviour.


def option(default: object, kind: type, text: str) -> Any:  # noqa: ANN401 - as dataclasses.field
    return field(default=default, metadata={"kind": kind, "help": text})


@dataclass(frozen=True, slots=True)
class Behaviour:
    answer: str = option("echo", str, "echo, upper, json or fixed:TEXT")
    latency: float = option(0.0, float, "seconds before an answer")
    spread: float = option(0.0, float, "latency varies by so much, up or down")
    slow_fraction: float = option(0.0, float, "share of stragglers")
    slow_latency: float = option(0.0, float, "seconds before a straggler's answer")
    error_mix: str = option("", str, "NAME:SHARE,...: a status, fixture, hang, drop, pad, whitespace or html")
    error_calls: int | None = option(None, int, "the mix applies to the first so many calls of each prompt")
    retry_after: float | None = option(None, float, "seconds in the Retry-After header of a 429 or 503")
    strict_window: bool = option(False, bool, "refuse every call until Retry-After is over")
    rate: float | None = option(None, float, "calls per second")
    burst: float | None = option(None, float, "calls at once under --rate (default: one second's worth)")
    max_in_flight: int | None = option(None, int, "calls in flight")
    require_key: str | None = option(None, str, "the only API key that is let in")
    credits: float | None = option(None, float, "dollars that can be spent")
    no_cost: bool = option(False, bool, "leave the cost out of usage")
    seed: int = option(0, int, "seed of every random choice")
    fixtures: str = option(str(FIXTURES), str, "directory of recorded answers")

    def changed(self, changes: Mapping[str, object]) -> Behaviour:
        kinds = {each.name: (each.metadata["kind"], each.default) for each in fields(self)}
        values: dict[str, Any] = {}
        for key, value in changes.items():
            name = key.replace("-", "_")
            if name not in kinds:
                raise ValueError(f"no option {key!r}; there are {', '.join(kinds)}")
            kind, default = kinds[name]
            wanted = (int, float) if kind is float else kind
            of_kind = isinstance(value, wanted) and (kind is bool or not isinstance(value, bool))
            if not of_kind and not (value is None and default is None):
                raise ValueError(f"{key} must be of type {kind.__name__}, not {value!r}")
            values[name] = None if value is None else kind(value)
        return replace(self, **values)


def parse_mix(text: str) -> list[tuple[str, float]]:
    """Name and upper bound of each entry's slice of [0, 1)."""
    bounds: list[tuple[str, float]] = []
    total = 0.0
    for entry in filter(None, text.split(",")):
        name, _, share = entry.strip().partition(":")
        total += float(share)
        bounds.append((name, total))
    if total > 1 + 1e-9:
        raise ValueError(f"the shares of the error mix add up to {total:g}, more than 1")
    return bounds


# What it says: requests, replies and their bodies.


class Request(NamedTuple):
    method: str
    path: str
    query: str
    key: str
    body: bytes
    last: bool


class Reply(NamedTuple):
    status: int = 200
    body: bytes = b""
    headers: bytes = b""
    manner: str = "answer"  # or hang, drop, pad
    success: bool = False
    retry_after: float | None = None


class Completion(NamedTuple):
    number: int
    model: str
    text: str
    prompt_tokens: int
    completion_tokens: int
    cost: float | None


JSON_HEADER = b"content-type: application/json\r\n"
OK_HEAD = b"HTTP/1.1 200 OK\r\n" + JSON_HEADER + b"content-length: "
CHUNKED_HEAD = b"HTTP/1.1 200 OK\r\n" + JSON_HEADER + b"transfer-encoding: chunked\r\n\r\n"
SPECIAL = {
    "hang": Reply(manner="hang"),
    "drop": Reply(manner="drop"),
    "pad": Reply(manner="pad"),
    "whitespace": Reply(body=b"\n\n\n\n", headers=JSON_HEADER),
    "html": Reply(
        body=b"<!DOCTYPE html><html><head><title>Just a moment...</title></head><body></body></html>",
        headers=b"content-type: text/html; charset=utf-8\r\n",
    ),
}
ERRORS: dict[int, tuple[str, dict[str, object]]] = {
    400: ("Input validation failed", {"error_type": "invalid_request"}),
    401: ("No auth credentials found", {}),
    402: (
        "This request requires more credits, or fewer max_tokens.",
        {"limit_source": "openrouter_credits", "error_type": "payment_required"},
    ),
    403: ("The input was flagged", {"reasons": ["violence"], "error_type": "permission_denied"}),
    404: ("No endpoints found for this model", {"error_type": "not_found"}),
    408: ("Operation timed out. Please try again later.", {}),
    413: ("Request body too large", {"error_type": "payload_too_large"}),
    422: ("The request could not be processed", {"error_type": "unprocessable"}),
    429: ("Rate limit exceeded", {"error_type": "rate_limit_exceeded"}),
    500: ("Internal Server Error", {"error_type": "server"}),
    502: ("Provider returned error", {"raw": "upstream connect error", "error_type": "provider_unavailable"}),
    503: ("No available provider meets your routing requirements", {"error_type": "provider_overloaded"}),
    504: ("The provider timed out", {"error_type": "timeout"}),
    524: ("Edge network timeout", {}),
    529: ("Provider overloaded", {"error_type": "provider_overloaded"}),
}
MODEL = {
    "id": "openai/gpt-4o-mini",
    "object": "model",
    "created": CREATED,
    "name": "Fake GPT-4o mini",
    "context_length": 128000,
    "pricing": {"prompt": "0.00000015", "completion": "0.0000006"},
}


def json_reply(value: object, status: int = 200) -> Reply:
    return Reply(status, json.dumps(value).encode(), JSON_HEADER)


def error_reply(status: int, message: str = "", retry_after: float | None = None, header: str = "") -> Reply:
    usual, metadata = ERRORS.get(status, (phrase(status), {}))
    error = {"message": message or usual, "code": status, "metadata": {"provider_name": None, **metadata}}
    reply = json_reply({"error": error, "user_id": "user_fake"}, status)
    if retry_after is None:
        return reply
    line = f"retry-after: {header or format(retry_after, 'g')}\r\n".encode()
    return reply._replace(headers=JSON_HEADER + line, retry_after=retry_after)


def phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"


def fixture_reply(path: Path) -> Reply:
    recorded = json.loads(path.read_text())
    status, headers = recorded["status"], recorded["headers"]
    body = recorded["raw_body"] if "raw_body" in recorded else json.dumps(recorded["body"])
    retry_after = headers.get("retry-after", "")
    return Reply(
        status=status,
        body=body.encode(),
        headers="".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode(),
        success=status == 200 and not path.stem.startswith("err"),
        retry_after=float(retry_after) if retry_after.replace(".", "").isdigit() else None,
    )


def encode(reply: Reply) -> bytes:
    if reply.success and not reply.headers:
        return b"%b%d\r\n\r\n%b" % (OK_HEAD, len(reply.body), reply.body)
    head = f"HTTP/1.1 {reply.status} {phrase(reply.status)}\r\ncontent-length: {len(reply.body)}\r\n"
    return head.encode() + reply.headers + b"\r\n" + reply.body


def usage(done: Completion, names: tuple[str, str] = ("prompt_tokens", "completion_tokens")) -> str:
    counts = f'"{names[0]}":{done.prompt_tokens},"{names[1]}":{done.completion_tokens}'
    counts += f',"total_tokens":{done.prompt_tokens + done.completion_tokens}'
    return f"{{{counts}}}" if done.cost is None else f'{{{counts},"cost":{done.cost!r},"is_byok":false}}'


def chat_body(done: Completion) -> bytes:
    # Written out instead of json.dumps of a nested dict: this is most of the work of a call.
    return (
        f'{{"id":"gen-{CREATED}-{done.number:020}","provider":"Fake","model":{json.dumps(done.model)},'
        f'"object":"chat.completion","created":{CREATED},"choices":[{{"index":0,"logprobs":null,'
        f'"finish_reason":"stop","native_finish_reason":"stop","message":{{"role":"assistant",'
        f'"content":{json.dumps(done.text)},"refusal":null,"reasoning":null}}}}],"usage":{usage(done)}}}'
    ).encode()


def completions_body(done: Completion) -> bytes:
    choice = {"index": 0, "text": done.text, "logprobs": None, "finish_reason": "stop"}
    return body_of(done, "text_completion", choices=[choice], usage=json.loads(usage(done)))


def responses_body(done: Completion) -> bytes:
    content = [{"type": "output_text", "text": done.text, "annotations": []}]
    message = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed"}
    spent = json.loads(usage(done, ("input_tokens", "output_tokens")))
    return body_of(
        done,
        "response",
        created_at=CREATED,
        status="completed",
        output=[message | {"content": content}],
        usage=spent,
    )


def embeddings_body(done: Completion) -> bytes:
    data = [{"object": "embedding", "index": 0, "embedding": [chance(done.text, axis) for axis in range(8)]}]
    return body_of(done, "list", data=data, usage=json.loads(usage(done)))


def body_of(done: Completion, kind: str, **rest: object) -> bytes:
    name = f"gen-{CREATED}-{done.number:020}"
    return json.dumps({"id": name, "object": kind, "created": CREATED, "model": done.model} | rest).encode()


def chance(*of: object) -> float:
    """A number in [0, 1) that is always the same for the same values."""
    digest = hashlib.blake2b(repr(of).encode("utf-8", "replace"), digest_size=6).digest()
    return int.from_bytes(digest, "big") / 2**48


def text_of(content: Any) -> str:  # noqa: ANN401 - JSON
    if isinstance(content, str):
        return content
    return "".join(part if isinstance(part, str) else part.get("text", "") for part in content)


def last_user_text(messages: Any) -> str:  # noqa: ANN401 - JSON
    if isinstance(messages, str):
        return messages
    return next((text_of(each["content"]) for each in reversed(messages) if each["role"] == "user"), "")


class Endpoint(NamedTuple):
    prompt: Callable[[Any], str]
    body: Callable[[Completion], bytes]


ENDPOINTS = {
    "/chat/completions": Endpoint(lambda payload: last_user_text(payload["messages"]), chat_body),
    "/completions": Endpoint(lambda payload: text_of(payload["prompt"]), completions_body),
    "/responses": Endpoint(lambda payload: last_user_text(payload["input"]), responses_body),
    "/embeddings": Endpoint(lambda payload: text_of(payload["input"]), embeddings_body),
}


# What it remembers and how it decides.

DIRECTIVE = re.compile(r"\[\[(sleep|status|fixture|fail|hang|drop|pad)\b *([^\]]*)\]\]")


class Call:
    """One call, from the moment its request is complete until it is answered or given up."""

    __slots__ = ("admitted", "delay", "ledger", "nth", "number", "prompt", "reply")

    def __init__(self, ledger: Ledger, number: int, prompt: str, nth: int) -> None:
        self.ledger = ledger
        self.number = number
        self.prompt = prompt
        self.nth = nth
        self.admitted = False
        self.delay = 0.0
        self.reply = SPECIAL["hang"]


class Peak:
    """The most arrivals in any span of so many seconds."""

    def __init__(self, span: float) -> None:
        self.span = span
        self.most = 0
        self._first = 0

    def note(self, arrivals: array[float], now: float) -> None:
        while arrivals[self._first] <= now - self.span:
            self._first += 1
        self.most = max(self.most, len(arrivals) - self._first)


class Ledger:
    """Every call that came in; at any moment calls == sum(by_status) + cancelled + in_flight."""

    def __init__(self) -> None:
        self.started_at = time.time()
        self.arrivals = array("d")
        self.statuses = array("h")  # 0: no answer, at least not yet
        self.prompts: Counter[str] = Counter()
        self.answered_prompts: Counter[str] = Counter()
        self.by_status: Counter[str] = Counter()
        self.answered = self.cancelled = self.rejected = self.inside_retry_after = 0
        self.in_flight = self.peak_in_flight = 0
        self.cost = 0.0
        self._second, self._minute = Peak(1), Peak(60)

    def arrive(self, prompt: str, now: float) -> Call:
        self.prompts[prompt] = nth = self.prompts.get(prompt, 0) + 1
        self.arrivals.append(now)
        self.statuses.append(0)
        self._second.note(self.arrivals, now)
        self._minute.note(self.arrivals, now)
        return Call(self, len(self.arrivals) - 1, prompt, nth)

    def admit(self, call: Call) -> None:
        call.admitted = True
        self.in_flight += 1
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)

    def settle(self, call: Call, outcome: str) -> None:
        """Record how a call ended: with its reply's status, as `drop` or as `cancelled`."""
        self.in_flight -= call.admitted
        if outcome == "cancelled":
            self.cancelled += 1
            return
        self.by_status[outcome] += 1
        if outcome == "drop":
            return
        self.statuses[call.number] = call.reply.status
        self.rejected += outcome == "429"
        if call.reply.success:
            self.answered += 1
            self.answered_prompts[call.prompt] = self.answered_prompts.get(call.prompt, 0) + 1

    def report(self, *, prompts: bool, times: bool) -> dict[str, object]:
        report: dict[str, object] = {
            "calls": len(self.arrivals),
            "answered": self.answered,
            "by_status": self.by_status,
            "rejected": self.rejected,
            "inside_retry_after": self.inside_retry_after,
            "cancelled": self.cancelled,
            "in_flight": self.in_flight,
            "peak_in_flight": self.peak_in_flight,
            "per_second": self._second.most,
            "per_minute_peak": self._minute.most,
            "cost": self.cost,
            "started_at": self.started_at,
        }
        if prompts:
            report |= {"prompts": self.prompts, "answered_prompts": self.answered_prompts}
        if times:
            report["times"] = list(zip(self.arrivals, self.statuses, strict=True))
        return report


class TokenBucket:
    def __init__(self, rate: float, burst: float) -> None:
        self._rate, self._burst, self._tokens = rate, burst, burst
        self._filled_at = time.monotonic()

    def take(self, now: float) -> bool:
        self._tokens = min(self._burst, self._tokens + (now - self._filled_at) * self._rate)
        self._filled_at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class FakeProvider:
    """Decides how each call ends, and writes it in the ledger."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self._fixtures: dict[str, Reply] = {}
        self._answers = itertools.count(1)
        self._adopt(behaviour)
        self.reset()

    def reset(self) -> None:
        """Start afresh under the present behaviour; calls still in flight are forgotten."""
        self.ledger = Ledger()
        self._random = random.Random(self.behaviour.seed)
        self._window_until = 0.0
        self._fill_bucket()

    def behave(self, changes: Mapping[str, object]) -> None:
        before = self.behaviour
        self._adopt(before.changed(changes))
        if (before.rate, before.burst) != (self.behaviour.rate, self.behaviour.burst):
            self._fill_bucket()
        if before.seed != self.behaviour.seed:
            self._random = random.Random(self.behaviour.seed)

    def receive(self, endpoint: Endpoint, request: Request) -> Call:
        now = time.monotonic()
        try:
            payload = json.loads(request.body)
            prompt, model = endpoint.prompt(payload), str(payload.get("model", ""))
            unsupported = "this provider does not stream" if payload.get("stream") else ""
        except (ValueError, LookupError, TypeError, AttributeError):
            prompt, model, unsupported = "", "", "the request is not what this endpoint expects"
        call = self.ledger.arrive(prompt, now)
        self.ledger.inside_retry_after += now < self._window_until
        if unsupported:
            call.reply = error_reply(400, unsupported)
        else:
            call.reply = self._decide(call, endpoint, request.key, model, now)
        return call

    def settle(self, call: Call, outcome: str) -> None:
        call.ledger.settle(call, outcome)
        if call.reply.retry_after and outcome != "cancelled":
            self._window_until = max(self._window_until, time.monotonic() + call.reply.retry_after)

    def control(self, request: Request) -> Reply:
        match request.method, request.path:
            case "GET", "/health":
                return json_reply({"status": "ok"})
            case "GET", "/ledger":
                asked = parse_qs(request.query)
                prompts, times = (asked.get(name) == ["1"] for name in ("prompts", "times"))
                return json_reply(self.ledger.report(prompts=prompts, times=times))
            case "POST", "/ledger/reset":
                self.reset()
                return json_reply({"status": "ok"})
            case "GET", "/behaviour":
                return json_reply(asdict(self.behaviour))
            case "POST", "/behaviour":
                return self._change_behaviour(request.body)
            case "GET", "/models":
                return json_reply({"object": "list", "data": [MODEL]})
            case "GET", "/key":
                return self._unauthorised(request.key) or json_reply({"data": self._key()})
        return error_reply(404, f"no route {request.method} {request.path}")

    def _change_behaviour(self, body: bytes) -> Reply:
        try:
            changes = json.loads(body)
            if not isinstance(changes, dict):
                return error_reply(400, "the options are a JSON object")
            self.behave(changes)
        except ValueError as error:
            return error_reply(400, str(error))
        return json_reply(asdict(self.behaviour))

    def _adopt(self, behaviour: Behaviour) -> None:
        if behaviour.answer not in {"echo", "upper", "json"} and not behaviour.answer.startswith("fixed:"):
            raise ValueError(f"answer must be echo, upper, json or fixed:TEXT, not {behaviour.answer!r}")
        before, self.behaviour = self.behaviour, behaviour
        try:
            self._mix = [(self._outcome(name), bound) for name, bound in parse_mix(behaviour.error_mix)]
        except ValueError:
            self.behaviour = before
            raise

    def _fill_bucket(self) -> None:
        rate, burst = self.behaviour.rate, self.behaviour.burst
        self._bucket = None if rate is None else TokenBucket(rate, max(1.0, rate) if burst is None else burst)

    def _decide(self, call: Call, endpoint: Endpoint, key: str, model: str, now: float) -> Reply:
        if refused := self._unauthorised(key):
            return refused
        sleep, outcome = self._directed(call) if "[[" in call.prompt else (0.0, None)
        if outcome is None and (refused := self._refused(now)):
            return refused
        self.ledger.admit(call)
        call.delay = self._latency() + sleep
        return outcome or self._mixed(call) or self._answer(call, endpoint, model)

    def _unauthorised(self, key: str) -> Reply | None:
        wanted = self.behaviour.require_key
        return error_reply(401) if wanted is not None and key != wanted else None

    def _directed(self, call: Call) -> tuple[float, Reply | None]:
        """Seconds to sleep, and the outcome that the prompt asks for."""
        sleep, outcome = 0.0, None
        for name, words in DIRECTIVE.findall(call.prompt):
            try:
                match name, *words.split():
                    case "sleep", seconds:
                        sleep += float(seconds)
                    case "fail", times, kind:
                        outcome = self._outcome(kind) if call.nth <= int(times) else outcome
                    case (("status" | "fixture"), kind) | (("hang" | "drop" | "pad") as kind,):
                        outcome = self._outcome(kind)
                    case _:
                        outcome = error_reply(400, f"[[{name} {words}]]: not that many words")
            except ValueError as error:
                outcome = error_reply(400, f"[[{name} {words}]]: {error}")
        return sleep, outcome

    def _refused(self, now: float) -> Reply | None:
        options, remaining = self.behaviour, self._window_until - now
        if options.credits is not None and self.ledger.cost >= options.credits:
            return error_reply(402)
        if options.strict_window and remaining > 0:
            whole = options.retry_after is None or options.retry_after.is_integer()
            return error_reply(429, "", remaining, str(math.ceil(remaining)) if whole else f"{remaining:.3f}")
        too_many = options.max_in_flight is not None and self.ledger.in_flight >= options.max_in_flight
        if too_many or (self._bucket and not self._bucket.take(now)):
            return error_reply(429, "", options.retry_after)
        return None

    def _latency(self) -> float:
        options = self.behaviour
        if options.slow_fraction and self._random.random() < options.slow_fraction:
            return options.slow_latency
        if options.spread:
            return max(0.0, options.latency + self._random.uniform(-options.spread, options.spread))
        return options.latency

    def _mixed(self, call: Call) -> Reply | None:
        limit = self.behaviour.error_calls
        if not self._mix or (limit is not None and call.nth > limit):
            return None
        # Drawn from the prompt, not from a sequence, so that the order of arrival changes nothing.
        drawn = chance(self.behaviour.seed, call.nth, call.prompt)
        return next((outcome for outcome, bound in self._mix if drawn < bound), None)

    def _outcome(self, name: str) -> Reply:
        if name in SPECIAL:
            return SPECIAL[name]
        if name.isdigit():
            status = int(name)
            if not 400 <= status <= 599:
                raise ValueError(f"{status} is not the status of an error")
            return error_reply(status, "", self.behaviour.retry_after if status in {429, 503} else None)
        path = Path(self.behaviour.fixtures) / f"{name}.json"
        if not re.fullmatch(r"\w+", name) or not path.is_file():
            raise ValueError(f"no fixture {name!r} in {path.parent}")
        if str(path) not in self._fixtures:
            self._fixtures[str(path)] = fixture_reply(path)
        return self._fixtures[str(path)]

    def _answer(self, call: Call, endpoint: Endpoint, model: str) -> Reply:
        text = self._text(call.prompt)
        prompt_tokens, completion_tokens = max(1, len(call.prompt) // 4), max(1, len(text) // 4)
        cost = round(prompt_tokens * PROMPT_PRICE + completion_tokens * COMPLETION_PRICE, 12)
        self.ledger.cost += cost
        told = None if self.behaviour.no_cost else cost
        done = Completion(next(self._answers), model, text, prompt_tokens, completion_tokens, told)
        return Reply(body=endpoint.body(done), success=True)

    def _text(self, prompt: str) -> str:
        match self.behaviour.answer:
            case "echo":
                return f"echo: {prompt}"
            case "upper":
                return prompt.upper()
            case "json":
                return json.dumps({"echo": prompt})
            case fixed:
                return fixed.removeprefix("fixed:")

    def _key(self) -> dict[str, object]:
        limit, spent = self.behaviour.credits, self.ledger.cost
        remaining = None if limit is None else max(0.0, limit - spent)
        return {
            "label": "fake",
            "limit": limit,
            "limit_remaining": remaining,
            "limit_reset": None,
            "usage": spent,
            "is_free_tier": False,
        }


# How it talks: HTTP/1.1.


class RequestReader:
    """Cuts a stream of bytes into requests, wherever the bytes were split on their way."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._head: bytes | None = None
        self._length: int | None = None  # None: chunked
        self._chunks: list[bytes] = []
        self.expects_continue = False

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def next(self) -> Request | None:
        """The next complete request; ValueError if the bytes are not HTTP."""
        if self._head is None and not self._read_head():
            return None
        body = self._chunked_body() if self._length is None else self._take(self._length)
        if body is None:
            return None
        assert self._head is not None
        request = parse_request(self._head, body)
        self._head = None
        self.expects_continue = False
        return request

    def _read_head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return False
        self._head = self._take(end + 4)
        assert self._head is not None
        if header(self._head, b"transfer-encoding").lower() == b"chunked":
            self._length = None
        else:
            self._length = int(header(self._head, b"content-length") or b"0")
        self.expects_continue = header(self._head, b"expect").lower() == b"100-continue"
        return True

    def _take(self, size: int) -> bytes | None:
        if size < 0:
            raise ValueError("negative length")
        if len(self._buffer) < size:
            return None
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    def _chunked_body(self) -> bytes | None:
        while (end := self._buffer.find(b"\r\n")) >= 0:
            size = int(self._buffer[:end].partition(b";")[0], 16)
            if size == 0:
                return self._last_chunk(end)
            if len(self._buffer) < end + size + 4:
                return None
            self._chunks.append(bytes(self._buffer[end + 2 : end + 2 + size]))
            del self._buffer[: end + size + 4]
        return None

    def _last_chunk(self, end: int) -> bytes | None:
        # Trailers may follow the last chunk; without any, the blank line comes at once.
        finish = self._buffer.find(b"\r\n\r\n", end)
        if finish < 0:
            return None
        del self._buffer[: finish + 4]
        body = b"".join(self._chunks)
        self._chunks.clear()
        return body


def header(head: bytes, name: bytes) -> bytes:
    start = head.lower().find(b"\r\n%b:" % name)
    return b"" if start < 0 else head[start + len(name) + 3 : head.index(b"\r\n", start + 2)].strip()


def parse_request(head: bytes, body: bytes) -> Request:
    method, target, version = head[: head.index(b"\r\n")].decode("latin-1").split(" ")
    path, _, query = target.partition("?")
    connection = header(head, b"connection").lower()
    return Request(
        method=method,
        path=path.removeprefix("/api").removeprefix("/v1"),
        query=query,
        key=header(head, b"authorization").decode("latin-1").removeprefix("Bearer "),
        body=body,
        last=connection == b"close" or (version == "HTTP/1.0" and connection != b"keep-alive"),
    )


class Connection(asyncio.Protocol):
    """One client's connection: a request at a time, in the order they came."""

    def __init__(self, provider: FakeProvider, connections: set[Connection]) -> None:
        self._provider = provider
        self._connections = connections
        self._reader = RequestReader()
        self._transport: asyncio.Transport | None = None
        self._call: Call | None = None
        self._last = False
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one, but does not derive from it
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the signature of asyncio
        self._connections.discard(self)
        self._transport = None
        if self._timer:
            self._timer.cancel()
        if self._call:
            self._provider.settle(self._call, "cancelled")

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        if self._call is None:
            self._serve()

    def abort(self) -> None:
        if self._transport:
            self._transport.abort()

    def _serve(self) -> None:
        try:
            while self._call is None and self._transport and (request := self._reader.next()):
                self._last = request.last
                self._handle(request)
        except ValueError:
            self._last = True
            self._write(encode(error_reply(400, "this is not HTTP")))
        if self._reader.expects_continue and self._transport:
            self._reader.expects_continue = False
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _handle(self, request: Request) -> None:
        endpoint = ENDPOINTS.get(request.path)
        if endpoint is None or request.method != "POST":
            self._write(encode(self._provider.control(request)))
            return
        self._call = call = self._provider.receive(endpoint, request)
        if call.delay > 0:
            self._timer = self._loop.call_later(call.delay, self._finish_later)
        else:
            self._finish()

    def _finish_later(self) -> None:
        self._finish()
        if self._call is None:
            self._serve()

    def _finish(self) -> None:
        call = self._call
        assert call is not None
        match call.reply.manner:
            case "answer":
                self._call = None
                self._provider.settle(call, str(call.reply.status))
                self._write(encode(call.reply))
            case "drop":
                self._call = None
                self._provider.settle(call, "drop")
                self._last = True
                self._write(b"")
            case "pad":
                self._pad(CHUNKED_HEAD)

    def _pad(self, data: bytes = b"1\r\n\n\r\n") -> None:
        if self._transport:
            self._transport.write(data)
            self._timer = self._loop.call_later(PAD_INTERVAL, self._pad)

    def _write(self, data: bytes) -> None:
        if self._transport is None:
            return
        self._transport.write(data)
        if self._last:
            self._transport.close()
            self._transport = None


# How it runs.


async def serve(provider: FakeProvider, port: int) -> None:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, stopped.set)
    connections: set[Connection] = set()
    server = await loop.create_server(lambda: Connection(provider, connections), "127.0.0.1", port, backlog=4096)
    print(f"listening on http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await stopped.wait()
    server.close()
    for connection in list(connections):
        connection.abort()


def parse_arguments() -> argparse.Namespace:
    summary = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(description=summary, allow_abbrev=False)
    parser.add_argument("--port", type=int, default=8080, help="0 picks a free one (default 8080)")
    parser.add_argument("--uvloop", action="store_true", help="use uvloop if it is installed")
    for each in fields(Behaviour):
        flag = "--" + each.name.replace("_", "-")
        kind, text = each.metadata["kind"], each.metadata["help"]
        if kind is bool:
            parser.add_argument(flag, action="store_true", help=text)
        else:
            parser.add_argument(flag, type=kind, default=each.default, help=text, metavar=kind.__name__)
    return parser.parse_args()


def raise_file_limit() -> None:
    # Some systems allow 256 open files, fewer than a benchmark has connections.
    if sys.platform != "win32":
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


def new_event_loop(*, uvloop: bool) -> asyncio.AbstractEventLoop:
    loops: Any = asyncio
    if uvloop:
        with contextlib.suppress(ImportError):
            loops = importlib.import_module("uvloop")
    loop: asyncio.AbstractEventLoop = loops.new_event_loop()
    return loop


def main() -> None:
    arguments = vars(parse_arguments())
    port, uvloop = arguments.pop("port"), arguments.pop("uvloop")
    try:
        provider = FakeProvider(Behaviour(**arguments))
    except ValueError as error:
        sys.exit(f"fake_llm.py: {error}")
    raise_file_limit()
    with asyncio.Runner(loop_factory=lambda: new_event_loop(uvloop=uvloop)) as runner:
        runner.run(serve(provider, port))


if __name__ == "__main__":
    main()
