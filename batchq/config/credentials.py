"""Reads credentials: a directory with a file for each, named like its variable."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from batchq.config.layers import Layer, Place
from batchq.config.variables import PREFIX, layer_of_variables, variables_of_settings
from batchq.errors import ConfigurationError


def read_credentials(directory: Path) -> Layer:
    """Return the settings that files of a directory hold, e.g. `openai_api_key` or `batchq_db`, in either case.

    Its other files are somebody else's. Raises ConfigurationError for one that can't be read.
    """
    found: dict[str, Path] = {}
    with suppress(OSError):  # not there, or not for this user
        found = {file.name.upper(): file for file in directory.iterdir()}
    ours = [choice for choices in variables_of_settings().values() for choice in choices]
    held = {
        found[choice].name: _read(found[choice])
        for choice in ours
        if choice in found and (choice.startswith(PREFIX) or choice.endswith("_API_KEY"))
    }
    return layer_of_variables(Place.CREDENTIAL, held, directory)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        raise ConfigurationError(f"can't read the credential {path}: it is not UTF-8 text") from None
    except OSError as error:
        raise ConfigurationError(f"can't read the credential {path}: {error.strerror or error}") from None
