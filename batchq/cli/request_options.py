"""The options that say what to ask of which model: shared by `enqueue` and `run`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from batchq.cli.money import DOLLARS
from batchq.cli.options import DURATION, MAX_INTEGER, database_path
from batchq.cli.parameters import parse_params, refuse_undecoded
from batchq.cli.reading_options import READING, read_options, selection_of
from batchq.display.messages import say
from batchq.display.text import dollars, plural

if TYPE_CHECKING:
    from batchq.config import Settings
    from batchq.jobs import Json, NewBatch
    from batchq.producer import Enqueued, Policy, Thrift
    from batchq.survey import Survey

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Asked:
    """What the options of one command line say; None was not given."""

    models: tuple[str, ...]
    system: str | None
    params: dict[str, Json]
    prompt: str | None
    template: Path | None
    id_field: str | None
    prompt_field: str | None
    image_field: str | None
    input_format: str | None
    limit: int | None
    sample: int | None
    worker: str
    endpoint: str
    schema: Path | None
    schema_tries: int | None
    samples: int
    dedupe: bool
    reuse: bool
    priority: int | None
    max_attempts: int | None
    call_timeout: float | None
    budget: int | None
    allow_unknown_cost: bool | None
    allow_truncated: bool | None
    keep_response: bool | None
    skip_bad: Path | None


_REQUEST = (
    click.option(
        "--model", "models", multiple=True, metavar="MODEL",
        help="The model, whatever the file says; else MODEL in environment or .env. Repeated: a batch for each.",
    ),
    click.option("--system", metavar="TEXT", help="A system prompt for every row that has none."),
    click.option(
        "--set", "params", metavar="KEY=VALUE", multiple=True, callback=parse_params,
        help="A request parameter, e.g. temperature=0 or provider.sort=price. Repeatable.",
    ),
    click.option(
        "--schema", type=click.Path(path_type=Path), metavar="FILE",
        help="A JSON Schema that every answer must fit; the result is JSON then.",
    ),
    click.option(
        "--schema-tries", type=click.IntRange(1, MAX_INTEGER), metavar="INTEGER",
        help="Answers in a row that may miss the schema before a job fails.  [default: 3]",
    ),
    click.option(
        "--samples", type=click.IntRange(1, 10_000), default=1, metavar="INTEGER",
        help="Answers to ask for each prompt.  [default: 1]",
    ),
    click.option("--dedupe", is_flag=True, help="Run equal requests once; all of them get the answer."),
    click.option("--reuse", is_flag=True, help="Take the answer of any equal request that is done in this queue."),
    click.option(
        "--worker", default="openrouter", show_default=True, metavar="NAME",
        help="The worker that answers: an installed one, module:function or script.py:function.",
    ),
    click.option(
        "--endpoint", default="default", show_default=True, metavar="NAME",
        help="The server to call, by its name in the workers' settings.",
    ),
)  # fmt: skip

# What is no part of the request, and may be given again.
_POLICY = (
    click.option(
        "--priority", type=click.IntRange(-MAX_INTEGER, MAX_INTEGER), metavar="INTEGER",
        help="Higher goes first.  [default: 0]",
    ),
    click.option(
        "--max-attempts", type=click.IntRange(1, MAX_INTEGER), metavar="INTEGER",
        help="Tries per job.  [default: 8]",
    ),
    click.option("--call-timeout", type=DURATION, help="The most that a call may take.  [default: 300s]"),
    click.option(
        "--budget", type=DOLLARS, help="Start no more jobs once the batch has cost so many dollars."
    ),
    click.option(
        "--allow-unknown-cost/--no-allow-unknown-cost", default=None,
        help="Go on under a budget though no answer tells its cost.",
    ),
    click.option(
        "--allow-truncated/--no-allow-truncated", default=None,
        help="Take answers that were cut off at their token limit.",
    ),
    click.option(
        "--keep-response/--no-keep-response", default=None, help="Store the provider's whole answers too."
    ),
    click.option(
        "--skip-bad", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
        help="Write bad rows there and take the rest.",
    ),
)  # fmt: skip


def request_options(command: F) -> F:
    """Add the options that make an `Asked`: its names are those of the command's keyword arguments."""
    for option in reversed(READING + _REQUEST + _POLICY):
        command = option(command)
    return command


@contextmanager
def surveyed(path: Path | None, asked: Asked, settings: Settings) -> Iterator[tuple[Survey, list[NewBatch]]]:
    """Read and check an input; yield what is in it, and a batch for each model asked for, still without names.

    Raises UsageError, and BadInput for bad rows. `path` None is standard input.
    """
    from batchq.producer import complete
    from batchq.survey import survey_input

    new = _new_batch(asked, settings)
    needs_model, may_use_model = _model_needs(asked.worker)
    options, selection = read_options(asked), selection_of(asked)
    database = database_path(settings)
    models = list(dict.fromkeys(asked.models))
    forced = models[0] if models else None
    with survey_input(
        path, options, model=forced, skip_bad=asked.skip_bad, database=database, selection=selection
    ) as survey:
        if survey.file_model is not None:
            say(f"batchq: using {', '.join(models)} as --model says, not {survey.file_model} as {survey.name} says")
        default = settings.model if may_use_model else None
        filled = complete(new, survey, default_model=default, needs_model=needs_model)
        yield survey, [replace(filled, model=model) for model in models] or [filled]


