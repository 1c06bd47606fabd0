"""Writes values into unit files, where blanks, quotes, `%` and `$` mean something (man 7 systemd.syntax)."""

from __future__ import annotations

from collections.abc import Sequence

from batchq.errors import UsageError


def quoted(value: str) -> str:
    """Return a value as one word of a setting that is a list of words."""
    escaped = _plain(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def command(words: Sequence[str]) -> str:
    """Return a command as ExecStart= takes it. Its first word is the program, which knows no variables."""
    program, *arguments = words
    return " ".join([_word(program), *(_word(argument).replace("$", "$$") for argument in arguments)])


def path(value: str) -> str:
    """Return a path for a setting that holds just one, and knows no quotes."""
    if value != value.strip() or value.endswith("\\"):
        raise UsageError(f"{value!r} can't stand in a unit file: it begins or ends with a blank or a backslash")
    return _plain(value)


def _word(value: str) -> str:
    simple = value and all(c.isalnum() or c in "/_.,:=@+-" for c in value)
    return value if simple else quoted(value)


def _plain(value: str) -> str:
    if not value.isprintable():
        raise UsageError(f"{value!r} can't stand in a unit file: it holds a control character")
    return value.replace("%", "%%")
