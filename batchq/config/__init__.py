"""Settings: what a process was told, and by whom.

From the strongest to the weakest: flags (or arguments of a call), the environment, `.env`, credentials, the project's
file, the user's, the site's, defaults. `.env` and the project's file (`batchq.toml`, or `[tool.batchq]` in
pyproject.toml) are searched upwards from the current directory. Keys are read here and given to workers; they are never
stored or logged.
"""

from __future__ import annotations

from batchq.config.loading import load_settings, rules_of_settings
from batchq.config.settings import DEFAULT_DB, DEFAULT_ENDPOINT, OPENROUTER_URL, EndpointSettings, Settings

__all__ = [
    "DEFAULT_DB",
    "DEFAULT_ENDPOINT",
    "OPENROUTER_URL",
    "EndpointSettings",
    "Settings",
    "load_settings",
    "rules_of_settings",
]
