"""The terms of a batch: of whom it asks, what its requests share, and its policy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Final

from batchq.errors import UsageError
from batchq.formats.jsonl import MAX_DEPTH, too_deep
from batchq.jobs import DEFAULT_CALL_TIMEOUT_MS, DEFAULT_MAX_ATTEMPTS, Json, NewBatch
from batchq.producer import Policy
from batchq.request import encode
from batchq.worker import is_openrouter

MAX_NAME = 120
DEFAULT_WORKER: Final = "openrouter"
# Settings of a batch that are no worker's own.
RESERVED = frozenset({"params", "samples", "schema", "schema_tries", "server", "system", "url"})
_NO_NAME = "it is empty, has a NUL or a line end in it, or is not UTF-8"
_OWNED = {
    "model": "it is the batch's model",
    "messages": "the prompts hold the messages",
    "input": "the prompts hold the input",
    "prompt": "the prompts hold it",
    "stream": "a queue has nobody to stream to",
}


@dataclass(frozen=True, slots=True)
class Terms:
    """What a batch is made of beside its name, model and prompts.

    `worker` is the name that batches record. `params` go into every request; `others` is what else makes its
    requests other requests, for workers that read it.
    """

    worker: str = DEFAULT_WORKER
    endpoint: str = "default"
    system: str | None = None
    params: Mapping[str, Json] = field(default_factory=dict)
    schema: Mapping[str, Json] | None = None
    schema_tries: int | None = None
    samples: int = 1
    others: Mapping[str, Json] = field(default_factory=dict)
    policy: Policy = field(default_factory=Policy)

    def new_batch(self, name: str, model: str = "") -> NewBatch:
        """Return the batch that is asked for, as it is made where there is none of that name."""
        policy = self.policy
        return NewBatch(
            name=name,
            worker=self.worker,
            endpoint=self.endpoint,
            model=model,
            settings=self._settings(),
            priority=policy.priority or 0,
            max_attempts=policy.max_attempts or DEFAULT_MAX_ATTEMPTS,
            call_timeout_ms=policy.call_timeout_ms or DEFAULT_CALL_TIMEOUT_MS,
            budget=policy.budget,
            allow_unknown_cost=bool(policy.allow_unknown_cost),
            allow_truncated=bool(policy.allow_truncated),
            keep_response=bool(policy.keep_response),
        )

    def _settings(self) -> dict[str, Json]:
        settings: dict[str, Json] = dict(self.others)
        if self.system:
            settings["system"] = self.system
        if self.params:
            settings["params"] = dict(self.params)
        if self.schema is not None:
            settings["schema"] = dict(self.schema)
        if self.schema_tries is not None:
            settings["schema_tries"] = self.schema_tries
        if self.samples > 1:
            settings["samples"] = self.samples
        return settings


def check_terms(terms: Terms) -> None:
    """Raise UsageError for terms that no batch can have."""
    if terms.schema_tries is not None and terms.schema is None:
        raise UsageError("schema_tries goes with a schema")
    for what, value in (
        ("schema_tries", terms.schema_tries),
        ("samples", terms.samples),
        ("max_attempts", terms.policy.max_attempts),
    ):
        if value is not None and value < 1:
            raise UsageError(f"{what} is {value}: it must be at least 1")
    for what, name in (("a worker", terms.worker), ("an endpoint", terms.endpoint)):
        if not is_name(name):
            raise UsageError(f"{name[:MAX_NAME]!r} can't be the name of {what}: {_NO_NAME}")
    for name in terms.others.keys() & RESERVED:
        raise UsageError(f"a worker's own settings can't hold {name!r}: it means something to batchq")
    for name in terms.params.keys() & _OWNED.keys():
        raise UsageError(f"params can't set {name!r}: {_OWNED[name]}")
    settings = dict(terms.new_batch("").settings)
    try:
        encode(settings)
        if too_deep(settings):
            raise UsageError(f"the settings of a batch are nested too deep: more than {MAX_DEPTH} levels")
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"the settings of a batch must be JSON: {error}") from None


def is_name(text: str) -> bool:
    """Whether a text can be a name in any database and any log."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return bool(text.strip()) and "\0" not in text and "\n" not in text


def check_name(name: str) -> None:
    """Raise UsageError for a batch's name that nobody could type, or read in a table."""
    if not name.strip() or not name.isprintable():
        problem = "it is empty, or has characters that nobody can see"
    elif name.startswith("-"):
        problem = "it begins with a dash, and would be taken for an option"
    elif len(name) > MAX_NAME:
        problem = f"it has {len(name):,} characters, and at most {MAX_NAME} are possible"
        name = name[:40] + "…"
    else:
        return
    raise UsageError(f"{name!r} can't be the name of a batch: {problem}; choose another")


def server_setting(base_url: str) -> dict[str, Json]:
    """Return what tells the requests to one server from those to another, for whoever knows which it calls.

    OpenRouter is the usual one, and goes unnamed. A digest, since a URL may hold a password.
    """
    if is_openrouter(base_url):
        return {}
    return {"server": blake2b(base_url.encode(), digest_size=8).hexdigest()}
