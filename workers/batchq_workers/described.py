"""Any Python value as JSON that is the same in every process: no addresses, no order of a set, and no keys.

What is described is stored, and only ever compared. So names can be read, texts are told by their digests, and what
goes by the name of a credential is not told at all.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import sys
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from enum import Enum
from hashlib import blake2b
from pathlib import Path
from typing import get_args, get_origin

from pydantic import BaseModel

from batchq.worker import Json

_DEEPEST = 12
_MAIN = "__main__"
_DIGEST_BYTES = 8
_HIDDEN = "[hidden]"
# What goes by such a name may be a credential.
_SECRET = re.compile(
    r"api_?key|(^|_)key$|token$|secret|passw|passphrase|credential|auth(orization)?$|bearer|cookie|session"
    r"|headers$|^extra_query$",
    re.IGNORECASE,
)


def described(value: object, depth: int = 0) -> Json:
    """Describe a value: functions and classes by their names, other objects by their public fields."""
    if isinstance(value, Enum):
        return f"{name_of_type(type(value))}.{value.name}"
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str | bytes):
        return digest_of(value)
    if depth > _DEEPEST:
        return name_of_type(type(value))
    if isinstance(value, Mapping):
        return {str(name): _named(str(name), item, depth) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [described(item, depth + 1) for item in value]
    if isinstance(value, AbstractSet):
        return sorted((described(item, depth + 1) for item in value), key=json.dumps)
    return _object(value, depth)


def digest_of(text: str | bytes) -> str:
    """Return what stands for a text that is not to be read."""
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    return f"#{blake2b(data, digest_size=_DIGEST_BYTES).hexdigest()}"


def _named(name: str, value: object, depth: int) -> Json:
    """Describe a value by its name alone where that is one of a credential: of headers, the names of each."""
    if value is None or not _SECRET.search(name):
        return described(value, depth + 1)
    return [*sorted(map(str, value))] if isinstance(value, Mapping) else _HIDDEN


def name_of_type(kind: object) -> str:
    """Return the module and name of a class or function; a script goes by its file, however it was started."""
    module = str(getattr(kind, "__module__", "") or "builtins")
    if module == _MAIN:
        module = Path(getattr(sys.modules[_MAIN], "__file__", None) or _MAIN).stem
    return f"{module}.{getattr(kind, '__qualname__', type(kind).__name__)}"


def _object(value: object, depth: int) -> Json:
    if isinstance(value, functools.partial):
        # Of arguments without names any may be a secret, numbers too.
        arguments = digest_of(json.dumps(described(value.args, depth + 1)))
        return [described(value.func, depth + 1), arguments, described(value.keywords, depth + 1)]
    if (generic := get_origin(value)) is not None:  # list[int], A | B, Annotated
        return [name_of_type(generic), *(described(item, depth + 1) for item in get_args(value))]
    if isinstance(value, type) or (callable(value) and hasattr(value, "__qualname__")):
        return name_of_type(value)
    fields = _fields(value)
    return {"type": name_of_type(type(value))} | {
        name: _named(name, item, depth) for name, item in fields.items() if not name.startswith("_")
    }


def _fields(value: object) -> dict[str, object]:
    if isinstance(value, BaseModel):
        return dict(value)
    if dataclasses.is_dataclass(value):
        return {item.name: getattr(value, item.name, None) for item in dataclasses.fields(value)}
    return {}
