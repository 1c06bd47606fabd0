"""One call of the library: its settings, its worker, and the batch that its prompts become."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from decimal import Decimal
from typing import TYPE_CHECKING

from batchq.api.enqueueing import schema_given
from batchq.api.options import CallOptions
from batchq.api.script import script_name
from batchq.api.spool import Prompts, is_empty, spooled, surveyed
from batchq.api.validation import validated
from batchq.api.workers import WorkerLike, find_given
from batchq.config import DEFAULT_ENDPOINT, Settings, load_settings
from batchq.discovery import FoundWorker, is_loading
from batchq.errors import ConfigurationError, UsageError
from batchq.formats import ReadOptions
from batchq.formats.template import PromptTemplate
from batchq.generations import Synchronised, Wishes, synchronise
from batchq.jobs import Json
from batchq.limits import change_limits, limits_given
from batchq.money import nano_dollars
from batchq.producer import Policy, Thrift, complete, run_name
from batchq.store import Store
from batchq.survey import Survey
from batchq.terms import DEFAULT_WORKER, Terms, check_name, check_terms, server_setting
from batchq.worker import Endpoint

if TYPE_CHECKING:
    from pydantic import BaseModel

DB_URL_DEFAULT = "sqlite+aiosqlite:///runs.db"


@dataclass(frozen=True, slots=True)
class Call:
    """What a caller of `prompt_map` or `prompt_stream` asks for; see there."""

    prompts: Prompts
    worker: WorkerLike | None = None
    model_name: str | None = None
    openrouter_api_key: str | None = field(default=None, repr=False)
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
    budget: Decimal | float | None = None

    def settings(self) -> Settings:
        """Read the settings, with what the call says above all else. Raises ConfigurationError."""
        return load_settings(
            db=None if self.db_url in {None, DB_URL_DEFAULT} else str(self.db_url),
            base_url=self.base_url,
            model=self.model_name,
            openrouter_api_key=self.openrouter_api_key,
        )


def call_of(prompts: Prompts, options: CallOptions) -> Call:
    """Return the call that parameters ask for; what shows or returns its rows is no part of it."""
    unknown = sorted(options.keys() - CallOptions.__annotations__.keys())
    if unknown:
        raise TypeError(f"there is no parameter {unknown[0]!r}")
    own = {name: value for name, value in options.items() if name in _OPTIONS}
    template = options.get("template")
    compiled = PromptTemplate(template, "template") if template else None
    return Call(prompts=prompts, prompt_template=compiled, **own)  # type: ignore[arg-type]


_OPTIONS = frozenset(field.name for field in fields(Call))


@dataclass(frozen=True, slots=True)
class Ready:
    """A call whose worker was found: nothing is written yet."""

    call: Call
    settings: Settings
    worker: FoundWorker
    endpoint: Endpoint
    terms: Terms
    default_model: str | None
    on_waiting: Callable[[str], None] = lambda _why: None

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
        if self.worker.needs_model and not (survey.model or self.default_model):
            raise ConfigurationError(
                f"{self.worker.name} needs a model: pass model_name=, or set MODEL in the environment or in .env"
            )
        filled = complete(self.terms.new_batch(""), survey, default_model=self.default_model)
        filled = replace(filled, settings={**filled.settings, **server_setting(self.endpoint.base_url)})
        named = replace(filled, name=self.call.batch or run_name(script_name(), filled))
        place = (named.worker, self.endpoint.base_url, named.model)

        async def limit() -> None:
            if self.call.rpm_limit is not None:
                await change_limits(store, *place, limits_given(rpm=self.call.rpm_limit))

        wishes = Wishes(self.terms.policy, Thrift(dedupe=True), self.call.fresh, limit, self.on_waiting)
        return await synchronise(store, survey, named, wishes)


def make_ready(call: Call) -> Ready:
    """Find the worker of a call and what it needs. Raises ConfigurationError, UsageError; nothing is read yet."""
    if is_loading():
        raise ConfigurationError(
            "this script starts a run while a worker process imports it: put the call under"
            ' `if __name__ == "__main__":`'
        )
    _check_count("concurrency", call.concurrency)
    _check_count("max_attempts", call.max_attempts)
    settings = call.settings()
    endpoint = settings.require_endpoint(DEFAULT_ENDPOINT)
    settings.refuse_insecure(endpoint)
    worker = find_given(DEFAULT_WORKER if call.worker is None else call.worker)
    worker.check(endpoint)
    terms = Terms(
        worker=worker.name,
        system=call.system,
        params=call.params or {},
        schema=schema_given(call.response_model),
        others=worker.settings,
        policy=Policy(
            max_attempts=call.max_attempts, budget=None if call.budget is None else nano_dollars(call.budget)
        ),
    )
    check_terms(terms)
    if call.batch is not None:
        check_name(call.batch)
    # A worker that is installed and wants no model has none; a function of the caller's may read it.
    wants_model = worker.needs_model or not isinstance(call.worker, str)
    default_model = worker.model or (settings.model if wants_model else None)
    if call.response_model is not None:
        worker = validated(worker, call.response_model)
    return Ready(call, settings, worker, endpoint, terms, default_model)


def _check_count(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UsageError(f"{name} is {value!r}: it must be a whole number, at least 1")
