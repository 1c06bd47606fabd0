"""Reads settings from TOML: the project's file, the user's and the site's."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path

from batchq.config.files import PYPROJECT, TOML, file_in, placed_in, refuse_mark, upwards
from batchq.config.layers import Layer, Place
from batchq.config.settings import EndpointSettings, Settings
from batchq.errors import ConfigurationError


def project_layer() -> Layer | None:
    """Return what the nearest project file says: batchq.toml, or pyproject.toml where that has [tool.batchq]."""
    for directory in upwards():
        own, shared = file_in(directory, TOML), file_in(directory, PYPROJECT)
        table = None if shared is None else _table_of(shared)
        if own is not None and table is not None:
            raise ConfigurationError(f"{own} and [tool.batchq] in {shared} both hold settings: keep one of the two")
        if own is not None:
            return read_toml(Place.PROJECT, own)
        if shared is not None and table is not None:
            return _layer(Place.PROJECT, shared, table, "tool.batchq.")
    return None


def read_toml(place: Place, path: Path) -> Layer:
    """Read a file of settings and refuse a key that means nothing, which may be a slip of the pen."""
    return _layer(place, path, _parsed(path, _text_of(path)), "")


def _table_of(path: Path) -> dict[str, object] | None:
    """Return the table [tool.batchq] of a pyproject.toml; None if it has none, or is somebody else's and broken."""
    if b"batchq" not in _bytes_of(path):
        return None
    text = _text_of(path)
    tools = _parsed(path, text).get("tool")
    table = tools.get("batchq") if isinstance(tools, dict) else None
    if table is not None and not isinstance(table, dict):
        raise ConfigurationError(f"{path}: tool.batchq is no table: write [tool.batchq] above its keys")
    return table


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"can't read {path}: {error.strerror or error}") from None


def _text_of(path: Path) -> str:
    try:
        text = _bytes_of(path).decode()
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path} is not UTF-8 text") from None
    refuse_mark(path, text)
    return text


def _parsed(path: Path, text: str) -> dict[str, object]:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path} can't be read: {error}") from None


def _layer(place: Place, path: Path, values: Mapping[str, object], prefix: str) -> Layer:
    _refuse_unknown(path, prefix, values, set(Settings.model_fields))
    endpoints = values.get("endpoints", {})
    if not isinstance(endpoints, dict):
        raise ConfigurationError(f"{prefix}endpoints in {path} is no table: write [{prefix}endpoints.NAME]")
    for name, table in endpoints.items():
        where = f"{prefix}endpoints.{name}"
        if not isinstance(table, dict):
            raise ConfigurationError(f"{path}: {where} is no table: write [{prefix}endpoints.NAME] above its keys")
        _refuse_unknown(path, f"{where}.", table, set(EndpointSettings.model_fields))
    placed = placed_in(path.parent, values)
    if endpoints:
        placed["endpoints"] = {name: placed_in(path.parent, table) for name, table in endpoints.items()}
    return Layer(place, placed, path, {name: prefix + name for name in placed if name != "endpoints"} if prefix else {})


def _refuse_unknown(path: Path, prefix: str, values: Mapping[str, object], known: set[str]) -> None:
    for name in values:
        if name not in known:
            raise ConfigurationError(
                f"{path}: there is no setting {prefix + name!r}; known: {', '.join(sorted(known))}"
            )
