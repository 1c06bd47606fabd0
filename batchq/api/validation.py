"""Holds answers to a Pydantic type where they are made, so that one that does not fit is asked for again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from batchq.discovery import FoundWorker
from batchq.jobs import Answer, Json
from batchq.request import encode
from batchq.structured import DEFAULT_SCHEMA_TRIES, SchemaMismatch, hold_to
from batchq.worker import Endpoint, Handler, Request, RetryLater

if TYPE_CHECKING:
    from pydantic import BaseModel

MISFIT = "schema_mismatch"
_BY_ALIAS = (True, False)
# Without what is computed, which a type may not take back.
_ROUND_TRIP = (False, True)


def validated(worker: FoundWorker, model: type[BaseModel]) -> FoundWorker:
    """Return a worker whose answers are instances of `model`, written as JSON.

    Its validators say what no JSON Schema can; workers of other processes, which don't know the type, hold
    answers to its schema alone.
    """
    schema = encode(model.model_json_schema())

    @asynccontextmanager
    async def open_handler(endpoint: Endpoint) -> AsyncIterator[Handler]:
        async with worker.open(endpoint) as handler:

            async def answer(request: Request) -> Json | Answer:
                tries = request.settings.get("schema_tries")
                found = await handler(request)
                return _held_to(model, schema, found, tries if isinstance(tries, int) else DEFAULT_SCHEMA_TRIES)

            yield answer

    return replace(worker, open=open_handler)


def instance_of(model: type[BaseModel], text: str) -> BaseModel:
    """Return the instance that JSON says, the same wherever it is read. Raises ValueError where it says none."""
    return model.model_validate_json(text)


def _held_to(model: type[BaseModel], schema: str, answered: object, tries: int) -> Answer:
    answer = answered if isinstance(answered, Answer) else Answer(cast("Json", answered))
    if hasattr(answer.result, "model_dump"):
        return _written(model, schema, answer, tries)
    try:
        value = hold_to(schema, answer.result)
        instance_of(model, encode(value))
    except SchemaMismatch:
        return answer  # told where the answer is held to the schema of its batch
    except ValueError as error:
        raise RetryLater(str(error), error_class=MISFIT, at_most=tries, answer=answer) from error
    return replace(answer, result=value)


def _written(model: type[BaseModel], schema: str, answer: Answer, tries: int) -> Answer:
    """Write an instance that a worker returned as JSON, so that reading makes the same instance of it.

    Its aliases may differ for reading and writing, which loses values: the first way that loses none is taken.
    """
    instance = cast("BaseModel", answer.result)
    problem = ""
    paid = replace(answer, result=None)
    for value in _dumps(instance):
        paid = paid if paid.result is not None else replace(answer, result=value)
        try:
            held = hold_to(schema, value)
            lost = _lost(model, instance, instance_of(model, encode(held)))
        except ValueError as error:
            lost = str(error)
        if not lost:
            return replace(answer, result=held)
        problem = problem or lost
    # What its own type made of it will be no other the next time.
    at_most = 1 if isinstance(instance, model) else tries
    name = type(instance).__name__
    reason = f"the {name} that the worker returned is not what {model.__name__} reads from its JSON: {problem}"
    raise RetryLater(reason, error_class=MISFIT, at_most=at_most, answer=paid)


def _dumps(instance: BaseModel) -> Iterator[Json]:
    for by_alias in _BY_ALIAS:
        for round_trip in _ROUND_TRIP:
            try:
                yield cast("Json", instance.model_dump(mode="json", by_alias=by_alias, round_trip=round_trip))
            except (ValueError, TypeError):  # a field that JSON can't hold
                continue


def _lost(model: type[BaseModel], instance: BaseModel, read: BaseModel) -> str:
    """Say which fields of an instance another one, read from its JSON, has not; nothing for one of another type."""
    if not isinstance(instance, model):
        return ""
    before, after = _fields(instance), _fields(read)
    names = before if type(instance) is model else model.model_fields
    changed = [f"`{name}`" for name in names if before.get(name) != after.get(name)]
    if not changed:
        return ""
    return f"{', '.join(changed)} would change: JSON can't hold it, or its aliases for reading and writing differ"


def _fields(instance: BaseModel) -> dict[str, Any]:
    named = {name: vars(instance).get(name) for name in type(instance).model_fields}
    return {name: _bare(value) for name, value in {**named, **(instance.model_extra or {})}.items()}


def _bare(value: object) -> object:
    """Return a value with instances as dicts of their fields, without what is private to them."""
    if hasattr(type(value), "model_fields"):
        return _fields(cast("BaseModel", value))
    if isinstance(value, list | tuple):
        return [_bare(item) for item in value]
    if isinstance(value, dict):
        return {key: _bare(item) for key, item in value.items()}
    return value
