"""Schemas: what is sent along, and what answers are held to."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from batchq.jobs import Json
from batchq.request import RequestKeys, encode, merge_body
from batchq.structured import SchemaMismatch, UnusableSchema, hold_to, response_format, schema_of
from batchq.worker import Endpoint, Request
from batchq_workers.openrouter import body_for

CITY: dict[str, Json] = {
    "title": "A city!",
    "type": "object",
    "properties": {"name": {"type": "string"}, "people": {"type": "integer", "minimum": 0}},
    "required": ["name", "people"],
    "additionalProperties": False,
}
LOOSE: dict[str, Json] = {"type": "object", "properties": {"name": {"type": "string"}}}
PARIS = {"name": "Paris", "people": 2}


@pytest.mark.parametrize(
    "answer",
    [
        json.dumps(PARIS),
        PARIS,
        f"```json\n{json.dumps(PARIS)}\n```",
        f"  ```\n{json.dumps(PARIS, indent=2)}\n```\n",
    ],
)
def test_an_answer_that_fits_is_its_value(answer):
    assert hold_to(encode(CITY), answer) == PARIS


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        ("Paris", "not JSON"),
        ("", "not JSON"),
        ('{"name": "Paris"}', "'people' is a required property"),
        ('{"name": "Paris", "people": -1}', "at people: -1 is less than the minimum"),
        ('{"name": "Paris", "people": 2, "mayor": "?"}', "Additional properties are not allowed"),
        (None, "None is not of type 'object'"),
        ([PARIS], "is not of type 'object'"),
        ("[" * 100_000, "nested too deep"),
        ('{"name": "Paris", "people": NaN}', "NaN is no JSON"),
        ('{"name": "Paris", "people": 1e999}', "beyond all bounds"),
        ("```json" + "\n" * 100_000, "not JSON"),
    ],
)
def test_an_answer_that_does_not_says_where_and_why(answer, complaint):
    with pytest.raises(SchemaMismatch, match="the answer") as caught:
        hold_to(encode(CITY), answer)
    assert complaint in str(caught.value)


@given(st.text())
def test_no_text_makes_it_fail_otherwise(text):
    with pytest.raises(SchemaMismatch):
        hold_to(encode(CITY), text)


def test_strict_is_asked_for_only_where_the_schema_allows_it():
    assert response_format(CITY)["json_schema"] == {"name": "A_city_", "strict": True, "schema": CITY}
    assert response_format(LOOSE)["json_schema"] == {"name": "answer", "strict": False, "schema": LOOSE}
    nested = {**CITY, "properties": {"inner": LOOSE}, "required": ["inner"]}
    assert response_format(nested)["json_schema"]["strict"] is False


def test_a_pydantic_model_is_a_schema():
    class Town(BaseModel):
        model_config = ConfigDict(extra="forbid")
        name: str
        people: int

    schema = schema_of(Town)
    assert hold_to(encode(schema), '{"name": "Ulm", "people": 3}') == {"name": "Ulm", "people": 3}
    assert response_format(schema)["json_schema"] == {"name": "Town", "strict": True, "schema": schema}
    with pytest.raises(UnusableSchema, match="not a Pydantic model"):
        schema_of(int)


def test_nothing_is_fetched_that_a_schema_refers_to():
    elsewhere: dict[str, Json] = {"type": "object", "properties": {"a": {"$ref": "http://127.0.0.1:9/schema.json"}}}
    with pytest.raises(UnusableSchema, match="refers to 'http://127"):
        schema_of(elsewhere)
    with pytest.raises(SchemaMismatch, match="can't be held to the schema"):
        hold_to(encode(elsewhere), '{"a": 1}')
    nowhere: dict[str, Json] = {"type": "object", "properties": {"a": {"$ref": "#/$defs/missing"}}}
    with pytest.raises(UnusableSchema, match="refers to '#/\\$defs/missing'"):
        schema_of(nowhere)
    assert schema_of({"type": "object", "properties": {"a": {"const": {"$ref": "http://x/"}}}})
    inside = {"type": "object", "properties": {"a": {"$ref": "#/$defs/n"}}, "$defs": {"n": {"type": "integer"}}}
    assert hold_to(encode(schema_of(inside)), '{"a": 1}') == {"a": 1}


@pytest.mark.parametrize(
    "schema",
    [{"type": "objekt"}, {"type": "string"}, {"properties": 3}, {}, {"propertys": {}}]
    + [{"name": "n", "strict": True, "schema": CITY}, {"type": "json_schema", "json_schema": {"schema": CITY}}],
)
def test_what_is_no_schema_of_an_object_is_refused(schema):
    with pytest.raises(UnusableSchema):
        schema_of(schema)


@pytest.mark.parametrize(
    ("url", "place"),
    [("/v1/chat/completions", ("response_format", "json_schema")), ("/v1/responses", ("text", "format"))],
)
def test_a_schema_goes_where_its_api_wants_it(url, place):
    body = merge_body("m", {"schema": CITY, "url": url}, "hello")
    outer, inner = place
    assert body[outer][inner]["schema"] == CITY
    assert body[outer][inner]["strict"] is True


def test_a_schema_makes_another_request():
    def key(settings):
        return RequestKeys("openrouter", "default", "m", settings).key("hello", '"hello"')

    assert len({key({}), key({"schema": CITY}), key({"schema": LOOSE})}) == 3


def request(settings, payload="hello"):
    body = merge_body("m", settings, payload)
    return Request("hello", body, "/v1/chat/completions", "m", settings, "b", 0, None, 1)


def test_openrouter_is_told_to_route_to_providers_that_know_schemas():
    openrouter = Endpoint("default", "https://openrouter.ai/api/v1", "k")
    settings = {"schema": CITY, "params": {"provider": {"sort": "price"}}}
    assert body_for(openrouter, request(settings))["provider"] == {"require_parameters": True, "sort": "price"}
    assert "provider" not in body_for(openrouter, request({}))
    assert "provider" not in body_for(Endpoint("default", "http://127.0.0.1:1/v1"), request({"schema": CITY}))
    chosen = {"schema": CITY, "params": {"provider": {"require_parameters": False}}}
    assert body_for(openrouter, request(chosen))["provider"] == {"require_parameters": False}


def test_messages_tools_and_extras_go_through_untouched():
    message = {
        "role": "user",
        "content": [{"type": "text", "text": "?"}, {"type": "image_url", "image_url": {"url": "data:…"}}],
    }
    body = {"messages": [message], "tools": [{"type": "function", "function": {"name": "f"}}], "model": "other"}
    extras = {
        "models": ["a", "b"],
        "provider": {"order": ["x"]},
        "plugins": [{"id": "web"}],
        "reasoning": {"effort": "low"},
    }
    merged = merge_body("m", {"params": extras}, {"body": body})
    assert merged == {"model": "m", **extras, "messages": [message], "tools": body["tools"]}
