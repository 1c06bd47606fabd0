"""Which server an endpoint is, with which key, and who says so: told wherever a file may have sent calls elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from batchq.config import Settings


@dataclass(frozen=True, slots=True)
class Called:
    """A server that this process may call."""

    endpoint: str
    base_url: str
    named_by: str | None
    key_from: str | None
    key_withheld: bool = False

    def told(self) -> str:
        """Return it as a sentence."""
        key = "without a key" if self.key_from is None else f"with the key from {self.key_from}"
        if self.key_withheld:
            key = f"but not with the key from {self.key_from}, which is elsewhere"
        by = "" if self.named_by is None else f" as {self.named_by} says,"
        return f"the endpoint {self.endpoint} is {self.base_url},{by} {key}"


def servers_of(settings: Settings, names: Iterable[str]) -> list[Called]:
    """Return what is called for endpoints, by their names; reads no key."""
    return [_called(settings, name) for name in names]


def _called(settings: Settings, name: str) -> Called:
    from batchq.config.keys import is_stray

    server, layer = settings.require_server(name), settings.server_layer(name)
    location = ("endpoints", name, "base_url") if name in settings.endpoints else ("base_url",)
    key = settings.key_of(server)
    return Called(
        name,
        server.base_url,
        None if layer is None else layer.told(*location),
        None if key is None else settings.layers.told(*key.location),
        key is not None and is_stray(server.base_url, key, layer, settings.layers),
    )


def named_elsewhere(settings: Settings) -> list[str]:
    """Return the endpoints whose server was not given on the command line, and is not OpenRouter by default."""
    from batchq.config.layers import Place

    layers = {name: settings.server_layer(name) for name in settings.known_endpoints()}
    return [name for name, layer in layers.items() if layer is not None and layer.place is not Place.FLAG]
