"""What `--db` takes, and what is shown of it: never a password."""

from __future__ import annotations

from pathlib import Path

import pytest

from batchq.database import locate, shown, shown_location
from batchq.errors import ConfigurationError

SECRET = "t0psecret"
URL = f"postgresql+psycopg://me:{SECRET}@host:5433/queue"


@pytest.mark.parametrize(
    ("given", "drivername", "database"),
    [
        ("postgresql://host/queue", "postgresql+psycopg", "queue"),
        ("postgres://host/queue", "postgresql+psycopg", "queue"),
        ("POSTGRESQL+PSYCOPG://host/queue", "postgresql+psycopg", "queue"),
        ("postgresql+asyncpg://host/queue", "postgresql+asyncpg", "queue"),
        (" postgresql://host/queue/ ", "postgresql+psycopg", "queue"),
    ],
)
def test_a_postgresql_url_is_taken_with_its_driver(given, drivername, database):
    url = locate(given)
    assert (url.drivername, url.database) == (drivername, database)


def test_a_database_may_be_named_by_the_environment(monkeypatch):
    monkeypatch.setenv("PGDATABASE", "queue")
    assert locate("postgresql+psycopg://").database is None
    monkeypatch.delenv("PGDATABASE")
    with pytest.raises(ConfigurationError, match="names no database"):
        locate("postgresql+psycopg://")


def test_a_path_is_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert locate("runs.db") == Path.cwd() / "runs.db"
    assert locate("a:b@c.db") == Path.cwd() / "a:b@c.db"


WRONG = [
    f"postgresql://me:{SECRET}@host:port/queue",
    f"postgresql://me:{SECRET}@[::1/queue",
    f"postgresql://me:ab@{SECRET}:tail/x@host/queue",
    f"mysql://me:{SECRET}@host/queue",
    f"postgresql://me:{SECRET}@host",
    f"postgresql+psycopg:/me:{SECRET}@host/queue",
    f"me:{SECRET}@host/queue",
    f"postgresql+asyncpg://me:{SECRET}@host/queue?target_session_attrs=any",
]


@pytest.mark.parametrize("location", WRONG)
def test_what_is_no_database_is_refused_without_a_word_of_its_password(location):
    with pytest.raises(ConfigurationError) as refused:
        locate(location)
    assert SECRET not in str(refused.value)
    assert "tail" not in str(refused.value)
    assert refused.value.__cause__ is None


def test_asyncpg_is_told_of_encryption_in_its_own_word():
    assert locate("postgresql+asyncpg://host/queue?sslmode=require").query == {"ssl": "require"}


@pytest.mark.parametrize("query", ["", f"?password={SECRET}", f"?sslpassword={SECRET}&sslmode=require"])
def test_a_shown_url_has_no_password_and_can_be_used(query):
    found = shown(locate(URL + query))
    assert SECRET not in found
    assert found.startswith("postgresql+psycopg://me@host:5433/queue")
    assert locate(found).username == "me"
    assert SECRET not in shown_location(URL + query)


def test_a_shown_path_is_as_it_was_given():
    assert shown_location("my runs.db") == "my runs.db"
