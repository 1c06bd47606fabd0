"""Takes what OpenTelemetry exports over HTTP, as a collector does, and remembers it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Span:
    """A span, with its attributes as Python has them."""

    name: str
    kind: str
    trace: str
    id: str
    parent: str
    attributes: dict[str, Any]
    status: dict[str, Any]
    seconds: float


@dataclass(frozen=True)
class Point:
    """A point of a histogram."""

    attributes: dict[str, Any]
    count: int
    sum: float
    bounds: tuple[float, ...]


@dataclass
class Receiver:
    """Where it listens, and what came."""

    url: str
    bodies: list[bytes] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    points: dict[str, list[Point]] = field(default_factory=dict)
    resources: list[dict[str, Any]] = field(default_factory=list)

    def take_traces(self, body: bytes) -> None:
        """Remember spans."""
        for part in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resources.append(_values(part.resource.attributes))
            for scope in part.scope_spans:
                self.spans += [_span(span) for span in scope.spans]

    def take_metrics(self, body: bytes) -> None:
        """Remember the newest points of histograms: they count from the beginning."""
        for part in ExportMetricsServiceRequest.FromString(body).resource_metrics:
            for scope in part.scope_metrics:
                for metric in scope.metrics:
                    self.points[metric.name] = [
                        Point(_values(point.attributes), point.count, point.sum, tuple(point.explicit_bounds))
                        for point in metric.histogram.data_points
                    ]


def _span(span: Any) -> Span:
    seconds = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9
    return Span(
        span.name, span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"), span.trace_id.hex(), span.span_id.hex(),
        span.parent_span_id.hex(), _values(span.attributes), MessageToDict(span.status), seconds,
    )  # fmt: skip


def _values(attributes: Any) -> dict[str, Any]:
    return {item.key: _value(item.value) for item in attributes}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    return [_value(item) for item in value.array_value.values] if kind == "array_value" else getattr(value, kind)


@contextmanager
def otlp_receiver(*, seconds: float = 0.0) -> Iterator[Receiver]:
    """Listen on this machine for the length of a block; each answer takes so many seconds."""
    leaving = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            made.bodies.append(body)
            leaving.wait(seconds)
            {"/v1/traces": made.take_traces, "/v1/metrics": made.take_metrics}[self.path](body)
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        made = Receiver(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield made
        finally:
            leaving.set()
            server.shutdown()
            thread.join()
