"""Which batchq this is."""

from __future__ import annotations

from functools import cache


@cache
def installed_version() -> str | None:
    """Return the version of the installed package; None where it runs without being installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("batchq")
    except PackageNotFoundError:
        return None
