"""Answers that are instances of a Pydantic type: none is falsified, and none is lost for how it is spelled."""

from __future__ import annotations

import datetime as dt
import enum
import sqlite3
from contextlib import closing

import pytest
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, RootModel, SecretStr, computed_field, field_validator

from batchq import Answer, UsageError, open_queue, prompt_map, prompt_stream

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BATCHQ_DB", raising=False)
    return tmp_path


class Aliased(BaseModel):
    x: int = Field(alias="X", default=0)


class Apart(BaseModel):
    """Its aliases for reading and writing differ; by name it can be read as well."""

    model_config = ConfigDict(populate_by_name=True)
    score: float = Field(0.0, serialization_alias="s", validation_alias="score_in")


class Kind(enum.Enum):
    GOOD = "good"


class Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    kind: Kind
    day: dt.date

    @computed_field
    def year(self) -> int:
        return self.day.year


class Remembering(BaseModel):
    inner: Aliased
    _seen: int = PrivateAttr(default=0)


STRICT = Strict(kind=Kind.GOOD, day=dt.date(2024, 1, 2))


def remembering() -> Remembering:
    instance = Remembering(inner=Aliased(X=3))
    instance._seen = 7
    return instance


@pytest.mark.parametrize(
    "instance",
    [Aliased(X=5), Apart(score_in=7.5), STRICT, Remembering(inner=Aliased(X=3))],
    ids=lambda instance: type(instance).__name__,
)
async def test_an_instance_comes_back_as_it_was(instance):
    async def ask(prompt: str) -> Answer:
        return Answer(instance, cost=0.5)

    (row,) = await prompt_map(["a"], worker=ask, response_model=type(instance), verbose=False)
    assert (row["status"], row["result"], row["usage"]["cost"]) == ("done", instance, 0.5)


async def test_what_is_private_to_an_instance_is_no_answer():
    (row,) = await prompt_map(["a"], worker=lambda prompt: remembering(), response_model=Remembering, verbose=False)
    assert row["result"] == Remembering(inner=Aliased(X=3))


class Unreadable(BaseModel):
    score: float = Field(0.0, serialization_alias="s", validation_alias="score_in")


class Hidden(BaseModel):
    word: SecretStr


class Left(BaseModel):
    kept: int
    left: int = Field(0, exclude=True)


class Growing(BaseModel):
    text: str

    @field_validator("text")
    @classmethod
    def exclaim(cls, text):
        return text + "!"


@pytest.mark.parametrize(
    ("instance", "field"),
    [
        (Unreadable(score_in=7.5), "score"),
        (Hidden(word="x"), "word"),
        (Left(kept=1, left=2), "left"),
        (Growing(text="a"), "text"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseModel) else value,
)
async def test_an_instance_that_its_json_does_not_say_is_an_error_and_paid_once(instance, field):
    calls = []

    async def ask(prompt: str) -> Answer:
        calls.append(prompt)
        return Answer(instance, cost=0.5)

    (row,) = await prompt_map(["a"], worker=ask, response_model=type(instance), verbose=False)
    assert (row["status"], row["error_class"], row["usage"]["cost"]) == ("failed", "schema_mismatch", 0.5)
    assert f"`{field}` would change" in row["error"]
    assert type(instance).__name__ in row["error"]
    assert calls == ["a"]


async def test_an_instance_of_another_type_is_read_as_the_one_that_is_asked_for():
    class Other(BaseModel):
        x: int = Field(alias="X")

    (row,) = await prompt_map(["a"], worker=lambda p: Other(X=4), response_model=Aliased, verbose=False)
    assert row["result"] == Aliased(X=4)


async def test_a_strict_type_takes_dates_and_enums_as_json_has_them(here):
    calls = []

    async def ask(prompt: str) -> dict:
        calls.append(prompt)
        return {"kind": "good", "day": "2024-01-02"}

    call = {"worker": ask, "response_model": Strict, "verbose": False}
    (row,) = await prompt_map(["a"], **call)
    assert (row["status"], row["result"]) == ("done", STRICT)
    (again,) = [row async for row in prompt_stream(["a"], **call)]
    assert again["result"] == STRICT
    assert calls == ["a"]


def loose() -> type[BaseModel]:
    class Mark(BaseModel):
        mark: int

    return Mark


def tight() -> type[BaseModel]:
    class Mark(BaseModel):
        mark: int

        @field_validator("mark")
        @classmethod
        def positive(cls, mark):
            if mark < 0:
                raise ValueError("a mark is not negative")
            return mark

    return Mark


@pytest.mark.parametrize("streams", [False, True])
async def test_what_is_done_but_no_instance_says_what_to_do_and_is_not_taken_down(here, streams):
    marks = iter([-1, 2])

    async def ask(prompt: str) -> dict:
        return {"mark": next(marks)}

    call = {"worker": ask, "batch": "marks", "verbose": False}

    async def rows(**options):
        if streams:
            return [row async for row in prompt_stream(["a"], **call, **options)]
        return await prompt_map(["a"], **call, **options)

    assert (await rows(response_model=loose()))[0]["status"] == "done"
    (row,) = await rows(response_model=tight(), teardown=True)
    assert (row["status"], row["error_class"], row["result"]) == ("failed", "schema_mismatch", None)
    assert "`fresh=True` asks again" in row["error"]
    with closing(sqlite3.connect(here / "runs.db")) as connection:
        assert connection.execute("SELECT count(*) FROM jobs WHERE state = 'done'").fetchone() == (1,)
    (row,) = await rows(response_model=tight(), fresh=True)
    assert row["result"].mark == 2


class Wrapped(RootModel[list[int]]):
    pass


class Calling(BaseModel):
    call: type


@pytest.mark.parametrize("wrong", [list[int], int, list[Aliased], Aliased | None, Aliased(X=1)], ids=repr)
async def test_what_is_no_model_is_refused_in_a_sentence(here, wrong):
    with pytest.raises(UsageError, match="is not a Pydantic model"):
        await prompt_map(["a"], worker=str.upper, response_model=wrong)
    with pytest.raises(UsageError, match="is not a Pydantic model"):
        [row async for row in prompt_stream(["a"], worker=str.upper, response_model=wrong)]
    async with open_queue("other.db") as queue:
        with pytest.raises(UsageError, match="is not a Pydantic model"):
            await queue.enqueue(["a"], batch="b", worker=str.upper, schema=wrong)
    assert not (here / "runs.db").exists()


async def test_a_model_that_has_no_schema_is_refused_in_a_sentence():
    with pytest.raises(UsageError, match="Calling has none"):
        await prompt_map(["a"], worker=str.upper, response_model=Calling)


async def test_a_model_of_a_list_reads_lists():
    (row,) = await prompt_map(["a"], worker=lambda prompt: [1, 2], response_model=Wrapped, verbose=False)
    assert row["result"] == Wrapped([1, 2])


async def test_validators_are_tried_as_often_as_the_batch_says():
    from batchq.api.validation import validated
    from batchq.api.workers import find_given
    from batchq.config import load_settings
    from batchq.worker import Request, RetryLater

    async def ask(prompt: str) -> dict:
        return {"mark": -1}

    worker = validated(find_given(ask), tight())
    async with worker.open(load_settings().require_endpoint("default")) as handler:
        for settings, tries in (({}, 3), ({"schema_tries": 5}, 5)):
            with pytest.raises(RetryLater) as caught:
                await handler(Request("a", {}, "/v1", "m", settings, "b", 0, None, 1))
            assert caught.value.at_most == tries
