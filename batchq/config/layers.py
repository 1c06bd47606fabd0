"""Where settings come from: each place is a layer, and the first that names a setting wins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path


class Place(StrEnum):
    """A kind of place that settings are read from, the strongest first."""

    FLAG = "flag"
    ENVIRONMENT = "environment"
    DOTENV = ".env"
    CREDENTIAL = "credential"
    PROJECT = "project"
    USER = "user"
    SITE = "site"


# What lies in a directory may have come with it, from whoever has written what is there.
FOUND_UPWARDS = frozenset({Place.DOTENV, Place.PROJECT})


@dataclass(frozen=True, slots=True)
class Layer:
    """What one place says; `names` are the variables that hold the settings, where they are other than the keys."""

    place: Place
    values: Mapping[str, object] = field(repr=False)
    path: Path | None = None
    names: Mapping[str, str] = field(default_factory=dict)

    def told(self, *location: str | int) -> str:
        """Return the flag, the variable, or the file and key, of the setting at `location`."""
        setting = str(location[0])
        if self.place is Place.FLAG:
            return f"--{setting.replace('_', '-')}"
        name = self.names.get(setting, ".".join(map(str, location)))
        return f"{name} in {'the environment' if self.path is None else self.path}"

    @property
    def directory(self) -> Path | None:
        """The directory of a file that was found by searching upwards; None for all that was not."""
        return None if self.path is None or self.place not in FOUND_UPWARDS else self.path.parent


@dataclass(frozen=True, slots=True)
class Layers:
    """All that was read, the strongest first."""

    every: Sequence[Layer] = ()

    def merged(self) -> dict[str, object]:
        """Return each setting as the strongest layer has it.

        An endpoint comes whole from one layer: a key of one and a server of another would be a key sent elsewhere.
        """
        values: dict[str, object] = {}
        endpoints: dict[str, object] = {}
        for layer in reversed(self.every):
            values.update(layer.values)
            own = layer.values.get("endpoints")
            if isinstance(own, Mapping):
                endpoints.update(own)
        if isinstance(values.get("endpoints"), Mapping):
            values["endpoints"] = endpoints
        return values

    def layer(self, setting: str, endpoint: str | int | None = None) -> Layer | None:
        """Return the layer that a setting, or an endpoint, was taken from; None for a default."""
        return next(self._holding(setting, endpoint), None)

    def told(self, *location: str | int) -> str:
        """Return the flag, variable, or file and key, that the setting at `location` was read from."""
        found = self.layer(*map(str, location[:2])) if location[0] == "endpoints" else self.layer(str(location[0]))
        return ".".join(map(str, location)) if found is None else found.told(*location)

    def _holding(self, setting: str, endpoint: str | int | None) -> Iterator[Layer]:
        for layer in self.every:
            if setting not in layer.values:
                continue
            held = layer.values[setting]
            if endpoint is None or not isinstance(held, Mapping) or endpoint in held:
                yield layer
