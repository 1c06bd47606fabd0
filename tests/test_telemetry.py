"""What a worker tells OpenTelemetry: a real worker exports to a receiver beside it."""

from __future__ import annotations

import json
import signal
import sys
import time
from datetime import datetime

import forked
import pytest
from listening_server import Reply, completion, failure, listening_server
from otlp_receiver import Receiver, Span, otlp_receiver
from processes import Bench, bench, wait_for

from batchq.errors import ConfigurationError
from batchq.telemetry import find_observer
from batchq.telemetry.exporting import FLUSH_SECONDS, Exporters, exporters_of, exporting

PROMPT = "the planted prompt about Wilhelmina's blue bicycle"
ANSWER = "the planted answer about Konstantin's wooden ladder"
KEY = "sk-plantedkey0123456789"


@pytest.fixture
def place(tmp_path):
    with bench(tmp_path) as made:
        # As a host may have it set for all its processes.
        made.environment = {name: value for name, value in made.environment.items() if not name.startswith("OTEL_")}
        yield made


def enqueue(place: Bench, prompts: list[str], *options: str, batch: str = "demo") -> None:
    (place.directory / "prompts.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    done = place.run("enqueue", "prompts.jsonl", "--batch", batch, *options)
    assert done.returncode == 0, done.stderr


def answer(heard) -> Reply:
    if "refused" in heard.prompt:
        return failure(400, f"Invalid: {heard.prompt}")
    return completion(ANSWER, usage={"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10})


def by_position(receiver: Receiver, kind: str) -> dict[int, Span]:
    consumers = {span.id: span for span in receiver.spans if span.kind == "CONSUMER"}
    return {
        (span if kind == "CONSUMER" else consumers[span.parent]).attributes["batchq.position"]: span
        for span in receiver.spans
        if span.kind == kind
    }


def test_a_worker_exports_a_span_for_each_attempt_and_the_measures_of_its_calls(place):
    with listening_server(answer) as server, otlp_receiver() as receiver:
        enqueue(place, [f"{PROMPT}: fine", f"{PROMPT}: refused"], "--model", "m")
        done = place.run(
            "worker", "--base-url", server.base_url, "--until-empty", "--log-level", "debug",
            env={"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url, "OPENAI_API_KEY": KEY},
        )  # fmt: skip
        port = int(server.base_url.rpartition(":")[2].removesuffix("/v1"))
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    (started,) = [line for line in lines if line["event"] == "telemetry.started"]
    assert (started["traces"], started["metrics"]) == ("otlp_proto_http", "otlp_proto_http")
    assert {resource["service.name"] for resource in receiver.resources} == {"batchq"}

    jobs, calls = by_position(receiver, "CONSUMER"), by_position(receiver, "CLIENT")
    assert [jobs[0].name, calls[0].name] == ["process demo", "chat m"]
    common = {
        "messaging.system": "batchq",
        "messaging.operation.type": "process",
        "messaging.operation.name": "process",
    }
    assert jobs[0].attributes.items() >= {
        **common, "messaging.destination.name": "demo", "batchq.batch": "demo", "batchq.position": 0,
        "batchq.attempt": 1, "batchq.outcome": "succeeded", "batchq.lane": f"openrouter {server.base_url} m",
    }.items()  # fmt: skip
    assert "error.type" not in jobs[0].attributes
    assert (jobs[0].trace, jobs[0].parent) == (calls[0].trace, "")
    assert jobs[0].trace != jobs[1].trace
    model = {
        "gen_ai.operation.name": "chat", "gen_ai.request.model": "m", "gen_ai.provider.name": "openai",
        "server.address": "127.0.0.1", "server.port": port,
    }  # fmt: skip
    usage = {"gen_ai.usage.input_tokens": 7, "gen_ai.usage.output_tokens": 3}
    assert calls[0].attributes == model | usage | {"gen_ai.response.finish_reasons": ["stop"]}
    assert calls[1].attributes == model | {"error.type": "bad_request", "http.response.status_code": 400}
    assert (jobs[1].attributes["batchq.outcome"], jobs[1].attributes["error.type"]) == ("failed", "bad_request")
    assert [span.status.get("code") for span in (jobs[0], jobs[1], calls[1])] == [None, *["STATUS_CODE_ERROR"] * 2]

    assert sorted(receiver.points) == [
        "gen_ai.client.operation.duration", "gen_ai.client.token.usage", "messaging.process.duration",
    ]  # fmt: skip
    tokens = {point.attributes["gen_ai.token.type"]: point for point in receiver.points["gen_ai.client.token.usage"]}
    assert {kind: (point.count, point.sum) for kind, point in tokens.items()} == {"input": (1, 7), "output": (1, 3)}
    assert tokens["input"].bounds[:3] == (1, 4, 16)
    durations = receiver.points["gen_ai.client.operation.duration"]
    assert {point.attributes.get("error.type"): point.count for point in durations} == {None: 1, "bad_request": 1}
    processed = receiver.points["messaging.process.duration"]
    assert sum(point.count for point in processed) == 2
    assert all(point.attributes["messaging.destination.name"] == "demo" for point in processed)
    for body in receiver.bodies:
        for secret in (PROMPT, ANSWER, KEY, "planted"):
            assert secret.encode() not in body


OWN_SPANS = """
import asyncio
from opentelemetry import trace

async def answer(prompt):
    with trace.get_tracer("mine").start_as_current_span("my step"):
        await asyncio.sleep(0.01)
        if "slow" in prompt:
            await asyncio.sleep(60)
        if "bad" in prompt:
            raise KeyError(prompt)

def blocking(prompt):
    with trace.get_tracer("mine").start_as_current_span("my thread"):
        return 1
"""


def test_what_a_worker_traces_itself_is_a_part_of_its_attempt(place):
    (place.directory / "mine.py").write_text(OWN_SPANS)
    enqueue(place, ["a", "b", "bad"], "--worker", "mine.py:answer", "--max-attempts", "2")
    enqueue(place, ["a"], "--worker", "mine.py:blocking", batch="threads")
    with otlp_receiver() as receiver:
        done = place.run(
            "worker", "--worker", "mine.py:answer", "--worker", "mine.py:blocking", "--until-empty", "-c", "2",
            env={"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url, "OTEL_SERVICE_NAME": "labelling"},
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {resource["service.name"] for resource in receiver.resources} == {"labelling"}
    assert {span.attributes["batchq.lane"] for span in receiver.spans if span.name == "process threads"} == {
        "mine.py:blocking https://openrouter.ai/api/v1"
    }
    jobs = {span.id: span for span in receiver.spans if span.kind == "CONSUMER"}
    assert sorted(
        (span.attributes["batchq.position"], span.attributes["batchq.attempt"], span.attributes["batchq.outcome"])
        for span in jobs.values()
        if span.name == "process demo"
    ) == [(0, 1, "succeeded"), (1, 1, "succeeded"), (2, 1, "retry"), (2, 2, "retry")]
    own = [span for span in receiver.spans if span.kind == "INTERNAL"]
    assert len({span.parent for span in own}) == 5
    for span in own:
        assert jobs[span.parent].name == ("process threads" if span.name == "my thread" else "process demo")
        assert jobs[span.parent].trace == span.trace
    assert not [span for span in receiver.spans if span.kind == "CLIENT"], "no model was asked"


def test_an_attempt_that_is_given_back_is_told_as_released(place):
    (place.directory / "mine.py").write_text(OWN_SPANS)
    enqueue(place, ["slow"], "--worker", "mine.py:answer")
    with otlp_receiver() as receiver:
        worker = place.start(
            "worker", "--worker", "mine.py:answer", "--drain-timeout", "0",
            env={"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url, "OTEL_METRICS_EXPORTER": "none"},
        )  # fmt: skip
        wait_for(lambda: place.count("inflight"), "the call")
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(60) == 75
        (job,) = by_position(receiver, "CONSUMER").values()
    assert job.attributes["batchq.outcome"] == "released"
    assert job.status == {}
    assert receiver.points == {}


def test_a_collector_that_hangs_holds_the_end_of_a_worker_for_a_few_seconds(place):
    (place.directory / "mine.py").write_text("def answer(prompt):\n    return 1\n")
    enqueue(place, ["a"], "--worker", "mine.py:answer")
    with otlp_receiver(seconds=60) as receiver:
        done = place.run(
            "worker", "--worker", "mine.py:answer", "--until-empty",
            env={"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url},
        )  # fmt: skip
        ended = time.time()
    assert done.returncode == 0, done.stderr
    assert place.count("done") == 1
    assert len(receiver.bodies) == 2, "traces and metrics"
    stopped = datetime.fromisoformat(json.loads(done.stderr.splitlines()[-1])["ts"]).timestamp()
    assert FLUSH_SECONDS * 0.9 < ended - stopped < 2 * FLUSH_SECONDS, "both at once"


def test_without_the_sdk_a_worker_says_so_and_works(place):
    (place.directory / "mine.py").write_text("def answer(prompt):\n    return 1\n")
    enqueue(place, ["a"], "--worker", "mine.py:answer")
    # As if `batchq[otel]` had not been installed.
    script = """
import sys
sys.modules["opentelemetry.sdk"] = sys.modules["opentelemetry.sdk.metrics"] = None
from batchq.cli import main
main()
"""
    done = forked.run(
        [sys.executable, "-c", script, "worker", "--worker", "mine.py:answer", "--until-empty"],
        cwd=place.directory, text=True, timeout=60,
        env=place.environment | {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert place.count("done") == 1
    (line,) = [line for line in map(json.loads, done.stderr.splitlines()) if line["event"].startswith("telemetry")]
    assert line["event"] == "telemetry.unavailable"
    assert "pip install 'batchq[otel]'" in line["reason"]


def test_an_exporter_that_is_not_installed_is_a_configuration_error(place):
    done = place.run("worker", "--until-empty", env={"OTEL_TRACES_EXPORTER": "pigeon"})
    assert done.returncode == 78
    assert "OTEL_TRACES_EXPORTER asks for the exporter 'pigeon'" in json.loads(done.stderr.splitlines()[-1])["reason"]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, (None, None)),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a"}, ("otlp_proto_http", "otlp_proto_http")),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://a"}, ("otlp_proto_http", None)),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a", "OTEL_SDK_DISABLED": "TRUE"}, (None, None)),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a", "OTEL_TRACES_EXPORTER": "none"}, (None, "otlp_proto_http")),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "h", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, ("otlp_proto_grpc",) * 2),
        ({"OTEL_METRICS_EXPORTER": "console"}, (None, "console")),
    ],
)
def test_the_standard_variables_say_what_takes_what(variables, expected):
    assert exporters_of(variables) == Exporters(*expected)


def test_where_nothing_is_set_up_nothing_is_observed_and_nothing_imported():
    script = """
import sys
import batchq.slots, batchq.telemetry, batchq.telemetry.exporting
assert batchq.telemetry.find_observer("r") is None
with batchq.telemetry.exporting.exporting({}):
    pass
print([name for name in sys.modules if name.startswith("opentelemetry")])
"""
    import subprocess

    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout == "[]\n"
    assert find_observer("r") is None
    with pytest.raises(ConfigurationError, match="pigeon"), exporting({"OTEL_METRICS_EXPORTER": "pigeon"}):
        pass
