"""What the running script is called: its batches are named after it."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from batchq.naming import NOTEBOOK

_UNUSUAL = re.compile(r"[^\w.+-]+")
_LONGEST = 60


def script_name() -> str:
    """Return the name of the script, module or notebook that runs, without its ending."""
    main = sys.modules.get("__main__")
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    if spec is not None and spec.name != "__main__":  # python -m package.module
        name = str(spec.name).removesuffix(".__main__")
    elif file is not None and not file.startswith("<"):
        name = Path(file).stem
    else:  # what Jupyter and Visual Studio Code tell of the notebook's file
        told = os.environ.get("JPY_SESSION_NAME") or getattr(main, "__vsc_ipynb_file__", None)
        name = Path(told).stem if told else NOTEBOOK
    return _UNUSUAL.sub("_", name).strip("_-")[:_LONGEST] or NOTEBOOK
