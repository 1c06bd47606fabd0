"""Where the files with settings are."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from batchq.errors import ConfigurationError

DOTENV, TOML, PYPROJECT, USER_TOML = ".env", "batchq.toml", "pyproject.toml", "config.toml"
ETC = Path("/etc/batchq")
# Where container engines put secrets.
RUN_SECRETS = Path("/run/secrets")
# Of these, a relative path is meant from the file that names it.
_PATHS = ("db", "api_key_file")
_BOM = "\ufeff"


def find_upwards(name: str) -> Path | None:
    """Return the nearest file of that name in the current directory or above it."""
    return next((found for directory in upwards() if (found := file_in(directory, name))), None)


def upwards() -> Iterator[Path]:
    """Yield the current directory and those above it."""
    try:
        here = Path.cwd()
    except OSError:
        raise ConfigurationError("the current directory does not exist any more: change to another") from None
    yield here
    yield from here.parents


def file_in(directory: Path, name: str) -> Path | None:
    """Return the file of that name in a directory, if there is one that this user may know of."""
    with suppress(OSError):  # a directory that this user may not look into
        if (candidate := directory / name).is_file():
            return candidate
    return None


def user_file() -> Path:
    """Return the place of the user's own file."""
    import platformdirs

    return platformdirs.user_config_path("batchq", appauthor=False) / USER_TOML


def site_files() -> list[Path]:
    """Return the places of the files of this machine, the strongest first."""
    import platformdirs

    shared = platformdirs.site_config_dir("batchq", appauthor=False, multipath=True).split(os.pathsep)
    own = [ETC] if os.name == "posix" else []
    return [directory / USER_TOML for directory in dict.fromkeys([*own, *map(Path, shared)])]


def credential_directories() -> list[Path]:
    """Return the directories in which a service manager or a container engine puts secrets, a file each."""
    given = os.environ.get("CREDENTIALS_DIRECTORY")
    return [*([Path(given)] if given else []), *([RUN_SECRETS] if os.name == "posix" else [])]


def refuse_mark(path: Path, start: str) -> None:
    """Raise ConfigurationError for the byte order mark of some editors: the first name would not be what it seems."""
    if start.startswith(_BOM):
        raise ConfigurationError(f"{path} begins with a byte order mark: save it as UTF-8 without one")


def placed_in(directory: Path, values: Mapping[str, object]) -> dict[str, object]:
    """Return values whose relative paths are meant from the file's directory, where that is not the current one."""
    placed = dict(values)
    if directory == Path.cwd():
        return placed
    for name in _PATHS:
        text = placed.get(name)
        if isinstance(text, str) and text and "://" not in text and not text.startswith((":", "~")):
            placed[name] = str(directory / text)
    return placed
