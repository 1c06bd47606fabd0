"""Reads `.env`: lines NAME=value."""

from __future__ import annotations

from pathlib import Path

from batchq.config.files import refuse_mark
from batchq.errors import ConfigurationError


def read_dotenv(path: Path | None) -> dict[str, str | None]:
    """Read a .env file; refuse a line that says nothing, which the parser would pass over.

    `${NAME}` stands for an earlier line of the file, and never for what is in the environment: a file that came with
    a directory could put any secret into a URL.
    """
    if path is None:
        return {}
    from dotenv.parser import parse_stream
    from dotenv.variables import parse_variables

    values: dict[str, str | None] = {}
    try:
        with path.open(encoding="utf-8") as file:
            refuse_mark(path, file.read(1))
            file.seek(0)
            for binding in parse_stream(file):
                if binding.error:
                    blank = len(binding.original.string) - len(binding.original.string.lstrip("\r\n"))
                    line = binding.original.line + binding.original.string[:blank].count("\n")
                    raise ConfigurationError(f"{path}:{line}: this line can't be read; it should be NAME=value")
                if binding.key is not None and binding.value is not None:
                    atoms = parse_variables(binding.value)
                    values[binding.key] = "".join(atom.resolve(values) for atom in atoms)
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path} is not UTF-8 text") from None
    except OSError as error:
        raise ConfigurationError(f"can't read {path}: {error.strerror or error}") from None
    return values
