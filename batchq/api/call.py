"""One call of the library: its settings, its worker, and the batch that its prompts become."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

from batchq.api.options import CallOptions
from batchq.api.script import script_name
from batchq.api.spool import Prompts, is_empty, spooled, surveyed
from batchq.api.validation import validated
from batchq.config import DEFAULT_ENDPOINT, Settings, load_settings
from batchq.discovery import FoundWorker, find_worker, is_loading, wrap_worker
from batchq.errors import ConfigurationError, UsageError
from batchq.formats import ReadOptions
from batchq.formats.template import PromptTemplate
from batchq.generations import Synchronised, Wishes, synchronise
from batchq.jobs import Json, NewBatch
from batchq.naming import name_of
from batchq.pacing import Limits
from batchq.producer import Policy, Thrift, complete, run_name
from batchq.store import Store
from batchq.structured import UnusableSchema, schema_of
from batchq.survey import Survey
from batchq.worker import Endpoint, Plugin

if TYPE_CHECKING:
    from pydantic import BaseModel

DB_URL_DEFAULT = "sqlite+aiosqlite:///runs.db"
USUAL_WORKER = "openrouter"


@dataclass(frozen=True, slots=True)
class Call:
    """What a caller of `prompt_map` or `prompt_stream` asks for; see there."""

    prompts: Prompts
    worker: object = None
    model_name: str | None = None
    openrouter_api_key: str | None = None
    base_url: str | None = None
    response_model: type[BaseModel] | None = None
    concurrency: int = 32
    max_attempts: int = 8
    rpm_limit: float | None = None
    db_url: str | None = None
    fresh: bool = False
    batch: str | None = None
    system: str | None = None
    params: Mapping[str, Json] | None = None
    prompt_template: PromptTemplate | None = None
    budget: float | None = None

    def settings(self) -> Settings:
        """Read the settings, with what the call says above all else. Raises ConfigurationError."""
        return load_settings(
            db=None if self.db_url == DB_URL_DEFAULT else self.db_url,
            base_url=self.base_url,
            model=self.model_name,
            openrouter_api_key=self.openrouter_api_key,
        )


def call_of(prompts: Prompts, options: CallOptions) -> Call:
    """Return the call that parameters ask for; what shows or returns its rows is no part of it."""
    own = {name: value for name, value in options.items() if name in _OPTIONS}
    template = options.get("template")
    compiled = PromptTemplate(template, "template") if template else None
    return Call(prompts=prompts, prompt_template=compiled, **own)  # type: ignore[arg-type]


_OPTIONS = frozenset(field.name for field in fields(Call))


@dataclass(frozen=True, slots=True)
class Ready:
    """A call whose worker was found: nothing is written yet. `new` has no name or model so far."""

    call: Call
    settings: Settings
    worker: FoundWorker
    endpoint: Endpoint
    new: NewBatch
    default_model: str | None

    async def enqueue(self, store: Store) -> Synchronised | None:
        """Make a batch of the prompts, or find the one that they are; None where there are none.

        Raises BadInput for what is no prompt, naming its place.
        """
        options = ReadOptions(template=self.call.prompt_template)
        async with spooled(self.call.prompts, options) as source:
            if is_empty(source):
                return None
            async with surveyed(source, model=self.call.model_name) as survey:
                return await self._synchronise(store, survey)

    async def _synchronise(self, store: Store, survey: Survey) -> Synchronised:
        default, needs = self.default_model, self.worker.needs_model
        try:
            filled = complete(self.new, survey, default_model=default, needs_model=needs)
        except UsageError as error:
            raise ConfigurationError(
                f"{self.worker.name} needs a model: pass model_name=, or set MODEL in the environment or in .env"
            ) from error
        named = replace(filled, name=self.call.batch or run_name(script_name(), filled))

        async def limit() -> None:
            if self.call.rpm_limit is not None:
                await _limit_rate(store, named, self.endpoint.base_url, self.call.rpm_limit)

        policy = Policy(max_attempts=named.max_attempts, budget=named.budget)
        wishes = Wishes(policy, Thrift(dedupe=True), self.call.fresh, limit)
        return await synchronise(store, survey, named, wishes)


def make_ready(call: Call) -> Ready:
    """Find the worker of a call and what it needs. Raises ConfigurationError, UsageError; nothing is read yet."""
    if is_loading():
        raise ConfigurationError(
            "this script starts a run while a worker process imports it: put the call under"
            ' `if __name__ == "__main__":`'
        )
    if call.concurrency < 1 or call.max_attempts < 1:
        raise UsageError("concurrency and max_attempts must be at least 1")
    settings = call.settings()
    endpoint = settings.require_endpoint(DEFAULT_ENDPOINT)
    worker, given = find(call.worker)
    worker.check(endpoint)
    if call.response_model is not None:
        worker = validated(worker, call.response_model)
    new = NewBatch(
        name="",
        worker=worker.name,
        settings=_shared_settings(call, given),
        max_attempts=call.max_attempts,
        budget=None if call.budget is None else round(call.budget * 1_000_000_000),
        allow_unknown_cost=False,
    )
    return Ready(call, settings, worker, endpoint, new, given.model if given and given.model else settings.model)


def find(worker: object) -> tuple[FoundWorker, Plugin | None]:
    """Return a worker by its name or itself; a Plugin also as it is. None is the usual one."""
    if worker is None or isinstance(worker, str):
        return find_worker(worker or USUAL_WORKER), None
    if isinstance(worker, FoundWorker):
        return worker, None
    name = name_of(worker)
    if name is None:
        raise ConfigurationError("this Plugin has no name: give it one, or keep it in a variable of the module")
    return wrap_worker(worker, name), worker if isinstance(worker, Plugin) else None


def _shared_settings(call: Call, given: Plugin | None) -> dict[str, Json]:
    shared: dict[str, Json] = dict(given.settings) if given is not None else {}
    if call.system:
        shared["system"] = call.system
    if call.params:
        shared["params"] = dict(call.params)
    if call.response_model is not None:
        try:
            shared["schema"] = schema_of(call.response_model)
        except UnusableSchema as error:
            raise UsageError(f"response_model: {error}") from error
    return shared


async def _limit_rate(store: Store, new: NewBatch, base_url: str, rpm: float) -> None:
    """Set the requests per minute of a batch's lane; what else limits it stays."""
    place = (new.worker, base_url, new.model)
    lanes = {(lane.worker, lane.base_url, lane.model): lane for lane in await store.lanes()}
    lane = lanes.get(place)
    limits = Limits(rpm) if lane is None else Limits(rpm, lane.tpm, lane.max_inflight, lane.asked_burst)
    await store.set_limits(*place, limits)
