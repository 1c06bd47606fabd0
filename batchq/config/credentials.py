"""Reads credentials: a directory with a file for each, named like its variable."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from batchq.config.layers import Layer, Place
from batchq.config.variables import PREFIX, variables_of_settings
from batchq.errors import ConfigurationError


def read_credentials(directory: Path) -> Layer:
    """Return the settings that files of a directory hold, e.g. `openai_api_key` or `batchq_db`, in either case.

    Its other files are somebody else's. Raises ConfigurationError for one that can't be read.
    """
    found: dict[str, Path] = {}
    with suppress(OSError):  # not there, or not for this user
        found = {file.name.upper(): file for file in directory.iterdir()}
    values: dict[str, object] = {}
    names: dict[str, str] = {}
    for setting, choices in variables_of_settings().items():
        for choice in choices:
            if choice in found and setting not in values and (choice.startswith(PREFIX) or choice.endswith("_API_KEY")):
                text = _read(found[choice])
                if text and setting != "endpoints":
                    names[setting], values[setting] = found[choice].name, text
    return Layer(Place.CREDENTIAL, values, directory, names)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        raise ConfigurationError(f"can't read the credential {path}: it is not UTF-8 text") from None
    except OSError as error:
        raise ConfigurationError(f"can't read the credential {path}: {error.strerror or error}") from None
