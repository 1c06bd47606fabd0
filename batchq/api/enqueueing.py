"""Adds prompts to a batch, as `Queue.enqueue` is asked to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal

from batchq.api.spool import Prompts, is_empty, spooled, surveyed
from batchq.api.workers import WorkerLike, find_given
from batchq.config import load_settings
from batchq.discovery import find_worker, worker_name
from batchq.errors import UsageError
from batchq.formats import ReadOptions
from batchq.formats.template import PromptTemplate
from batchq.jobs import Json, NewBatch, Reuse
from batchq.money import nano_dollars
from batchq.producer import Enqueued, Policy, Thrift, complete
from batchq.producer import enqueue as add
from batchq.store import Store
from batchq.structured import UnusableSchema, schema_of
from batchq.survey import Survey
from batchq.terms import Terms, check_name, check_terms


@dataclass(frozen=True, slots=True)
class Order:
    """A batch as a caller asks for it. `default_model` stands in where neither caller nor prompts name one."""

    name: str
    terms: Terms
    model: str | None = None
    default_model: str | None = None
    needs_model: bool = False
    thrift: Thrift = field(default_factory=Thrift)
    reading: ReadOptions = field(default_factory=ReadOptions)
    seal: bool = True


@dataclass(frozen=True, slots=True)
class Answerer:
    """The worker of an order: the name that batches record, and what it says of models and settings."""

    name: str
    default_model: str | None
    needs_model: bool = False
    settings: Mapping[str, Json] = field(default_factory=dict)


async def enqueue(store: Store, prompts: Prompts, order: Order) -> Enqueued:
    """Add prompts to a batch; none at all are a batch without jobs. Raises BadInput, BatchConflict, UsageError."""
    check_name(order.name)
    check_terms(order.terms)
    async with spooled(prompts, order.reading) as source:
        if is_empty(source):
            return await _enqueue_nothing(store, order)
        async with surveyed(source, model=order.model) as survey:
            new = _completed(order, survey)
            policy = order.terms.policy
            return await add(store, survey, new, seal=order.seal, policy=policy, thrift=order.thrift)


def answerer_of(store: Store, worker: WorkerLike) -> Answerer:
    """Return the worker of an order. A `module:function` is not imported. Raises ConfigurationError."""
    model = load_settings(db=store.location).model
    if isinstance(worker, str) and ":" in worker:
        return Answerer(worker_name(worker), model)
    if isinstance(worker, str):
        needs = find_worker(worker).needs_model
        return Answerer(worker, model if needs else None, needs)
    found = find_given(worker)
    return Answerer(found.name, found.model or model, found.needs_model, found.settings)


def policy_of(
    priority: int | None,
    max_attempts: int | None,
    call_timeout: float | None,
    budget: Decimal | float | None,
    allow_unknown_cost: bool | None,
    allow_truncated: bool | None,
    keep_response: bool | None,
) -> Policy:
    """Return a policy in the store's units: milliseconds, nano-dollars. Raises UsageError."""
    timeout_ms = None if call_timeout is None else round(call_timeout * 1000)
    if timeout_ms is not None and timeout_ms < 1:
        raise UsageError(f"call_timeout is {call_timeout!r} s: it must be longer than nothing")
    nano = None if budget is None else nano_dollars(budget)
    return Policy(priority, max_attempts, timeout_ms, nano, allow_unknown_cost, allow_truncated, keep_response)


def schema_given(schema: Mapping[str, Json] | type | None) -> dict[str, Json] | None:
    """Return the JSON Schema that a caller means. Raises UsageError for what is none."""
    try:
        return None if schema is None else schema_of(schema)
    except UnusableSchema as error:
        raise UsageError(f"the schema can't be used: {error}") from error


def thrift_of(*, dedupe: bool, reuse: bool) -> Thrift:
    """Return what need not be paid for."""
    return Thrift(dedupe, Reuse() if reuse else None)


def reading_of(
    prompt_field: str | None,
    id_field: str | None,
    image_field: str | None,
    template: PromptTemplate | str | None,
    input_format: str | None,
) -> ReadOptions:
    """Return how prompts are to be read."""
    compiled = PromptTemplate(template, "template") if isinstance(template, str) else template
    return ReadOptions(input_format, prompt_field, id_field, compiled, image_field)


def _completed(order: Order, survey: Survey) -> NewBatch:
    model = survey.model or order.default_model
    _require_model(order, model)
    return complete(order.terms.new_batch(order.name), survey, default_model=model)


async def _enqueue_nothing(store: Store, order: Order) -> Enqueued:
    model = order.model or order.default_model
    _require_model(order, model)
    batch = await store.open_batch(order.terms.new_batch(order.name, model or ""))
    if order.seal:
        await store.seal(batch)
    batch = await store.batch(order.name)
    return Enqueued(batch, 0, 0, 0, 0, sealed=batch.sealed_at is not None, absent=batch.size, changed={})


def _require_model(order: Order, model: str | None) -> None:
    if order.needs_model and not model:
        raise UsageError(f"{order.terms.worker} needs a model: pass model=, or set MODEL in the environment or in .env")
