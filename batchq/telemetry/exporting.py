"""Sets OpenTelemetry up as the standard OTEL_ variables say, and hands over the rest at the end of the process."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import entry_points
from threading import Thread
from typing import TYPE_CHECKING, Any

from batchq import log
from batchq.clock import uptime
from batchq.errors import ConfigurationError
from batchq.installed import installed_version

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import MetricReader
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider

# How long the end of a process may wait for whoever takes what it has measured.
FLUSH_SECONDS = 5.0
_ENDPOINT = "OTEL_EXPORTER_OTLP{}_ENDPOINT"


@dataclass(frozen=True, slots=True)
class Exporters:
    """What takes the traces, and what the metrics, by its name; None: nothing does."""

    traces: str | None
    metrics: str | None


def exporters_of(environment: Mapping[str, str]) -> Exporters:
    """Return which exporters the standard variables name: `otlp` where they name only where to."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return Exporters(None, None)
    return Exporters(_exporter("TRACES", environment), _exporter("METRICS", environment))


def _exporter(signal: str, environment: Mapping[str, str]) -> str | None:
    anywhere = any(environment.get(_ENDPOINT.format(part)) for part in ("", f"_{signal}"))
    name = environment.get(f"OTEL_{signal}_EXPORTER", "").strip() or ("otlp" if anywhere else "none")
    if name != "otlp":
        return None if name == "none" else name
    protocol = "OTEL_EXPORTER_OTLP{}_PROTOCOL"
    spoken = environment.get(protocol.format(f"_{signal}")) or environment.get(protocol.format(""))
    return "otlp_proto_grpc" if spoken == "grpc" else "otlp_proto_http"


@contextmanager
def exporting(environment: Mapping[str, str]) -> Iterator[None]:
    """Export what is observed meanwhile, where that is asked for; at the end, hand over the rest within a few seconds.

    Raises ConfigurationError for an exporter that is not installed. Without the SDK it says so and goes on.
    """
    exporters = exporters_of(environment)
    if exporters == Exporters(None, None) or _set_up_by_others():
        yield
        return
    try:
        providers = _set_up(exporters, environment)
    except ImportError:
        reason = "OTEL_ variables ask for it, and OpenTelemetry is not installed: pip install 'batchq[otel]'"
        log.get_logger().warning(log.TELEMETRY_UNAVAILABLE, reason=reason)
        yield
        return
    log.get_logger().info(log.TELEMETRY_STARTED, traces=exporters.traces, metrics=exporters.metrics)
    try:
        yield
    finally:
        _hand_over_the_rest(providers)


def _set_up_by_others() -> bool:
    """Whether whoever started this process has set OpenTelemetry up, as `opentelemetry-instrument` does."""
    if "opentelemetry.trace" not in sys.modules:
        return False
    from opentelemetry import trace

    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


def _set_up(exporters: Exporters, environment: Mapping[str, str]) -> list[TracerProvider | MeterProvider]:
    from opentelemetry import metrics, trace
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = _resource(environment)
    # Not at exit, where nothing bounds it.
    tracing = TracerProvider(resource=resource, shutdown_on_exit=False)
    if exporters.traces is not None:
        tracing.add_span_processor(BatchSpanProcessor(_load("traces", exporters.traces)()))
    readers = [] if exporters.metrics is None else [_reader(_load("metrics", exporters.metrics))]
    measuring = MeterProvider(readers, resource=resource, shutdown_on_exit=False)
    trace.set_tracer_provider(tracing)
    metrics.set_meter_provider(measuring)
    return [tracing, measuring]


def _resource(environment: Mapping[str, str]) -> Resource:
    from opentelemetry.sdk.resources import Resource

    attributes: dict[str, str] = {"service.instance.id": str(uuid.uuid4())}
    named = "service.name=" in environment.get("OTEL_RESOURCE_ATTRIBUTES", "")
    if not (named or environment.get("OTEL_SERVICE_NAME")):
        attributes |= {"service.name": "batchq", "service.version": installed_version() or ""}
    return Resource.create(attributes)


def _load(signal: str, name: str) -> Any:  # noqa: ANN401 - a class of whoever wrote the exporter
    found = entry_points(group=f"opentelemetry_{signal}_exporter", name=name)
    for entry in found:
        return entry.load()
    if name == "otlp_proto_http":
        raise ImportError(name)
    variable = f"OTEL_{signal.upper()}_EXPORTER"
    raise ConfigurationError(
        f"{variable} asks for the exporter {name!r}, which is not installed: install its package beside batchq"
    )


def _reader(exporter: Any) -> MetricReader:  # noqa: ANN401
    from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader

    made = exporter()
    return made if isinstance(made, MetricReader) else PeriodicExportingMetricReader(made)


def _hand_over_the_rest(providers: list[TracerProvider | MeterProvider]) -> None:
    def shut_down(provider: TracerProvider | MeterProvider) -> None:
        with suppress(Exception):
            provider.shutdown()

    threads = [Thread(target=shut_down, args=(provider,), daemon=True) for provider in providers]
    for thread in threads:
        thread.start()
    deadline = uptime() + FLUSH_SECONDS
    for thread in threads:
        thread.join(max(0.0, deadline - uptime()))
