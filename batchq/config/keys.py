"""The key of an endpoint: where it is, and whether it may go to the server.

`.env` and the project's file are found by searching upwards, and may be those of a repository that was cloned a minute
ago. A server that only such a file names gets keys that lie beside that file, or below, and no others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import SecretStr

from batchq.config.layers import Layer, Layers
from batchq.endpoints import read_key, usable_key
from batchq.errors import ConfigurationError
from batchq.worker import Endpoint, is_loopback, is_openrouter

# The hosts that a key was made for.
_HOMES = {"openai_api_key": "api.openai.com"}


@dataclass(frozen=True, slots=True)
class KeyHere:
    """A key that a setting holds, by its location among them."""

    location: tuple[str, ...]
    secret: SecretStr = field(repr=False)


@dataclass(frozen=True, slots=True)
class KeyFile:
    """A file that holds a key."""

    location: tuple[str, ...]
    path: Path


def key_for(server: Endpoint, key: KeyHere | KeyFile, named_by: Layer | None, layers: Layers) -> str | None:
    """Return a key as it is sent to a server that a layer has named. Raises ConfigurationError where it may not be."""
    value = _value_of(key)
    if value is not None and is_stray(server.base_url, key, named_by, layers):
        place = "" if named_by is None else named_by.told(*_location_of(server, named_by))
        raise ConfigurationError(
            f"{place} names the server {server.base_url}, and the key from {layers.told(*key.location)} would go there:"
            " a file that is found in a directory gets no key from elsewhere. If you mean it, name the server yourself,"
            " by --base-url, BATCHQ_BASE_URL in the environment or your own config.toml (`batchq config show` says"
            " where that is), or put the key into .env beside that file"
        )
    return value


def is_stray(base_url: str, key: KeyHere | KeyFile, named_by: Layer | None, layers: Layers) -> bool:
    """Whether a key would go where only a file that was found upwards says."""
    directory = None if named_by is None else named_by.directory
    if directory is None or is_loopback(base_url) or _is_home(base_url, key.location[-1]):
        return False
    if _origin(base_url) in _named_by_the_user(layers):
        return False
    if isinstance(key, KeyFile):
        return not _lies_in(directory, key.path.expanduser())
    source = layers.layer(*key.location[:2]) if key.location[0] == "endpoints" else layers.layer(key.location[0])
    return source is None or source.directory is None or not _lies_in(directory, source.directory)


def _value_of(key: KeyHere | KeyFile) -> str | None:
    if isinstance(key, KeyFile):
        return read_key(key.path)
    setting = key.location[-1]
    origin = f"api_key of the endpoint {key.location[1]!r}" if len(key.location) > 1 else setting.upper()
    return usable_key(key.secret.get_secret_value(), origin) or None


def _location_of(server: Endpoint, named_by: Layer) -> tuple[str, ...]:
    endpoints = named_by.values.get("endpoints")
    if isinstance(endpoints, dict) and server.name in endpoints:
        return ("endpoints", server.name, "base_url")
    return ("base_url",)


def _lies_in(directory: Path, path: Path) -> bool:
    """Whether a file is in a directory, or below; links are followed."""
    return path.resolve().is_relative_to(directory.resolve())


def _is_home(base_url: str, setting: str) -> bool:
    parts = urlsplit(base_url)
    if parts.scheme != "https":
        return False
    return (setting == "openrouter_api_key" and is_openrouter(base_url)) or parts.hostname == _HOMES.get(setting)


def _named_by_the_user(layers: Layers) -> set[tuple[str, str]]:
    """Return the servers that places name which do not come with a directory."""
    return {_origin(url) for layer in layers.every if layer.directory is None for url in _servers_of(layer)}


def _servers_of(layer: Layer) -> Iterator[str]:
    endpoints = layer.values.get("endpoints")
    tables = list(endpoints.values()) if isinstance(endpoints, dict) else []
    for url in (layer.values.get("base_url"), *(table.get("base_url") for table in tables if isinstance(table, dict))):
        if isinstance(url, str):
            yield url


def _origin(base_url: str) -> tuple[str, str]:
    try:
        parts = urlsplit(base_url)
    except ValueError:  # of a weaker layer: nobody is asked to call it
        return "", ""
    return parts.scheme, parts.netloc.lower()
