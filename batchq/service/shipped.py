"""The unit files that ship with batchq: those of deploy/systemd, which the wheel holds, too."""

from __future__ import annotations

from pathlib import Path

from batchq.errors import BatchqError

_HERE = Path(__file__).resolve().parent
# In a wheel, and in the repository.
_PLACES = (_HERE / "units", _HERE.parents[1] / "deploy" / "systemd")


def shipped(name: str) -> str:
    """Return the text of a file below deploy/systemd."""
    for place in _PLACES:
        if (file := place / name).is_file():
            return file.read_text(encoding="utf-8")
    raise BatchqError(f"this installation of batchq has no {name}: install it anew")
