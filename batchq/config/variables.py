"""The variables that hold settings, in the environment and in `.env`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

from pydantic import AliasChoices

from batchq.config.layers import Layer, Place
from batchq.config.settings import Settings
from batchq.errors import ConfigurationError

PREFIX = "BATCHQ_"
# Variables of batchq that say how it runs, and are no settings.
_NO_SETTINGS = ("BATCHQ_DEBUG", "BATCHQ_RUNTIME_DIR", "BATCHQ_TEST_")

_SWITCHES = frozenset({"insecure", "allow_network_fs"})
_WORDS = {**dict.fromkeys(("1", "true", "yes", "on"), True), **dict.fromkeys(("0", "false", "no", "off"), False)}


@cache
def variables_of_settings() -> dict[str, tuple[str, ...]]:
    """Return the variables of each setting, the strongest first."""
    found: dict[str, tuple[str, ...]] = {}
    for setting, field in Settings.model_fields.items():
        alias = field.validation_alias
        choices = alias.choices if isinstance(alias, AliasChoices) else (f"{PREFIX}{setting.upper()}",)
        found[setting] = tuple(name for name in choices if isinstance(name, str) and name.isupper())
    return found


def layer_of_variables(place: Place, variables: Mapping[str, str | None], path: Path | None = None) -> Layer:
    """Return the settings that variables hold; an empty one says nothing. Raises ConfigurationError."""
    _refuse_unknown("the environment" if path is None else str(path), variables)
    given = {name.upper(): (name, value) for name, value in variables.items() if value}
    values: dict[str, object] = {}
    names: dict[str, str] = {}
    for setting, choices in variables_of_settings().items():
        for choice in choices:
            if choice in given and setting not in values:
                names[setting], values[setting] = given[choice]
    for switch in _SWITCHES & values.keys():
        values[switch] = _WORDS.get(str(values[switch]).strip().lower(), values[switch])
    layer = Layer(place, values, path, names)
    if "endpoints" in values:
        values["endpoints"] = _endpoints(str(values["endpoints"]), layer.told("endpoints"))
    return layer


def _endpoints(text: str, origin: str) -> dict[str, object]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ConfigurationError(f'{origin} should hold a JSON object: {{NAME: {{"base_url": URL}}}}')
    return value


def _refuse_unknown(place: str, variables: Iterable[str]) -> None:
    """Raise ConfigurationError for a variable that is named like a setting and is none."""
    known = {name for names in variables_of_settings().values() for name in names}
    for name in variables:
        upper = name.upper()
        if upper.startswith(PREFIX) and not upper.startswith(_NO_SETTINGS) and upper not in known:
            raise ConfigurationError(f"{place}: there is no setting {name}; known: {', '.join(sorted(known))}")
