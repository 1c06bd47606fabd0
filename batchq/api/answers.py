"""What `prompt_map` returns: a row for each prompt, or what callers rather have of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, TypedDict, cast

from batchq.api.validation import MISFIT, instance_of
from batchq.errors import UsageError
from batchq.jobs import NANO, JobState, Json, Result
from batchq.request import encode

if TYPE_CHECKING:
    from pydantic import BaseModel

Dtype = Literal["list[dict]", "list[str]", "list[tuple[str,str]]", "polars", "pandas"]
_DTYPES: tuple[Dtype, ...] = ("list[dict]", "list[str]", "list[tuple[str,str]]", "polars", "pandas")


class AnswerUsage(TypedDict):
    """What an answer took, all attempts together: tokens, and US dollars; None where the provider told none."""

    input_tokens: int | None
    output_tokens: int | None
    cached_tokens: int | None
    reasoning_tokens: int | None
    cost: float | None


class AnswerRow(TypedDict):
    """One prompt and what became of it.

    `idx` is its place among the prompts, `key` the hash of its request, `status` is `done`, `failed` or
    `cancelled`. `result` is what the worker returned: text, JSON, or an instance of `response_model`; None
    where there is none. `error` is the reason of a failure, `error_class` its kind.
    """

    idx: int
    key: str
    prompt: Any
    status: str
    result: Any
    error: str | None
    error_class: str | None
    usage: AnswerUsage


@dataclass(frozen=True, slots=True)
class Summary:
    """What a call came to whose answers went into a file: rows by status, tokens, US dollars."""

    batch: str
    path: str
    done: int
    failed: int
    cancelled: int
    input_tokens: int
    output_tokens: int
    cost: float | None

    @property
    def total(self) -> int:
        """All rows."""
        return self.done + self.failed + self.cancelled


def dtype_of(asked: object) -> Dtype:
    """Return which kind of rows a caller wants, by a type, a module or a name. Raises UsageError."""
    name = asked if isinstance(asked, str) else getattr(asked, "__name__", "") if _is_frame(asked) else repr(asked)
    told = str(name).replace("typing.", "").replace(" ", "").lower()
    for dtype in _DTYPES:
        if told == dtype or told.startswith(dtype.replace("]", "[")):  # list[dict[str, Any]]
            return dtype
    if _is_frame(asked):
        return "polars" if "polars" in getattr(asked, "__module__", "") else "pandas"
    raise UsageError(f"return_dtype is {asked!r}; it can be {', '.join(_DTYPES)}")


def _is_frame(asked: object) -> bool:
    """Whether it is polars or pandas, or one of their classes."""
    module = getattr(asked, "__name__" if isinstance(asked, ModuleType) else "__module__", "")
    return isinstance(module, str) and module.split(".")[0] in {"polars", "pandas"}


class Reader:
    """Turns results of the store into rows."""

    def __init__(self, response_model: type[BaseModel] | None) -> None:
        """Make instances of `response_model` of the answers, if it is given."""
        self._model = response_model

    def row(self, result: Result) -> AnswerRow:
        """Return the row of a job that ended, or not."""
        status, error, error_class = result.state.value, result.error, result.error_class
        value: object = None
        if self._model is None:
            value = result.value
        elif result.state is JobState.DONE and result.result is not None:
            try:
                value = instance_of(self._model, result.result)
            except ValueError as misfit:  # by a worker that knew the schema only, or another state of the type
                status, error_class = JobState.FAILED.value, MISFIT
                error = f"what was answered is no {self._model.__name__}; `fresh=True` asks again: {misfit}"
        usage = result.usage
        return AnswerRow(
            idx=result.position,
            key=result.key,
            prompt=None if result.payload is None else shown_prompt(result.prompt),
            status=status,
            result=value,
            error=error,
            error_class=error_class,
            usage=AnswerUsage(
                input_tokens=usage.input_tokens,
                output_tokens=usage.output_tokens,
                cached_tokens=usage.cached_tokens,
                reasoning_tokens=usage.reasoning_tokens,
                cost=None if result.cost is None else result.cost / NANO,
            ),
        )


def shown_prompt(payload: Json) -> Json:
    """Return a prompt as its caller wrote it."""
    return payload["body"] if isinstance(payload, dict) and "body" in payload else payload


def text_of(result: object) -> str:
    """Return a result as text: JSON where it is none already, nothing where there is no result."""
    if result is None:
        return ""
    if isinstance(result, str):
        return result
    dump = cast("Callable[[], str] | None", getattr(result, "model_dump_json", None))
    return dump() if dump is not None else encode(cast("Json", result))


def converted(rows: list[AnswerRow], dtype: Dtype) -> Any:  # noqa: ANN401 - the overloads of prompt_map tell
    """Return rows in the shape that was asked for."""
    match dtype:
        case "list[dict]":
            return rows
        case "list[str]":
            return [text_of(row["result"]) for row in rows]
        case "list[tuple[str,str]]":
            return [(text_of(row["prompt"]), text_of(row["result"])) for row in rows]
        case "polars":
            return _polars(rows)
        case "pandas":
            return _pandas(rows)


# Of a table: usage stands in columns of its own.
_TEXTS = ("key", "prompt", "status", "result", "error", "error_class")
_NUMBERS = ("input_tokens", "output_tokens", "cached_tokens", "reasoning_tokens")


def _columns(rows: Sequence[AnswerRow]) -> dict[str, list[object]]:
    return {
        "idx": [row["idx"] for row in rows],
        **{name: [_cell(row, name) for row in rows] for name in _TEXTS},
        **{name: [cast("Mapping[str, object]", row["usage"])[name] for row in rows] for name in (*_NUMBERS, "cost")},
    }


def _cell(row: AnswerRow, name: str) -> str | None:
    value = cast("Mapping[str, object]", row)[name]
    return None if value is None else text_of(value).encode("utf-8", "replace").decode()


def _polars(rows: Sequence[AnswerRow]) -> object:
    polars = _library("polars")
    whole = dict.fromkeys(("idx", *_NUMBERS), polars.Int64)
    schema = {name: whole.get(name, polars.Float64 if name == "cost" else polars.String) for name in _columns([])}
    return polars.DataFrame(_columns(rows), schema=schema)


def _pandas(rows: Sequence[AnswerRow]) -> object:
    pandas = _library("pandas")
    frame = pandas.DataFrame(_columns(rows))
    return frame.astype({"idx": "int64", "cost": "float64"} | dict.fromkeys(_NUMBERS, "Int64"))


def _library(name: str) -> Any:  # noqa: ANN401 - neither is a dependency
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError:
        raise UsageError(f"return_dtype is {name}, which is not installed: pip install {name}") from None
