"""Settings: flags, then environment, then `.env`, then `batchq.toml`, then defaults.

`.env` and `batchq.toml` are searched upwards from the current directory. A flag that was not given is
None and falls through. Keys are read here and given to workers; they are never stored or logged.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AliasChoices, BaseModel, Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from batchq.concealing import remember
from batchq.endpoints import check_url, read_key, refuse_insecure, usable_key
from batchq.errors import ConfigurationError
from batchq.worker import Endpoint, is_openrouter

if TYPE_CHECKING:
    from batchq.database.rules import FileRules

OPENROUTER_URL = "https://openrouter.ai/api/v1"
DEFAULT_DB = "runs.db"
DEFAULT_ENDPOINT = "default"
DOTENV, TOML = ".env", "batchq.toml"
_NO_SETTINGS = ("BATCHQ_DEBUG", "BATCHQ_TEST_")
_BOM = "\ufeff"


class EndpointSettings(BaseModel, extra="forbid"):
    """A `[endpoints.NAME]` table of batchq.toml: a server by its URL, and its key or the file that holds it."""

    base_url: str
    api_key: SecretStr | None = None
    api_key_file: Path | None = None
    insecure: bool = False
    prices: str | None = None


class Settings(BaseSettings):
    """What a process was told. Names are those of flags; variables are BATCHQ_NAME, and MODEL for the model."""

    model_config = SettingsConfigDict(env_prefix="BATCHQ_", extra="ignore", env_ignore_empty=True, frozen=True)

    db: str = DEFAULT_DB
    model: Annotated[str | None, Field(validation_alias=AliasChoices("model", "BATCHQ_MODEL", "MODEL"))] = None
    base_url: str | None = None
    insecure: bool = False
    api_key_file: Path | None = None
    openrouter_api_key: Annotated[
        SecretStr | None, Field(validation_alias=AliasChoices("openrouter_api_key", "OPENROUTER_API_KEY"))
    ] = None
    openai_api_key: Annotated[
        SecretStr | None, Field(validation_alias=AliasChoices("openai_api_key", "OPENAI_API_KEY"))
    ] = None
    prices: str | None = None
    db_mode: Literal["0600", "0660"] = "0600"
    allow_network_fs: bool = False
    app_url: Annotated[
        str | None, Field(validation_alias=AliasChoices("app_url", "BATCHQ_APP_URL", "OPENROUTER_APP_URL"))
    ] = None
    app_title: Annotated[
        str | None, Field(validation_alias=AliasChoices("app_title", "BATCHQ_APP_TITLE", "OPENROUTER_APP_TITLE"))
    ] = None
    endpoints: dict[str, EndpointSettings] = Field(default_factory=dict)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Put batchq.toml behind everything else."""
        toml = TomlConfigSettingsSource(settings_cls, toml_file=find_upwards(TOML))
        return init_settings, env_settings, dotenv_settings, file_secret_settings, toml

    def endpoint(self, name: str) -> Endpoint | None:
        """Return the endpoint of that name with its key; None if this process does not know it."""
        if name in self.endpoints:
            found = self.endpoints[name]
            key = _key_of(found.api_key, f"api_key of the endpoint {name!r}") or _read_file(found.api_key_file)
            base_url = found.base_url.rstrip("/")
            return Endpoint(name, base_url, key, self._attribution(base_url), found.prices)
        if name != DEFAULT_ENDPOINT:
            return None
        base_url = (self.base_url or OPENROUTER_URL).rstrip("/")
        key = _read_file(self.api_key_file) or self._key_for(base_url)
        return Endpoint(name, base_url, key, self._attribution(base_url), self.prices)

    def require_endpoint(self, name: str) -> Endpoint:
        """Return the endpoint of that name with its key. Raises ConfigurationError if there is none."""
        if (found := self.endpoint(name)) is None:
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
        return f"there is no endpoint {name!r} in {TOML}; known: {', '.join(self.known_endpoints())}"

    def _attribution(self, base_url: str) -> tuple[tuple[str, str], ...]:
        """Return the headers that tell OpenRouter whose calls these are (openrouter.ai/docs/app-attribution)."""
        if not is_openrouter(base_url):
            return ()
        for setting, value in (("BATCHQ_APP_URL", self.app_url), ("BATCHQ_APP_TITLE", self.app_title)):
            if value and not (value.isascii() and value.isprintable()):
                raise ConfigurationError(f"{setting} is {value!r}: headers hold ASCII characters only")
        named = (("HTTP-Referer", self.app_url), ("X-OpenRouter-Title", self.app_title))
        return tuple((name, value) for name, value in named if value)

    def _key_for(self, base_url: str) -> str | None:
        """Choose the key by the server: OpenRouter's goes to OpenRouter only."""
        if is_openrouter(base_url):
            return _key_of(self.openrouter_api_key, "OPENROUTER_API_KEY")
        return _key_of(self.openai_api_key, "OPENAI_API_KEY")


def load_settings(**flags: object) -> Settings:
    """Read the settings; flags that are None were not given. Raises ConfigurationError."""
    given = {name: value for name, value in flags.items() if value is not None}
    dotenv, toml = find_upwards(DOTENV), find_upwards(TOML)
    origins = _Origins(given, _read_dotenv(dotenv), dotenv, _read_toml(toml), toml)
    _refuse_unknown_variables("the environment", os.environ)
    _refuse_unknown_variables(str(dotenv), origins.dotenv)
    try:
        settings = Settings(_env_file=dotenv, **given)  # type: ignore[arg-type, call-arg]
    except ValidationError as error:
        problems = "; ".join(f"{origins.of(*item['loc'])}: {item['msg']}" for item in error.errors())
        raise ConfigurationError(f"the settings are not usable: {problems}") from None
    except ValueError as error:  # a variable that should hold JSON
        raise ConfigurationError(f"the settings can't be read: {error}") from None
    _remember_keys(settings)
    if settings.base_url is not None:
        check_url(settings.base_url, origins.of("base_url"))
    for name, endpoint in settings.endpoints.items():
        check_url(endpoint.base_url, origins.of("endpoints", name, "base_url"))
    return settings


