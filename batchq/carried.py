"""What a worker has with it besides its code: with other values it is another worker, which gives other answers.

Plain values count: None, numbers, text, bytes, dates, paths, and lists, dicts, sets and dataclasses of them. Of a
function they are those of its closure and its defaults, of an object or a method the object's fields; what the
running script defines also counts by the global variables that it reads, in a notebook by its code as well. Other
objects, such as clients, count by their class and their own plain fields. A list or set counts as this process
saw it first, since workers append to such: a cell that is run again must not pay again.

Where in doubt a value counts: one that makes no other answers costs a second payment, one that is overlooked
gives wrong answers.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from hashlib import blake2b
from pathlib import PurePath
from types import CodeType, FunctionType, MethodType, ModuleType
from uuid import UUID
from weakref import WeakKeyDictionary

_MAIN = "__main__"
_DIGEST_BYTES = 8
_DEEPEST = 6
_NEAR = 1
_LONGEST = 1_000
_PLAIN = (bool, int, float, complex, str, bytes, Decimal, date, time, timedelta, UUID, PurePath, range)


@dataclass(frozen=True, slots=True)
class Carried:
    """Digests of the values that a worker has taken along, and of the global variables that it reads; "" for none."""

    taken: str
    read: str


def carried(worker: object) -> Carried:
    """Return what a function, a method or a callable object has with it."""
    while isinstance(worker, functools.partial):
        worker = worker.func
    holder = worker.__self__ if isinstance(worker, MethodType) else None
    if holder is None and not inspect.isroutine(worker) and not inspect.isclass(worker):
        holder = worker
    teller = _Teller(_lists_of(worker if holder is None else holder))
    taken = [*_taken(worker, teller), *([] if holder is None else teller.fields(holder, "", 0))]
    return Carried(_digest(taken), _digest(list(_read(worker, teller))))


def code_of(worker: object) -> str:
    """Return a digest of a function's code, the same for the same text wherever it stands; "" where there is none."""
    code = getattr(inspect.unwrap(worker) if callable(worker) else worker, "__code__", None)
    return _digest(list(_told_code(code))) if isinstance(code, CodeType) else ""


def _taken(worker: object, teller: _Teller) -> Iterator[str]:
    """Yield the closure and the defaults of a function, and of the function that a decorator has put around it."""
    function = worker.__func__ if isinstance(worker, MethodType) else worker
    while isinstance(function, FunctionType):
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            try:
                value = cell.cell_contents
            except ValueError:  # it is still empty
                continue
            if not isinstance(value, FunctionType):
                yield from teller.value(name, value)
            elif value is not function:
                yield from _taken(value, teller)
        for index, value in enumerate(function.__defaults__ or ()):
            yield from teller.value(f"default {index}", value)
        for name, value in (function.__kwdefaults__ or {}).items():
            yield from teller.value(name, value)
        function = getattr(function, "__wrapped__", None)


def _read(worker: object, teller: _Teller) -> Iterator[str]:
    """Yield the plain global variables that a function of the running script reads."""
    function = worker.__func__ if isinstance(worker, MethodType) else worker
    if not isinstance(function, FunctionType) or function.__module__ != _MAIN:
        return
    for name in sorted(_names(function.__code__)):
        value = function.__globals__.get(name)
        if isinstance(value, _PLAIN):
            yield from teller.value(name, value)


def _names(code: CodeType) -> set[str]:
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return set(code.co_names).union(*map(_names, inner))


def _told_code(code: CodeType) -> Iterator[str]:
    yield repr((code.co_code, code.co_names, code.co_varnames))
    for constant in code.co_consts:
        yield from _told_code(constant) if isinstance(constant, CodeType) else [repr(constant)]


class _Teller:
    """Tells values in words that are the same wherever they are made again."""

    def __init__(self, lists: dict[str, list[str]]) -> None:
        self._lists = lists

    def value(self, name: str, value: object, depth: int = 0) -> Iterator[str]:
        """Yield the words for a value under a name; none for what is nested too deep."""
        if value is None or isinstance(value, (*_PLAIN, Enum)):
            yield f"{name}={type(value).__name__}:{value!r}"
        elif depth > _DEEPEST or isinstance(value, ModuleType):
            return
        elif isinstance(value, type | FunctionType | MethodType):
            yield f"{name}:{value.__qualname__}"
            yield from self.fields(getattr(value, "__self__", None), f"{name}.", depth + 1)
        elif isinstance(value, functools.partial):
            yield from self._items(name, [value.func, value.args, value.keywords], depth)
        elif isinstance(value, list | set):
            if name not in self._lists:
                self._lists[name] = list(self._items(name, value, depth))
            yield from self._lists[name]
        elif isinstance(value, Mapping | tuple | frozenset):
            yield from self._items(name, value, depth)
        else:
            yield f"{name}:{type(value).__qualname__}"
            yield from self.fields(value, f"{name}.", depth + 1)

    def _items(self, name: str, value: Iterable[object], depth: int) -> Iterator[str]:
        if isinstance(value, Mapping):
            pairs: Iterable[tuple[object, object]] = sorted(value.items(), key=repr)
        else:
            pairs = enumerate(sorted(value, key=repr) if isinstance(value, set | frozenset) else value)
        for key, item in pairs:
            yield from self.value(f"{name}[{key!r}]", item, depth + 1)

    def fields(self, holder: object, prefix: str, depth: int) -> Iterator[str]:
        """Yield the words for the fields of an object; those of what they hold only near the worker itself."""
        slots = [name for kind in type(holder).__mro__ for name in _names_in(kind)]
        variables = {name: getattr(holder, name, None) for name in slots} | getattr(holder, "__dict__", {})
        if isinstance(holder, type | ModuleType) or len(variables) > _LONGEST:
            return
        for name in sorted(map(str, variables)):
            value = variables.get(name)
            if depth <= _NEAR or value is None or isinstance(value, _PLAIN):
                yield from self.value(f"{prefix}{name}", value, depth + 1)


def _names_in(kind: type) -> list[str]:
    slots = kind.__dict__.get("__slots__", ())
    return [slots] if isinstance(slots, str) else [name for name in slots if not name.startswith("__")]


# What lists and sets held when this process first saw them, for each worker that is still there.
_seen: WeakKeyDictionary[object, dict[str, list[str]]] = WeakKeyDictionary()


def _lists_of(holder: object) -> dict[str, list[str]]:
    try:
        return _seen.setdefault(holder, {})
    except TypeError:  # it can't be a key: no hash, no weak references
        return {}


def _digest(told: list[str]) -> str:
    if not told:
        return ""
    return blake2b("\0".join(told).encode("utf-8", "surrogatepass"), digest_size=_DIGEST_BYTES).hexdigest()
