"""`batchq config show`: each setting, its value, and where it came from."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from batchq.cli.options import HELP_NAMES, command_class, db_option, insecure_option, json_option
from batchq.display.text import table
from batchq.escapes import clean

if TYPE_CHECKING:
    from batchq.cli.servers import Called
    from batchq.config import Settings
    from batchq.config.looking import LookedAt

_SECRET = "set, not shown"  # noqa: S105 - what stands for a key
_DURATIONS = frozenset({"lease", "drain_timeout", "call_timeout"})


@click.command(
    cls=command_class(), context_settings=HELP_NAMES, short_help="Show each setting, and where it came from."
)
@click.option("--base-url", metavar="URL", help="As if a command were given this server.")
@click.option("--api-key-file", type=click.Path(path_type=Path), metavar="FILE", help="And this file with its key.")
@insecure_option
@db_option
@json_option
def show(*, base_url: str | None, api_key_file: Path | None, insecure: bool, db: str | None, as_json: bool) -> None:
    """Show the settings as commands in this directory have them, and which servers get which key. No key is shown.

    \b
    batchq config show
    batchq config show --base-url https://api.example.com/v1
    batchq config show --json | jq .settings.db
    """
    from batchq.cli.servers import servers_of
    from batchq.config import load_settings
    from batchq.config.looking import looked_at

    settings = load_settings(db=db, base_url=base_url, api_key_file=api_key_file, insecure=insecure or None)
    called, places = servers_of(settings, settings.known_endpoints()), looked_at(settings.layers)
    if as_json:
        click.echo(json.dumps(_as_json(settings, called, places)))
        return
    for line in _lines(settings, called, places):
        click.echo(clean(line))


def _lines(settings: Settings, called: list[Called], places: list[LookedAt]) -> list[str]:
    rows = [(name, _told_value(name, value), origin or "default") for name, value, origin in _rows(settings)]
    lines = table(("setting", "value", "from"), rows, left=3)
    lines += ["", "servers", *(f"  {item.told()}" for item in called)]
    lines += ["", "looked for, after flags and the environment"]
    for place in places:
        where = place.sought if place.path is None else str(place.path)
        lines.append(f"  {place.place:<10}  {'read ' if place.found else 'none '}  {where}")
    return lines


def _told_value(name: str, value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}s" if name in _DURATIONS else str(value)


def _rows(settings: Settings) -> list[tuple[str, object, str | None]]:
    """Return each setting with its value, as it may be shown, and where it came from; None is a default."""
    names = [name for name in type(settings).model_fields if name != "endpoints"]
    rows = [(name, _shown(name, getattr(settings, name)), _origin(settings, name)) for name in names]
    for endpoint, own in settings.endpoints.items():
        for name in sorted(own.model_fields_set):
            location = ("endpoints", endpoint, name)
            rows.append((".".join(location), _shown(name, getattr(own, name)), _origin(settings, *location)))
    return rows


def _origin(settings: Settings, *location: str) -> str | None:
    return None if settings.layers.layer(*location[:2]) is None else settings.layers.told(*location)


def _shown(name: str, value: object) -> object:
    from pydantic import SecretStr

    from batchq.database.location import shown_location

    if isinstance(value, SecretStr):
        return _SECRET if value.get_secret_value().strip() else None
    if name == "db":
        return shown_location(str(value)) if "://" in str(value) else value
    return str(value) if isinstance(value, Path) else value


def _as_json(settings: Settings, called: list[Called], places: list[LookedAt]) -> dict[str, object]:
    return {
        "settings": {name: {"value": value, "from": origin or "default"} for name, value, origin in _rows(settings)},
        "servers": [asdict(item) for item in called],
        "places": [
            {"place": item.place, "path": None if item.path is None else str(item.path), "found": item.found}
            for item in places
        ],
    }
