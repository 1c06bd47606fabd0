"""Whether the settings can be read, and who else may read the keys among them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from batchq.config.layers import FOUND_UPWARDS, Layer, Place
from batchq.doctor.finding import Finding, error, ok, warning

if TYPE_CHECKING:
    from batchq.config import Settings

_NAME = "settings"
_KEYS = ("api_key", "_api_key")
# A service manager or container engine has put these there, and says who may read them.
_OTHERS_PLACES = {Place.FLAG, Place.ENVIRONMENT, Place.CREDENTIAL}


def check_settings(settings: Settings) -> Iterator[Finding]:
    """Tell which files were read, and of those with keys that others may read or change."""
    files = [str(layer.path) for layer in settings.layers.every if layer.path is not None and layer.values]
    yield ok(_NAME, f"read from {', '.join(files)}" if files else "from flags, the environment and defaults: no files")
    for path in _key_files(settings):
        yield from _judge_mode(path)
    for layer in settings.layers.every:
        if layer.path is not None and layer.place in FOUND_UPWARDS and _others_may(layer.path, stat.S_IWOTH):
            yield error(
                _NAME,
                f"{layer.path} can be changed by every user: it says where your keys go",
                f"chmod o-w {layer.path}",
            )


def _key_files(settings: Settings) -> list[Path]:
    """Return the files that hold keys: settings files with a key in them, and files that hold nothing else."""
    found = [
        layer.path
        for layer in settings.layers.every
        if layer.path is not None and layer.place not in _OTHERS_PLACES and _holds_key(layer)
    ]
    own = [endpoint.api_key_file for endpoint in settings.endpoints.values()]
    found += [path.expanduser() for path in (settings.api_key_file, *own) if path is not None]
    return list(dict.fromkeys(found))


def _holds_key(layer: Layer) -> bool:
    endpoints = layer.values.get("endpoints")
    tables = list(endpoints.values()) if isinstance(endpoints, Mapping) else []
    places = [layer.values, *(table for table in tables if isinstance(table, Mapping))]
    return any(name.endswith(_KEYS) and value for place in places for name, value in place.items())


def _judge_mode(path: Path) -> Iterator[Finding]:
    if _others_may(path, stat.S_IROTH):
        yield warning(_NAME, f"{path} holds a key, and every user of this machine can read it", f"chmod 600 {path}")


def _others_may(path: Path, right: int) -> bool:
    if os.name != "posix":
        return False
    try:
        return bool(path.stat().st_mode & right)
    except OSError:
        return False  # the settings themselves tell of a file that can't be read
