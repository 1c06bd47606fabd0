"""Structured output: a JSON Schema that goes along with each request, and that its answer is held to.

`settings["schema"]` of a batch holds the schema. It is sent in the shape that the API in question wants
(`response_format`, or `text.format` of the responses API); what the model makes of it is checked here,
since providers enforce schemas differently, or not at all.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

from batchq.jobs import Json

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

DEFAULT_SCHEMA_TRIES = 3
NAME_CHARACTERS = 64
_SHOWN = 300
_FENCE = "```"
# A schema without any of these takes every object.
_DEMANDS = frozenset(
    {"properties", "patternProperties", "additionalProperties", "required", "propertyNames", "minProperties",
     "$ref", "anyOf", "oneOf", "allOf", "if", "type"}
)  # fmt: skip
# What stands under these is no schema.
_VALUES = frozenset({"enum", "const", "default", "examples"})
_NAME = re.compile(r"[^A-Za-z0-9_-]+")


class SchemaMismatch(ValueError):
    """An answer is not what its schema says; the message says where and why."""


class UnusableSchema(ValueError):
    """A schema is not valid itself."""


def schema_of(source: Mapping[str, Json] | type) -> dict[str, Json]:
    """Return the JSON Schema of a Pydantic model, or the schema itself. Raises UnusableSchema."""
    if isinstance(source, Mapping):
        schema = dict(source)
        check_schema(schema)
        return schema
    given: object = source  # an alias like `list[int]` is no type, whatever a caller calls it
    describe = getattr(given, "model_json_schema", None) if isinstance(given, type) else None
    if describe is None:
        name = source.__name__ if type(source) is type else repr(source)[:_SHOWN]
        raise UnusableSchema(f"{name} is not a Pydantic model: make it a field of one")
    from pydantic.errors import PydanticUserError

    try:
        return cast("dict[str, Json]", describe())
    except PydanticUserError as error:
        raise UnusableSchema(f"{source.__name__} has none: {error.message[:_SHOWN]}") from None


def check_schema(schema: Json) -> None:
    """Raise UnusableSchema for what is no JSON Schema of an object, which is what providers take."""
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import validator_for

    if not isinstance(schema, dict):
        raise UnusableSchema("it is not a JSON object")
    if "schema" in schema or "json_schema" in schema:
        raise UnusableSchema("it wraps a schema: give what stands under `schema` in it")
    if not _DEMANDS & schema.keys():
        raise UnusableSchema("it asks for nothing: it names no properties")
    if not isinstance(schema.get("$schema", ""), str):
        raise UnusableSchema("its `$schema` is no text")
    try:
        validator_for(schema).check_schema(schema)
        _check_references(schema)
    except SchemaError as error:
        raise UnusableSchema(f"{_place(error.absolute_path)}{error.message[:_SHOWN]}") from None
    except RecursionError:
        raise UnusableSchema("it is nested too deep") from None
    if schema.get("type", "object") != "object":
        raise UnusableSchema(f"its type is {schema['type']!r}; providers take objects only: wrap it in one")


def response_format(schema: dict[str, Json]) -> dict[str, Json]:
    """Return the parameter that asks a chat completion for this schema."""
    return {"type": "json_schema", "json_schema": {**_named(schema), "schema": schema}}


def text_format(schema: dict[str, Json]) -> dict[str, Json]:
    """Return the parameter that asks the responses API for this schema."""
    return {"format": {"type": "json_schema", **_named(schema), "schema": schema}}


def hold_to(schema_text: str, result: Json) -> Json:
    """Return the answer as the JSON value that it is, if it fits the schema. Raises SchemaMismatch.

    Text is read as JSON, also out of a fenced block, which many models put around it.
    """
    value = _read(result) if isinstance(result, str) else result
    for problem in _problems(schema_text, value):
        raise SchemaMismatch(problem)
    return value


def _read(text: str) -> Json:
    try:
        value: Json = json.loads(_unfenced(text), parse_constant=_refuse_constant, parse_float=_finite)
    except RecursionError:
        raise SchemaMismatch("the answer is nested too deep") from None
    except ValueError as error:
        raise SchemaMismatch(f"the answer is not JSON: {error}") from None
    return value


def _unfenced(text: str) -> str:
    """Return what stands in a fenced block, if that is all there is; no pattern, which endless blanks make slow."""
    inner = text.strip()
    if not (inner.startswith(_FENCE) and inner.endswith(_FENCE) and "\n" in inner):
        return text
    return inner[inner.index("\n") : -len(_FENCE)]


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text[:_SHOWN]} is beyond all bounds")
    return number


def _refuse_constant(name: str) -> Json:
    raise ValueError(f"{name} is no JSON")


def _problems(schema_text: str, value: Json) -> Iterator[str]:
    try:
        for error in _validator(schema_text).iter_errors(value):
            yield f"the answer does not fit the schema: {_place(error.absolute_path)}{error.message[:_SHOWN]}"
    except RecursionError:
        yield "the answer is nested too deep"
    except Exception as error:  # noqa: BLE001 - a schema that nobody checked, e.g. with a reference to nothing
        yield f"the answer can't be held to the schema: {error}"[:_SHOWN]


@lru_cache(maxsize=64)
def _validator(schema_text: str) -> Validator:
    from jsonschema.validators import validator_for
    from referencing import Registry

    schema = json.loads(schema_text)
    # A registry of its own: the default one fetches what a schema refers to from wherever that is.
    return validator_for(schema)(schema, registry=Registry())


def _check_references(schema: dict[str, Json]) -> None:
    """Raise UnusableSchema for a reference to what is not in the schema itself."""
    from referencing import Registry, Resource
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    root: Resource[Json] = Resource.from_contents(schema, default_specification=DRAFT202012)
    resolver = Registry().with_resource("", root).resolver()
    for reference in _references(schema):
        try:
            resolver.lookup(reference)
        except Unresolvable:
            raise UnusableSchema(f"it refers to {reference!r}, which is not in it: put that under $defs") from None


def _references(schema: Json) -> Iterator[str]:
    if isinstance(schema, list):
        for item in schema:
            yield from _references(item)
    elif isinstance(schema, dict):
        for name, value in schema.items():
            if name in {"$ref", "$dynamicRef"} and isinstance(value, str):
                yield value
            elif name not in _VALUES:
                yield from _references(value)


def _place(path: Any) -> str:  # noqa: ANN401 - a deque of keys and positions, of a library without types
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in path]
    return f"at {''.join(parts).lstrip('.')}: " if parts else ""


def _named(schema: dict[str, Json]) -> dict[str, Json]:
    title = schema.get("title")
    name = _NAME.sub("_", title)[:NAME_CHARACTERS] if isinstance(title, str) else ""
    return {"name": name or "answer", "strict": _is_strict(schema)}


def _is_strict(schema: Json) -> bool:
    """Whether every object names all its properties as required and takes no others.

    That is what `strict` demands (platform.openai.com/docs/guides/structured-outputs, "Supported
    schemas"); asked for with any other schema it is a 400.
    """
    if isinstance(schema, list):
        return all(_is_strict(item) for item in schema)
    if not isinstance(schema, dict):
        return True
    properties = schema.get("properties")
    if isinstance(properties, dict):
        required = schema.get("required")
        names = set(required) if isinstance(required, list) else set()
        if schema.get("additionalProperties") is not False or names != set(properties):
            return False
    elif schema.get("type") == "object":
        return False
    return all(_is_strict(value) for name, value in schema.items() if name not in _VALUES)
