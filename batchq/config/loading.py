"""Reads all settings: each place is a layer, the layers become one value."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from batchq.concealing import remember
from batchq.config.credentials import read_credentials
from batchq.config.dotenv import read_dotenv
from batchq.config.files import DOTENV, credential_directories, file_in, find_upwards, placed_in, site_files, user_file
from batchq.config.layers import Layer, Layers, Place
from batchq.config.settings import DEFAULT_ENDPOINT, Settings
from batchq.config.toml import project_layer, read_toml
from batchq.config.variables import layer_of_variables
from batchq.endpoints import check_url
from batchq.errors import ConfigurationError

if TYPE_CHECKING:
    from batchq.database.rules import FileRules


def load_settings(**flags: object) -> Settings:
    """Read the settings; flags that are None were not given. Raises ConfigurationError."""
    return settings_from(read_layers(flags))


def read_layers(flags: Mapping[str, object]) -> Layers:
    """Read every place that says something, the strongest first. Raises ConfigurationError."""
    given = {name: value for name, value in flags.items() if value is not None}
    dotenv = find_upwards(DOTENV)
    project = project_layer()
    layers = [
        Layer(Place.FLAG, given),
        layer_of_variables(Place.ENVIRONMENT, os.environ),
        *([] if dotenv is None else [_layer_of_dotenv(dotenv)]),
        *(read_credentials(directory) for directory in credential_directories()),
        *([] if project is None else [project]),
        *_layers_of(Place.USER, [user_file()]),
        *_layers_of(Place.SITE, site_files()),
    ]
    return Layers(tuple(layers))


def settings_from(layers: Layers) -> Settings:
    """Make one value of what was read. Raises ConfigurationError."""
    try:
        settings = Settings.model_validate(layers.merged())
    except ValidationError as error:
        problems = "; ".join(
            f"{layers.told(*item['loc'])}: {item['msg'].removeprefix('Value error, ')}" for item in error.errors()
        )
        raise ConfigurationError(f"the settings are not usable: {problems}") from None
    settings._layers = layers  # noqa: SLF001 - the one place that makes them
    _remember_keys(settings)
    if settings.base_url is not None:
        check_url(settings.base_url, layers.told("base_url"))
    if DEFAULT_ENDPOINT in settings.endpoints:
        where = layers.told("endpoints", DEFAULT_ENDPOINT)
        raise ConfigurationError(f"{where}: the endpoint {DEFAULT_ENDPOINT} is what base_url says: set that instead")
    for name, endpoint in settings.endpoints.items():
        check_url(endpoint.base_url, layers.told("endpoints", name, "base_url"))
    return settings


def rules_of_settings() -> FileRules:
    """Read what this process may do with a queue's file."""
    from batchq.database.rules import FileRules

    settings = load_settings()
    return FileRules(int(settings.db_mode, 8), settings.allow_network_fs)


def _layer_of_dotenv(path: Path) -> Layer:
    layer = layer_of_variables(Place.DOTENV, read_dotenv(path), path)
    return replace(layer, values=placed_in(path.parent, layer.values))


def _layers_of(place: Place, paths: list[Path]) -> list[Layer]:
    """Read those files that are there. One that this user may not read is a mistake, and is told."""
    return [read_toml(place, path) for path in paths if file_in(path.parent, path.name)]


def _remember_keys(settings: Settings) -> None:
    own = (endpoint.api_key for endpoint in settings.endpoints.values())
    for key in (settings.openrouter_api_key, settings.openai_api_key, *own):
        if key is not None:
            remember(key.get_secret_value().strip())
