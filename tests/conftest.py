"""A real store in a temporary file, under a clock that tests set; databases on one PostgreSQL server per session."""

from __future__ import annotations

import asyncio

import pytest
from postgres import SharedServer, ask_at, fresh_database, named_by_environment
from store_driver import Clock, make_tables, open_queue

SHARED_SERVER = pytest.StashKey[SharedServer]()

# The longest of all, first: what starts last lengthens the whole run when it is long.
LONGEST = (
    "test_every_history_keeps_the_invariants",
    "test_six_at_once_upgrade_once",
    "test_many_workers_start_at_once_on_an_empty_directory",
    "test_workers_killed_stopped_and_terminated_lose_and_double_nothing",
    "test_a_storm_ends_with_one_answer_for_every_prompt_and_true_accounts",
)


def pytest_configure(config):
    if not hasattr(config, "workerinput"):
        config.stash[SHARED_SERVER] = SharedServer()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node):
    node.workerinput["postgres_door"] = node.config.stash[SHARED_SERVER].door()


def pytest_unconfigure(config):
    if SHARED_SERVER in config.stash:
        config.stash[SHARED_SERVER].close()


def pytest_collection_modifyitems(items):
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(getattr(item, "originalname", item.name), len(LONGEST)))


@pytest.fixture(scope="session")
def anyio_backend():
    return "asyncio"


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "queue.db"


@pytest.fixture
async def store(location, clock):
    async with await open_queue(location, clock) as opened:
        yield opened


@pytest.fixture
async def sqlite_store(path, clock):
    async with await open_queue(path, clock) as opened:
        yield opened


@pytest.fixture
async def postgres_store(postgres_queue, clock):
    async with await open_queue(postgres_queue, clock) as opened:
        yield opened


@pytest.fixture(scope="session")
def postgres(pytestconfig):
    """The session's PostgreSQL server: `url`, `execute`, `create_database`, `drop_database`."""
    named = named_by_environment()
    if named is not None:
        return named
    if SHARED_SERVER in pytestconfig.stash:
        return pytestconfig.stash[SHARED_SERVER].had()
    return ask_at(pytestconfig.workerinput["postgres_door"])


@pytest.fixture(scope="session")
def postgres_connection(postgres):
    """A connection on which databases are created and dropped: making one takes as long as creating a database."""
    with postgres.connect() as connection:
        yield connection


@pytest.fixture
def postgres_url(postgres, postgres_connection):
    """The URL of an empty PostgreSQL database of the test's own."""
    with fresh_database(postgres, postgres_connection) as url:
        yield url


@pytest.fixture(scope="session")
def postgres_template(postgres, postgres_connection):
    """The name of a database with an empty queue in it: copying it takes a third of the time of making the tables."""
    with fresh_database(postgres, postgres_connection) as url:
        asyncio.run(make_tables(url))
        yield url.rpartition("/")[2]


@pytest.fixture
def postgres_queue(postgres, postgres_connection, postgres_template):
    """The URL of a PostgreSQL database of the test's own, with an empty queue in it."""
    with fresh_database(postgres, postgres_connection, template=postgres_template) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def location(request):
    """What `open_store` takes: the path of a new SQLite file, or the URL of a queue on PostgreSQL; both are empty."""
    return _on(request, "postgres_queue")


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_location(request):
    """A place where no queue is: the path of no file, or the URL of a PostgreSQL database without tables."""
    return _on(request, "postgres_url")


def _on(request, on_postgres):
    if request.param == "postgresql":
        return request.getfixturevalue(on_postgres)
    return str(request.getfixturevalue("path"))
