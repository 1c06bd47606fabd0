"""Rows that an operator has edited by hand: the others go on, and whoever reads a damaged one is told which it is."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from completing import with_store, write_lines
from processes import ON_BOTH
from raw_connection import connect

from batchq.cli.commands import batchq
from batchq.cli.exits import run_command
from batchq.errors import DamagedRow
from batchq.store.damage import settings_of

DEEP = "[" * 100_000


@dataclass(frozen=True)
class Place:
    """A queue, and commands that run on it in this process."""

    database: str
    directory: Path
    capfd: pytest.CaptureFixture

    def run(self, *arguments):
        """Return exit code, stdout and stderr; none of it is a traceback."""
        self.capfd.readouterr()
        code = run_command(batchq, arguments)
        out, err = self.capfd.readouterr()
        assert "Traceback" not in err
        assert "unexpected" not in err
        return code, out, err

    def query(self, sql):
        with connect(self.database) as database:
            return database.tuples(sql)


@pytest.fixture
def place(request, tmp_path, monkeypatch, capfd):
    """A queue with the batches `a` and `b`, three jobs each."""
    monkeypatch.chdir(tmp_path)
    on_server = getattr(request, "param", "sqlite") == "postgresql"
    database = request.getfixturevalue("postgres_queue") if on_server else str(tmp_path / "runs.db")
    monkeypatch.setenv("BATCHQ_DB", database)
    made = Place(database, tmp_path, capfd)
    write_lines(tmp_path / "a.jsonl", [{"prompt": f"prompt {i}"} for i in range(3)])
    for name in ("a", "b"):
        assert made.run("enqueue", "a.jsonl", "--batch", name, "--worker", "echo")[0] == 0
    return made


def edit(place, sql, *values):
    with connect(place.database) as database:
        database.execute(sql, values)


def work(place):
    """Run what is there; return the jobs as (batch, position, state, error)."""
    code, _, err = place.run("worker", "--until-empty")
    assert code == 0, err
    return place.query(
        "SELECT name, position, jobs.state, error FROM jobs JOIN batches ON batch_id = batches.id ORDER BY 1, 2"
    )


def told(place, *command, code=1):
    """Run a command that must say in a sentence what it found."""
    found, _, err = place.run(*command)
    assert found == code, err
    return err


# Batches


@ON_BOTH
@pytest.mark.parametrize("settings", ["{oops", ""], ids=["torn", "empty"])
def test_a_batch_whose_settings_nobody_can_read_fails_alone(place, settings):
    edit(place, "UPDATE batches SET settings = ? WHERE name = 'a'", settings)
    jobs = work(place)
    assert [state for _, _, state, _ in jobs] == ["failed"] * 3 + ["done"] * 3
    assert all("in the row of its batch its settings can't be read" in error for _, _, _, error in jobs[:3])
    assert place.run("collect", "a")[1].count('"state":"failed"') == 3
    assert "bad_row" in place.run("status", "a")[1]
    assert "its settings can't be read" in place.run("db", "check")[1]
    told(place, "collect", "b", code=0)
    assert "can't be read: its settings" in told(
        place, "enqueue", "a.jsonl", "--batch", "a", "--worker", "echo", code=2
    )
    # Mended, its jobs run as if nothing had been.
    edit(place, "UPDATE batches SET settings = '{}' WHERE name = 'a'")
    assert place.run("retry", "a")[0] == 0
    assert [state for _, _, state, _ in work(place)] == ["done"] * 6


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{}", None),
        ('{"params": {"a": 1}}', None),
        ("[]", "its settings are not a JSON object"),
        ("5", "its settings are not a JSON object"),
        ('{"params": [1]}', "`params` of its settings is not a JSON object"),
        ('{"schema": "x"}', "`schema` of its settings is not a JSON object"),
        (DEEP, "its settings can't be read: maximum recursion depth"),
        (b"\xff", "its settings can't be read: "),
        (5, "its settings can't be read: "),
    ],
)
def test_settings_are_an_object_or_a_fault(text, fault):
    settings, found = settings_of(text)
    assert (settings == {} or fault is None) and (found or "").startswith(fault or "")
    assert (found is None) == (fault is None)


@pytest.mark.parametrize(
    "edited",
    [
        "call_timeout_ms = 'soon'",
        "budget = 'much'",
        "priority = 'high'",
        "max_attempts = 'x'",
        "size = 'x'",
        "created_at = 'x', enqueue_until = 'y'",
        "model = x'6d'",
        """settings = '{"system": 5, "url": 5}'""",
    ],
)
def test_columns_of_a_batch_that_are_no_numbers_stop_nobody_else(place, edited):
    edit(place, f"UPDATE batches SET {edited} WHERE name = 'a'")
    assert [state for name, _, state, _ in work(place) if name == "b"] == ["done"] * 3
    for command in (["status"], ["status", "--json"], ["status", "a"], ["show", "a", "0"], ["collect", "b"]):
        told(place, *command, code=0)


# Jobs


@ON_BOTH
@pytest.mark.parametrize("payload", ["{oops", "[1]", "null"], ids=["torn", "list", "null"])
def test_a_job_whose_prompt_nobody_can_read_fails_alone(place, payload):
    edit(place, "UPDATE jobs SET payload = ? WHERE position = 1 AND batch_id = 1", payload)
    jobs = work(place)
    assert [state for _, _, state, _ in jobs] == ["done", "failed", "done"] + ["done"] * 3
    assert "the stored prompt can't be read" in jobs[1][3]


@ON_BOTH
@pytest.mark.parametrize("result", ["{oops", "NaN", ""], ids=["torn", "nan", "empty"])
def test_a_result_that_is_no_json_is_named_and_nothing_is_written(place, result):
    work(place)
    edit(place, "UPDATE jobs SET result = ? WHERE position = 1 AND batch_id = 1", result)
    for output_format in ("jsonl", "openai"):
        err = told(place, "collect", "a", "-o", "out", "--format", output_format)
        assert "a: the job at position 1 can't be read: its result is not JSON" in err
        assert not (place.directory / "out").exists()
    told(place, "show", "a", "1", code=0)
    told(place, "collect", "b", "-o", "out.jsonl", code=0)


@pytest.mark.parametrize(
    ("edited", "column"),
    [
        ("result = x'ff00'", "result"),
        ("error = x'ff00', error_class = 'x'", "error"),
        ("cost = 'much'", "cost"),
        ("finished_at = 'x'", "finished_at"),
        ("custom_id = x'ff'", "custom_id"),
        ("attempts = 'x'", "attempts"),
    ],
)
def test_a_column_of_another_type_is_named(place, edited, column):
    work(place)
    edit(place, f"UPDATE jobs SET {edited} WHERE position = 1 AND batch_id = 1")
    for command in (
        ["collect", "a"],
        ["collect", "a", "--format", "csv"],
        ["show", "a", "1"],
        ["show", "a", "1", "--json"],
    ):
        assert f"a: the job at position 1 can't be read: its {column} is " in told(place, *command)
    for command in (["status"], ["status", "a"]):
        told(place, *command, code=0)


def test_results_of_the_library_name_the_row_that_is_damaged(place):
    work(place)
    edit(place, "UPDATE jobs SET result = '{oops' WHERE position = 1 AND batch_id = 1")

    async def read(store):
        return [result async for result in store.results(await store.batch("a"))]

    results = with_store(place.database, read, create=False)
    assert [results[0].value, results[2].value] == ["prompt 0", "prompt 2"]
    with pytest.raises(DamagedRow, match="position 1 can't be read: its result is not JSON"):
        _ = results[1].value


@pytest.mark.parametrize("edited", ["state = 'zzz'", "attempts = -1", "state = 'done', finished_at = 1", "token = -1"])
def test_what_can_not_be_is_refused_by_the_database(place, edited):
    with pytest.raises(Exception, match="CHECK constraint failed"):
        edit(place, f"UPDATE jobs SET {edited} WHERE position = 1")


def test_a_time_that_is_none_is_named_instead_of_waited_for(place):
    edit(place, "UPDATE jobs SET claimable_at = 'never' WHERE position = 1 AND batch_id = 1")
    assert "a: a job can't be read: its claimable_at is 'never'" in told(place, "worker", "--until-empty")
    assert "its claimable_at is 'never'" in told(place, "status", "a")
    assert place.query("SELECT count(*) FROM jobs WHERE state = 'done'") == [(5,)]


# Lanes and workers


def test_a_limit_that_is_no_number_is_named(place):
    assert place.run("limit", "", "--worker", "echo", "--rpm", "600")[0] == 0
    edit(place, "UPDATE lanes SET tokens_left = 'all of them'")
    assert "in the table `lanes` can't be read: its tokens_left is 'all of them'" in told(place, "status")
    assert "its tokens_left is 'all of them'" in json.dumps(told(place, "worker", "--until-empty"))


def test_what_workers_told_of_themselves_may_be_lost(place):
    work(place)
    edit(place, "UPDATE runners SET stopped_at = NULL, endpoints = '{oops'")
    told(place, "status", code=0)
    told(place, "collect", "a", code=0)
