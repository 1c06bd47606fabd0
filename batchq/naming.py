"""How a batch calls a worker that a script holds: by the reference with which another process finds it, if it can."""

from __future__ import annotations

import functools
import inspect
import sys
from contextlib import suppress
from hashlib import blake2b
from operator import attrgetter
from pathlib import Path
from types import CodeType
from typing import cast

from batchq.errors import ConfigurationError
from batchq.jobs import Json
from batchq.request import canonical
from batchq.worker import Plugin

NOTEBOOK = "notebook"
_MAIN = "__main__"
_DIGEST_BYTES = 4


def name_of(worker: object) -> str | None:
    """Return how batches call a worker: `script.py:function`, `module:function` or `notebook:function`.

    A name leads to its worker wherever the module's variables do: `script.py:asker` may be an object or a `Plugin`,
    `script.py:asker.method` its method. Where they don't, a `Plugin` goes by its `name`, which may be None, a callable
    object by its class, and a function with its line (in a notebook, where each cell has a line 1, 8 hex digits of
    its text) and 8 hex digits of the strings and numbers that it has taken along. A `functools.partial` is its
    function with 8 hex digits of the arguments.
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
    if says_enough or not isinstance(code, CodeType):
        return place
    told = str(code.co_firstlineno)
    if _reference(module) == NOTEBOOK:
        with suppress(OSError):
            told = _digest(inspect.getsource(code))
    captured = _captured(function)
    return f"{place}:{told}:{_digest(captured)}" if captured else f"{place}:{told}"


def _captured(function: object) -> str:
    """Return the plain values that a nested function has taken along: with others it gives other answers.

    What is no plain value, like a client or a list that grows, is left out: it would never be the same again.
    """
    code = cast("CodeType", getattr(function, "__code__", None))
    cells = getattr(function, "__closure__", None) or ()
    taken: dict[str, Json] = {}
    for name, cell in zip(code.co_freevars, cells, strict=True):
        with suppress(ValueError):  # a cell that is still empty
            taken[name] = cell.cell_contents
    values = {name: value for name, value in taken.items() if isinstance(value, str | int | float)}
    defaults = [
        value for value in getattr(function, "__defaults__", None) or () if isinstance(value, str | int | float)
    ]
    named = getattr(function, "__kwdefaults__", None) or {}
    values |= {name: value for name, value in named.items() if isinstance(value, str | int | float)}
    try:
        return canonical(cast("Json", [values, defaults])) if values or defaults else ""
    except ValueError:  # NaN
        return repr((sorted(values.items()), defaults))


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


def _digest(text: str) -> str:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_DIGEST_BYTES).hexdigest()
