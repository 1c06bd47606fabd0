"""Where pyarrow comes from: the extra `parquet`."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from batchq.errors import UsageError


def import_arrow(module: str = "pyarrow") -> ModuleType:
    """Return pyarrow or a module of it. Raises UsageError, with what to install, where it is missing."""
    try:
        return import_module(module)
    except ImportError:
        raise UsageError("Parquet files need pyarrow: pip install 'batchq[parquet]'") from None
