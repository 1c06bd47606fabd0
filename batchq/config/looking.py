"""Which places settings were looked for in, and what was there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from batchq.config.files import DOTENV, PYPROJECT, TOML, credential_directories, site_files, user_file
from batchq.config.layers import Layers, Place


@dataclass(frozen=True, slots=True)
class LookedAt:
    """A file or directory that settings may be in; `path` None where nothing of that kind was found upwards."""

    place: Place
    path: Path | None
    found: bool
    sought: str


def looked_at(layers: Layers) -> list[LookedAt]:
    """Return where settings were looked for beside flags and the environment, the strongest first."""
    return [*_found_upwards(layers, Place.DOTENV, DOTENV), *_credentials(layers), *_files(layers)]


def _found_upwards(layers: Layers, place: Place, sought: str) -> Iterator[LookedAt]:
    path = next((layer.path for layer in layers.every if layer.place is place), None)
    yield LookedAt(place, path, path is not None, f"{sought}, in {Path.cwd()} or above")


def _credentials(layers: Layers) -> Iterator[LookedAt]:
    held = {layer.path for layer in layers.every if layer.place is Place.CREDENTIAL and layer.values}
    for directory in credential_directories():
        yield LookedAt(Place.CREDENTIAL, directory, directory in held, "files named like the variables")


def _files(layers: Layers) -> Iterator[LookedAt]:
    yield from _found_upwards(layers, Place.PROJECT, f"{TOML}, or [tool.batchq] in {PYPROJECT}")
    read = {layer.path for layer in layers.every}
    for place, paths in ((Place.USER, [user_file()]), (Place.SITE, site_files())):
        for path in paths:
            yield LookedAt(place, path, path in read, path.name)
