"""Holds answers to a Pydantic type where they are made, so that one that does not fit is asked for again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from batchq.discovery import FoundWorker
from batchq.jobs import Answer, Json
from batchq.request import encode
from batchq.structured import DEFAULT_SCHEMA_TRIES, SchemaMismatch, hold_to
from batchq.worker import Endpoint, Handler, Request, RetryLater

if TYPE_CHECKING:
    from pydantic import BaseModel

MISFIT = "schema_mismatch"


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
                return _held_to(model, schema, await handler(request))

            yield answer

    return replace(worker, open=open_handler)


def _held_to(model: type[BaseModel], schema: str, answered: object) -> Answer:
    answer = answered if isinstance(answered, Answer) else Answer(_plain(answered))
    try:
        value = hold_to(schema, _plain(answer.result))
        model.model_validate_json(encode(value))
    except SchemaMismatch:
        return answer  # told where the answer is held to the schema of its batch
    except ValueError as error:
        raise RetryLater(str(error), error_class=MISFIT, at_most=DEFAULT_SCHEMA_TRIES, answer=answer) from error
    return replace(answer, result=value)


def _plain(value: object) -> Json:
    """Return an instance of a Pydantic type as the JSON value that it is."""
    dump = getattr(value, "model_dump", None)
    return cast("Json", dump(mode="json") if dump is not None else value)
