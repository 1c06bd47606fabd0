"""The settings of a process, by their names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    PrivateAttr,
    SecretStr,
)

from batchq.config.keys import KeyFile, KeyHere, key_for
from batchq.config.layers import Layer, Layers
from batchq.durations import parse_duration
from batchq.endpoints import refuse_insecure
from batchq.errors import ConfigurationError
from batchq.jobs import DEFAULT_CALL_TIMEOUT_MS, DEFAULT_MAX_ATTEMPTS
from batchq.worker import Endpoint, is_openrouter

OPENROUTER_URL = "https://openrouter.ai/api/v1"
DEFAULT_DB = "runs.db"
DEFAULT_ENDPOINT = "default"
MAX_CONCURRENCY = 10_000


def _seconds(value: object) -> object:
    """Read 90s and 2h; what is no text is for the next to judge."""
    return parse_duration(value) if isinstance(value, str) else value


def _switch(value: object) -> object:
    """Refuse what is no boolean: `insecure = "no"` in a file may be read either way."""
    if not isinstance(value, bool):
        raise ValueError("it should be true or false, without quotes; in a variable 1 or 0")  # noqa: TRY004 - pydantic's
    return value


Seconds = Annotated[FiniteFloat, BeforeValidator(_seconds)]
Switch = Annotated[bool, BeforeValidator(_switch)]


class EndpointSettings(BaseModel, extra="forbid"):
    """A table `[endpoints.NAME]`: a server by its URL, and its key or the file that holds it."""

    base_url: str
    api_key: SecretStr | None = None
    api_key_file: Path | None = None
    insecure: Switch = False
    prices: str | None = None


class Settings(BaseModel):
    """What a process was told. Names are those of flags; variables are BATCHQ_NAME, and MODEL for the model."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    _layers: Layers = PrivateAttr(default_factory=Layers)

    # The queue.
    db: str = DEFAULT_DB
    db_mode: Literal["0600", "0660"] = "0600"
    allow_network_fs: Switch = False

    # Whom to ask, and with which key.
    model: Annotated[str | None, Field(validation_alias=AliasChoices("model", "BATCHQ_MODEL", "MODEL"))] = None
    base_url: str | None = None
    insecure: Switch = False
    api_key_file: Path | None = None
    openrouter_api_key: Annotated[
        SecretStr | None, Field(validation_alias=AliasChoices("openrouter_api_key", "OPENROUTER_API_KEY"))
    ] = None
    openai_api_key: Annotated[
        SecretStr | None, Field(validation_alias=AliasChoices("openai_api_key", "OPENAI_API_KEY"))
    ] = None
    prices: str | None = None
    app_url: Annotated[
        str | None, Field(validation_alias=AliasChoices("app_url", "BATCHQ_APP_URL", "OPENROUTER_APP_URL"))
    ] = None
    app_title: Annotated[
        str | None, Field(validation_alias=AliasChoices("app_title", "BATCHQ_APP_TITLE", "OPENROUTER_APP_TITLE"))
    ] = None
    endpoints: dict[str, EndpointSettings] = Field(default_factory=dict)

    # What commands take where their flag is not given.
    concurrency: Annotated[int, Field(ge=1, le=MAX_CONCURRENCY)] = 16
    lease: Annotated[Seconds, Field(ge=1)] = 60.0
    drain_timeout: Annotated[Seconds, Field(ge=0)] = 120.0
    max_attempts: Annotated[int, Field(ge=1, le=2**31 - 1)] = DEFAULT_MAX_ATTEMPTS
    call_timeout: Annotated[Seconds, Field(ge=0.001)] = DEFAULT_CALL_TIMEOUT_MS / 1000
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "json", "text"] = "auto"

    @property
    def layers(self) -> Layers:
        """Where each setting was read from."""
        return self._layers

    def server(self, name: str) -> Endpoint | None:
        """Return the endpoint of that name without its key; None if this process does not know it."""
        if name in self.endpoints:
            base_url, prices = self.endpoints[name].base_url.rstrip("/"), self.endpoints[name].prices
        elif name == DEFAULT_ENDPOINT:
            base_url, prices = (self.base_url or OPENROUTER_URL).rstrip("/"), self.prices
        else:
            return None
        return Endpoint(name, base_url, None, self._attribution(base_url), prices)

    def endpoint(self, name: str) -> Endpoint | None:
        """Return the endpoint of that name with its key; None if this process does not know it.

        Raises ConfigurationError for a key that can't be read, or may not go there.
        """
        if (found := self.server(name)) is None:
            return None
        if (key := self.key_of(found)) is None:
            return found
        return replace(found, api_key=key_for(found, key, self.server_layer(name), self._layers))

    def require_endpoint(self, name: str) -> Endpoint:
        """Return the endpoint of that name with its key. Raises ConfigurationError if there is none."""
        if (found := self.endpoint(name)) is None:
            raise ConfigurationError(self.unknown_endpoint(name))
        return found

    def require_server(self, name: str) -> Endpoint:
        """Return the endpoint of that name without its key. Raises ConfigurationError if there is none."""
        if (found := self.server(name)) is None:
            raise ConfigurationError(self.unknown_endpoint(name))
        return found

    def refuse_insecure(self, endpoint: Endpoint) -> None:
        """Raise ConfigurationError for an endpoint that may not be called: whoever is between could read along."""
        own = self.endpoints.get(endpoint.name)
        if not self.insecure and (own is None or not own.insecure):
            refuse_insecure(endpoint.base_url)

    def known_endpoints(self) -> list[str]:
        """Return the names of all endpoints that this process can call."""
        return sorted({DEFAULT_ENDPOINT, *self.endpoints})

    def unknown_endpoint(self, name: str) -> str:
        """Say that this process has no endpoint of that name, and which it has."""
        return f"there is no endpoint {name!r} in batchq.toml; known: {', '.join(self.known_endpoints())}"

    def server_layer(self, name: str) -> Layer | None:
        """Return what named the server of an endpoint; None for OpenRouter, which is the default."""
        return self._layers.layer("endpoints", name) if name in self.endpoints else self._layers.layer("base_url")

    def key_of(self, server: Endpoint) -> KeyHere | KeyFile | None:
        """Return the key that is meant for a server, or the file that holds it: OpenRouter's for OpenRouter only."""
        own = self.endpoints.get(server.name)
        path = ("endpoints", server.name) if own is not None else ()
        file = self.api_key_file if own is None else own.api_key_file
        if own is not None and own.api_key is not None and own.api_key.get_secret_value().strip():
            return KeyHere((*path, "api_key"), own.api_key)
        if file is not None:
            return KeyFile((*path, "api_key_file"), file)
        setting = "openrouter_api_key" if is_openrouter(server.base_url) else "openai_api_key"
        key: SecretStr | None = None if own is not None else getattr(self, setting)
        return None if key is None else KeyHere((setting,), key)

    def _attribution(self, base_url: str) -> tuple[tuple[str, str], ...]:
        """Return the headers that tell OpenRouter whose calls these are (openrouter.ai/docs/app-attribution)."""
        if not is_openrouter(base_url):
            return ()
        for setting, value in (("BATCHQ_APP_URL", self.app_url), ("BATCHQ_APP_TITLE", self.app_title)):
            if value and not (value.isascii() and value.isprintable()):
                raise ConfigurationError(f"{setting} is {value!r}: headers hold ASCII characters only")
        named = (("HTTP-Referer", self.app_url), ("X-OpenRouter-Title", self.app_title))
        return tuple((name, value) for name, value in named if value)