def rules_of_settings() -> FileRules:
    """Read what this process may do with a queue's file."""
    from batchq.database.rules import FileRules

    settings = load_settings()
    return FileRules(int(settings.db_mode, 8), settings.allow_network_fs)


def find_upwards(name: str) -> Path | None:
    """Return the nearest file of that name in the current directory or above it."""
    try:
        here = Path.cwd()
    except OSError:
        raise ConfigurationError("the current directory does not exist any more: change to another") from None
    for directory in (here, *here.parents):
        with suppress(OSError):  # a directory that this user may not look into
            if (candidate := directory / name).is_file():
                return candidate
    return None


@dataclass(frozen=True, slots=True)
class _Origins:
    """Where each setting came from, for messages."""

    flags: Mapping[str, object] = field(repr=False)
    dotenv: Mapping[str, str | None] = field(repr=False)
    dotenv_path: Path | None
    toml: Mapping[str, object] = field(repr=False)
    toml_path: Path | None

    def of(self, *location: str | int) -> str:
        """Return the flag, variable, or file and key, that the setting at `location` was read from."""
        field = str(location[0])
        dotted = ".".join(map(str, location))
        if field in self.flags:
            return f"--{field.replace('_', '-')}"
        variables = {field.upper(), f"BATCHQ_{field.upper()}"}
        for name in os.environ:
            if name.upper() in variables and os.environ[name]:
                return f"{name} in the environment"
        for name, value in self.dotenv.items():
            if name.upper() in variables and value:
                return f"{name} in {self.dotenv_path}"
        return f"{dotted} in {self.toml_path}" if field in self.toml else dotted


def _read_dotenv(path: Path | None) -> dict[str, str | None]:
    """Read a .env file and refuse a line that says nothing; pydantic-settings would pass over it."""
    if path is None:
        return {}
    from dotenv.parser import parse_stream

    values: dict[str, str | None] = {}
    try:
        with path.open(encoding="utf-8") as file:
            _refuse_mark(path, file.read(1))
            file.seek(0)
            for binding in parse_stream(file):
                if binding.error:
                    blank = len(binding.original.string) - len(binding.original.string.lstrip("\r\n"))
                    line = binding.original.line + binding.original.string[:blank].count("\n")
                    raise ConfigurationError(f"{path}:{line}: this line can't be read; it should be NAME=value")
                if binding.key is not None:
                    values[binding.key] = binding.value
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path} is not UTF-8 text") from None
    except OSError as error:
        raise ConfigurationError(f"can't read {path}: {error.strerror or error}") from None
    return values


def _read_toml(path: Path | None) -> dict[str, object]:
    """Read a batchq.toml and refuse a key that means nothing, which may be a slip of the pen."""
    if path is None:
        return {}
    try:
        text = path.read_text(encoding="utf-8")
        _refuse_mark(path, text)
        values = tomllib.loads(text)
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path} is not UTF-8 text") from None
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path} can't be read: {error}") from None
    except OSError as error:
        raise ConfigurationError(f"can't read {path}: {error.strerror or error}") from None
    _refuse_unknown(path, "", values, set(Settings.model_fields))
    endpoints = values.get("endpoints")
    for name, table in (endpoints if isinstance(endpoints, dict) else {}).items():
        if not isinstance(table, dict):
            raise ConfigurationError(f"{path}: endpoints.{name} is no table: write [endpoints.NAME] above its keys")
        _refuse_unknown(path, f"endpoints.{name}.", table, set(EndpointSettings.model_fields))
    return values


def _refuse_mark(path: Path, start: str) -> None:
    """Raise ConfigurationError for the byte order mark of some editors: the first name would not be what it seems."""
    if start.startswith(_BOM):
        raise ConfigurationError(f"{path} begins with a byte order mark: save it as UTF-8 without one")


def _refuse_unknown(path: Path, prefix: str, values: Mapping[str, object], known: set[str]) -> None:
    for name in values:
        if name not in known:
            raise ConfigurationError(
                f"{path}: there is no setting {prefix + name!r}; known: {', '.join(sorted(known))}"
            )


def _refuse_unknown_variables(place: str, variables: Iterable[str]) -> None:
    """Raise ConfigurationError for a variable that is named like a setting and is none."""
    known = {f"BATCHQ_{name.upper()}" for name, found in Settings.model_fields.items() if not found.validation_alias}
    for found in Settings.model_fields.values():
        if isinstance(found.validation_alias, AliasChoices):
            known.update(name for name in found.validation_alias.choices if isinstance(name, str) and name.isupper())
    for name in variables:
        upper = name.upper()
        if upper.startswith("BATCHQ_") and not upper.startswith(_NO_SETTINGS) and upper not in known:
            raise ConfigurationError(f"{place}: there is no setting {name}; known: {', '.join(sorted(known))}")


def _remember_keys(settings: Settings) -> None:
    own = (endpoint.api_key for endpoint in settings.endpoints.values())
    for key in (settings.openrouter_api_key, settings.openai_api_key, *own):
        if key is not None:
            remember(key.get_secret_value().strip())


def _key_of(secret: SecretStr | None, origin: str) -> str | None:
    return usable_key(secret.get_secret_value(), origin) or None if secret is not None else None


def _read_file(path: Path | None) -> str | None:
    return None if path is None else read_key(path)
