"""Settings: flags, then environment, then `.env`, then `batchq.toml`, then defaults.

`.env` and `batchq.toml` are searched upwards from the current directory. A flag that was not given is
None and falls through. Keys are read here and given to workers; they are never stored or logged.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AliasChoices, BaseModel, Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from batchq.errors import ConfigurationError
from batchq.worker import Endpoint

OPENROUTER_URL = "https://openrouter.ai/api/v1"
DEFAULT_DB = "runs.db"
DEFAULT_ENDPOINT = "default"


class EndpointSettings(BaseModel, extra="forbid"):
    """A `[endpoints.NAME]` table of batchq.toml: a server by its URL, and the variable that holds its key."""

    base_url: str
    api_key: SecretStr | None = None
    api_key_file: Path | None = None


class Settings(BaseSettings):
    """What a process was told. Names are those of flags; variables are BATCHQ_NAME, and MODEL for the model."""

    model_config = SettingsConfigDict(env_prefix="BATCHQ_", extra="ignore", env_ignore_empty=True, frozen=True)

    db: str = DEFAULT_DB
    model: Annotated[str | None, Field(validation_alias=AliasChoices("model", "BATCHQ_MODEL", "MODEL"))] = None
    base_url: str | None = None
    api_key_file: Path | None = None
    openrouter_api_key: Annotated[
        SecretStr | None, Field(validation_alias=AliasChoices("openrouter_api_key", "OPENROUTER_API_KEY"))
    ] = None
    openai_api_key: Annotated[
        SecretStr | None, Field(validation_alias=AliasChoices("openai_api_key", "OPENAI_API_KEY"))
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
        toml = TomlConfigSettingsSource(settings_cls, toml_file=find_upwards("batchq.toml"))
        return init_settings, env_settings, dotenv_settings, file_secret_settings, toml

    def endpoint(self, name: str) -> Endpoint | None:
        """Return the endpoint of that name with its key; None if this process does not know it."""
        if name in self.endpoints:
            found = self.endpoints[name]
            key = found.api_key.get_secret_value() if found.api_key else _read_key(found.api_key_file)
            return Endpoint(name, found.base_url.rstrip("/"), key)
        if name != DEFAULT_ENDPOINT:
            return None
        base_url = (self.base_url or OPENROUTER_URL).rstrip("/")
        return Endpoint(name, base_url, _read_key(self.api_key_file) or self._key_for(base_url))

    def known_endpoints(self) -> list[str]:
        """Return the names of all endpoints that this process can call."""
        return sorted({DEFAULT_ENDPOINT, *self.endpoints})

    def _key_for(self, base_url: str) -> str | None:
        """Choose the key by the server: OpenRouter's goes to OpenRouter only."""
        key = self.openrouter_api_key if is_openrouter(base_url) else self.openai_api_key
        return key.get_secret_value() if key else None


def load_settings(**flags: object) -> Settings:
    """Read the settings; flags that are None were not given. Raises ConfigurationError."""
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        return Settings(_env_file=find_upwards(".env"), **given)  # type: ignore[arg-type, call-arg]
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise ConfigurationError(f"the settings are not usable: {problems}") from None
    except ValueError as error:  # a .env or TOML file that can't be parsed
        raise ConfigurationError(f"the settings can't be read: {error}") from None


def find_upwards(name: str) -> Path | None:
    """Return the nearest file of that name in the current directory or above it."""
    here = Path.cwd()
    for directory in (here, *here.parents):
        if (candidate := directory / name).is_file():
            return candidate
    return None


def is_openrouter(base_url: str) -> bool:
    """Whether a URL is OpenRouter's."""
    host = urlsplit(base_url).hostname or ""
    return host == "openrouter.ai" or host.endswith(".openrouter.ai")


def _read_key(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        key = path.expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"can't read the key from {path}: {error}") from error
    if not key:
        raise ConfigurationError(f"{path} holds no key")
    return key
