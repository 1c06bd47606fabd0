"""How a batch calls a worker that a script holds: by the reference with which another process finds it, if it can.

What else tells it from others goes into the batch's settings, so that the name leads to the worker all the same.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
from contextlib import suppress
from hashlib import blake2b
from operator import attrgetter
from pathlib import Path
from types import CodeType
from typing import cast

from batchq.carried import carried, code_of
from batchq.errors import ConfigurationError
from batchq.jobs import Json
from batchq.request import canonical
from batchq.worker import Plugin

NOTEBOOK = "notebook"
VALUES = "worker_values"
_MAIN = "__main__"
_DIGEST_BYTES = 4
_SETTING_BYTES = 8


def name_of(worker: object) -> str | None:
    """Return how batches call a worker: `script.py:function`, `module:function` or `notebook:function`.

    A name leads to its worker wherever the module's variables do: `script.py:asker` may be an object or a `Plugin`,
    `script.py:asker.method` its method. Where they don't, a `Plugin` goes by its `name`, which may be None, a callable
    object by its class, and a function with its line (in a notebook, where each cell has a line 1, with 8 hex digits
    of its text), both with 8 hex digits of the values that they have with them. A `functools.partial` is its function
    with 8 hex digits of the arguments.
    Raises ConfigurationError for arguments that JSON can't hold.
    """
    if isinstance(worker, functools.partial):
        return _name_of_partial(worker)
    own = _module(worker.open if isinstance(worker, Plugin) else worker)
    for module in (own, _MAIN):
        if (path := _path_to(worker, module)) is not None:
            return f"{_reference(module)}:{path}"
    if isinstance(worker, Plugin):
        return worker.name
    return _definition_of(worker, own)


def settings_of(worker: object) -> dict[str, Json]:
    """Return what tells a worker from others of its name, as settings of its batches: one digest, never a value.

    It stands for the values that the worker has with it (see `carried`), for the place of the script that it stands
    in (two projects may each have a `main.py:label`), and in a notebook, where functions are made anew, for its code.
    A Plugin with settings or a name of its own says itself what it is.
    """
    if isinstance(worker, Plugin):
        if worker.name or worker.settings:
            return {}
        worker = worker.open
    has, is_main = carried(worker), _module(worker) == _MAIN
    in_notebook = is_main and _reference(_MAIN) == NOTEBOOK
    told = [_place() if is_main else "", has.taken, has.read, code_of(worker) if in_notebook else ""]
    return {VALUES: _digest("\0".join(told), _SETTING_BYTES)} if any(told) else {}


def _name_of_partial(worker: functools.partial[object]) -> str | None:
    name = name_of(worker.func)
    try:
        arguments = canonical(cast("Json", [list(worker.args), worker.keywords]))
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigurationError(
            f"a functools.partial of {name} can't be told from others by its arguments ({error}): "
            "define a function that passes them instead"
        ) from error
    return name and f"{name}:{_digest(arguments)}"


def _path_to(worker: object, module: str) -> str | None:
    """Return how a module's variables lead to a worker, as they would after an import; None where they don't."""
    held = sys.modules.get(module)
    qualname = str(getattr(worker, "__qualname__", ""))
    with suppress(AttributeError):
        if _is_same(attrgetter(qualname)(held), worker):
            return qualname
    variables = [name for name, value in list(vars(held).items()) if _is_same(value, worker)] if held else []
    if variables:
        return min(variables, key=lambda name: name.startswith("_"))  # what is public before what is not
    if inspect.ismethod(worker) and (owner := _path_to(worker.__self__, module)) is not None:
        return f"{owner}.{worker.__name__}"
    return None


def _is_same(one: object, other: object) -> bool:
    return one is other or (inspect.ismethod(one) and inspect.ismethod(other) and one == other)


def _definition_of(worker: object, module: str) -> str:
    """Return where a function that no variable leads to, or an object's class, is defined."""
    is_function = hasattr(worker, "__qualname__")
    function = inspect.unwrap(worker) if is_function and callable(worker) else type(worker).__call__
    qualname = str(getattr(worker if is_function else type(worker), "__qualname__", ""))
    place = f"{_reference(module)}:{qualname}"
    code = getattr(function, "__code__", None)
    says_enough = "<" not in qualname and (not is_function or inspect.ismethod(worker) or module not in sys.modules)
    if not isinstance(code, CodeType):
        return place
    if not says_enough:
        told = str(code.co_firstlineno)
        if _reference(module) == NOTEBOOK:
            with suppress(OSError):
                told = _digest(inspect.getsource(code))
        place = f"{place}:{told}"
    # No variable leads to it, and a process serves by name: what it has with it tells it from others of its line.
    taken = carried(worker).taken
    return f"{place}:{taken[: 2 * _DIGEST_BYTES]}" if taken else place


def _module(found: object) -> str:
    return str(getattr(found, "__module__", None) or "builtins")


def _reference(module: str) -> str:
    """Return how `--worker` names a module: the script that runs goes by its file."""
    if module != _MAIN:
        return module
    main = sys.modules[_MAIN]
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    if spec is not None and spec.name != _MAIN:  # python -m package.module
        return str(spec.name)
    return NOTEBOOK if file is None or file.startswith("<") else Path(file).name


def _place() -> str:
    """Return where the running script or notebook is; "" for a module, whose name tells enough."""
    main = sys.modules[_MAIN]
    if _reference(_MAIN) == NOTEBOOK:  # what Jupyter and Visual Studio Code tell of its file
        return os.environ.get("JPY_SESSION_NAME") or str(getattr(main, "__vsc_ipynb_file__", None) or Path.cwd())
    file = getattr(main, "__file__", None)
    return str(Path(file).resolve()) if file is not None and _reference(_MAIN) == Path(file).name else ""


def _digest(text: str, size: int = _DIGEST_BYTES) -> str:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=size).hexdigest()