def thrift_of(asked: Asked) -> Thrift:
    """Return what need not be paid for."""
    from batchq.jobs import Reuse
    from batchq.producer import Thrift

    return Thrift(asked.dedupe, Reuse() if asked.reuse else None)


def batch_name(stem: str, new: NewBatch, models: tuple[str, ...]) -> str:
    """Return the name of one of several models' batches: NAME@MODEL; of a single one's: NAME."""
    return f"{stem}@{new.model}" if len(set(models)) > 1 else stem


def policy_of(asked: Asked) -> Policy:
    """Return what was asked for that also changes a batch that is there already."""
    from batchq.producer import Policy

    return Policy(
        asked.priority,
        asked.max_attempts,
        _timeout_ms(asked),
        asked.budget,
        asked.allow_unknown_cost,
        asked.allow_truncated,
        asked.keep_response,
    )


def told_thrift(done: Enqueued) -> list[str]:
    """Say what will not be paid for."""
    told = []
    if done.followers:
        told.append(f"{plural(done.followers, 'duplicate')} of other rows")
    if done.reused:
        told.append(f"{plural(done.reused, 'answer')} taken over from before")
    return told


def say_policy(done: Enqueued) -> None:
    """Say what the batch, which was there already, has now instead of what it had."""
    shown = [_shown(name, value) for name, value in done.changed.items()]
    if shown:
        say(f"batchq: {done.batch.name} was there already; from now on it has {', '.join(shown)}")


def _shown(name: str, value: float) -> str:
    if name == "call_timeout_ms":
        return f"--call-timeout {value / 1000:g}s"
    if name == "budget":
        return f"--budget {dollars(int(value))}"
    option = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{option}" if value else f"--no-{option}"
    return f"--{option} {value}"


def _timeout_ms(asked: Asked) -> int | None:
    if asked.call_timeout is None:
        return None
    timeout_ms = round(asked.call_timeout * 1000)
    if timeout_ms < 1:
        raise click.UsageError("--call-timeout must be longer than nothing")
    return timeout_ms


def _policy_of_new(asked: Asked, settings: Settings) -> Policy:
    """Return the policy of a batch that is not there yet: what was not asked for is as the settings say."""
    return replace(
        policy_of(asked),
        max_attempts=asked.max_attempts or settings.max_attempts,
        call_timeout_ms=_timeout_ms(asked) or round(settings.call_timeout * 1000),
    )


def _new_batch(asked: Asked, settings: Settings) -> NewBatch:
    from batchq.discovery import worker_name
    from batchq.terms import Terms, check_terms

    texts = [("--model", model) for model in asked.models]
    for option, text in [*texts, ("--system", asked.system), ("--prompt", asked.prompt)]:
        refuse_undecoded(option, text)
    if asked.schema is None and asked.schema_tries is not None:
        raise click.UsageError("--schema-tries goes with --schema")
    terms = Terms(
        worker=worker_name(asked.worker),
        endpoint=asked.endpoint,
        system=asked.system,
        params=asked.params,
        schema=None if asked.schema is None else _read_schema(asked.schema),
        schema_tries=asked.schema_tries,
        samples=asked.samples,
        policy=_policy_of_new(asked, settings),
    )
    check_terms(terms)
    return terms.new_batch("")


def _read_schema(path: Path) -> dict[str, Json]:
    """Read a JSON Schema; raise UsageError, with the place, for what is none."""
    from batchq.errors import UsageError
    from batchq.structured import UnusableSchema, check_schema

    try:
        schema: Json = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise UsageError(f"{path}:{error.lineno}: the schema is not JSON: {error.msg}") from None
    except OSError as error:
        raise UsageError(f"can't read the schema {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        raise UsageError(f"{path} can't be read as a schema: it is not UTF-8 text, or nested too deep") from None
    try:
        check_schema(schema)
    except UnusableSchema as error:
        raise UsageError(f"{path} is no schema that answers can be held to: {error}") from None
    return cast("dict[str, Json]", schema)


def _model_needs(worker: str) -> tuple[bool, bool]:
    """Return whether a worker needs a model, and whether it may want one; imports no code of the user's."""
    from batchq.discovery import find_worker, installed_workers

    if ":" in worker:
        target, _, function = worker.rpartition(":")
        if not target.strip() or not function.strip():
            raise click.UsageError(f"{worker!r} names no function: write module:function or script.py:function")
        return False, True
    known = installed_workers()
    if worker not in known:
        raise click.UsageError(
            f"there is no worker {worker!r}; installed: {', '.join(known)}."
            " A function of yours: module:function or script.py:function"
        )
    needs = find_worker(worker).needs_model
    return needs, needs
