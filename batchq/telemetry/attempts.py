"""An attempt as OpenTelemetry sees it: a span around it, one for the call to the model within, three histograms."""

from __future__ import annotations

from contextlib import suppress
from contextvars import Token

from opentelemetry import context, metrics, trace
from opentelemetry.trace import Span, SpanKind, StatusCode

from batchq.installed import installed_version
from batchq.jobs import (
    Answered,
    Claim,
    Failed,
    Halted,
    Outcome,
    Reason,
    Released,
    Retry,
    Succeeded,
    Throttled,
)
from batchq.telemetry.conventions import SECONDS_BUCKETS, TOKEN_BUCKETS, Attributes, Labels, labels_of

# An outcome's name is the same as in the log of attempts.
_NAMES: dict[type[Outcome], str] = {
    Succeeded: "succeeded",
    Failed: "failed",
    Retry: "retry",
    Throttled: "throttled",
    Halted: "halted",
    Released: "released",
}


class Observer:
    """Observes the attempts of one runner."""

    def __init__(self, runner_id: str) -> None:
        """Report to the providers that this process has set up."""
        version = installed_version() or ""
        self._runner_id = runner_id
        self._tracer = trace.get_tracer("batchq", version)
        meter = metrics.get_meter("batchq", version)
        self.processing = meter.create_histogram(
            "messaging.process.duration",
            unit="s",
            description="Duration of an attempt at a job.",
            explicit_bucket_boundaries_advisory=SECONDS_BUCKETS,
        )
        self.calling = meter.create_histogram(
            "gen_ai.client.operation.duration",
            unit="s",
            description="Duration of a call to a model.",
            explicit_bucket_boundaries_advisory=SECONDS_BUCKETS,
        )
        self.tokens = meter.create_histogram(
            "gen_ai.client.token.usage",
            unit="{token}",
            description="Input and output tokens of a call to a model.",
            explicit_bucket_boundaries_advisory=TOKEN_BUCKETS,
        )

    def observe(self, claim: Claim) -> _Attempt | None:
        """Begin to observe an attempt, in the task that makes it; None where that fails, which costs no call."""
        with suppress(Exception):
            return self._begin(claim)
        return None

    def _begin(self, claim: Claim) -> _Attempt:
        labels = labels_of(claim)
        of_job: Attributes = {
            "messaging.operation.type": "process",
            "messaging.message.id": str(claim.job_id),
            "messaging.client.id": self._runner_id,
            "batchq.batch": claim.batch.name,
            "batchq.position": claim.position,
            "batchq.attempt": claim.attempts,
            "batchq.lane": claim.lane.strip(),
        }
        process = self._tracer.start_span(
            f"process {claim.batch.name}",
            context.Context(),  # a trace of its own: tasks run many attempts, one after the other
            SpanKind.CONSUMER,
            labels.process | of_job,
        )
        inside = trace.set_span_in_context(process, context.Context())
        call = None
        if labels.model is not None:
            name = f"{labels.model['gen_ai.operation.name']} {labels.model['gen_ai.request.model']}"
            call = self._tracer.start_span(name, inside, SpanKind.CLIENT, labels.model)
            inside = trace.set_span_in_context(call, inside)
        return _Attempt(self, labels, process, call, context.attach(inside))


class _Attempt:
    """One attempt, which is current in its task until it ends: what a worker traces itself is a part of it."""

    def __init__(
        self,
        observer: Observer,
        labels: Labels,
        process: Span,
        call: Span | None,
        token: Token[context.Context],
    ) -> None:
        self._observer = observer
        self._labels = labels
        self._process = process
        self._call = call
        self._token = token

    def end(self, outcome: Outcome, seconds: float) -> None:
        """Note how it ended."""
        with suppress(Exception):
            context.detach(self._token)
        with suppress(Exception):
            self._measure(outcome, seconds)
        for span in (self._call, self._process):
            if span is not None:
                with suppress(Exception):
                    self._tell(span, outcome)
                with suppress(Exception):
                    span.end()

    def _measure(self, outcome: Outcome, seconds: float) -> None:
        error = _error_attributes(outcome)
        # While the span is current, the SDK may point from a measurement to it.
        inside = trace.set_span_in_context(self._call or self._process)
        self._observer.processing.record(seconds, self._labels.process | error, inside)
        model = self._labels.model
        if model is None:
            return
        self._observer.calling.record(seconds, model | error, inside)
        for kind, count in _tokens(_answer_of(outcome)).items():
            self._observer.tokens.record(count, model | {"gen_ai.token.type": kind}, inside)

    def _tell(self, span: Span, outcome: Outcome) -> None:
        if not span.is_recording():
            return
        error = _error_attributes(outcome)
        if error:
            span.set_attributes(error)
            span.set_status(StatusCode.ERROR)
        if span is self._process:
            span.set_attribute("batchq.outcome", _NAMES[type(outcome)])
            return
        answer, reason = _answer_of(outcome), _reason_of(outcome)
        for kind, count in _tokens(answer).items():
            span.set_attribute(f"gen_ai.usage.{kind}_tokens", count)
        if answer is not None and answer.finish_reason is not None:
            span.set_attribute("gen_ai.response.finish_reasons", [answer.finish_reason])
        if reason is not None and reason.status is not None:
            span.set_attribute("http.response.status_code", reason.status)


def _answer_of(outcome: Outcome) -> Answered | None:
    return None if isinstance(outcome, Released) else outcome.answer


def _reason_of(outcome: Outcome) -> Reason | None:
    return None if isinstance(outcome, Released | Succeeded) else outcome.reason


def _error_attributes(outcome: Outcome) -> Attributes:
    reason = _reason_of(outcome)
    return {} if reason is None else {"error.type": reason.error_class}


def _tokens(answer: Answered | None) -> dict[str, int]:
    if answer is None:
        return {}
    counts = {"input": answer.usage.input_tokens, "output": answer.usage.output_tokens}
    return {kind: count for kind, count in counts.items() if count is not None}
