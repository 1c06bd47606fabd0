"""Limits, money and halts with real processes, as an operator meets them."""

from __future__ import annotations

import json

import pytest
from fake_provider import running_provider
from processes import ON_BOTH, bench_for, wait_for


@pytest.fixture
def provider():
    with running_provider(latency=0.02) as running:
        yield running


@pytest.fixture
def place(request, tmp_path, provider):
    with bench_for(request, tmp_path, BATCHQ_BASE_URL=provider.base_url, MODEL="fake/model") as made:
        yield made


def spent(place, name="prompts"):
    """What the tallies, the jobs and the log say that a batch has cost, in nano-dollars."""
    (row,) = place.query(
        "SELECT (SELECT sum(cost) FROM tallies t WHERE t.batch_id = b.id), "
        "(SELECT sum(cost) FROM jobs j WHERE j.batch_id = b.id), "
        "(SELECT sum(a.cost) FROM attempts a JOIN jobs j ON j.id = a.job_id WHERE j.batch_id = b.id) "
        "FROM batches b WHERE b.name = ?",
        name,
    )
    return row


def status(place, *options):
    return json.loads(place.run("status", "--json", *options).stdout)


# Halts


def test_a_bad_key_stops_the_lane_and_a_good_one_ends_the_batch(place, provider):
    provider.behave(require_key="good")
    place.write_prompts(60)
    place.run("enqueue", "prompts.jsonl")

    refused = place.run("worker", "--until-empty", "-c", "4", env={"OPENAI_API_KEY": "bad"})
    assert refused.returncode == 5
    assert "No auth credentials found" in refused.stderr
    assert "batchq resume" in refused.stderr
    assert provider.ledger()["calls"] <= 5
    shown = place.run("status")
    assert "halted" in shown.stdout
    assert "No auth credentials found" in shown.stdout
    assert place.query("SELECT DISTINCT state, attempts FROM jobs") == [("pending", 0)]

    done = place.run("worker", "--until-empty", "-c", "4", env={"OPENAI_API_KEY": "good"})
    assert done.returncode == 0, done.stderr
    assert place.query("SELECT DISTINCT state, attempts FROM jobs") == [("done", 1)]


@ON_BOTH
def test_a_lane_reopens_by_itself_when_the_cause_is_gone(place, provider):
    provider.behave(credits=0.0)
    place.write_prompts(30)
    place.run("enqueue", "prompts.jsonl")
    worker = place.start("worker", "-c", "4")
    wait_for(lambda: place.query("SELECT 1 FROM lanes WHERE halted_at IS NOT NULL"), "a halt")
    assert place.count("done") == 0
    provider.behave(credits=100.0)
    wait_for(lambda: place.count("done") == 30, "the rest")
    assert worker.poll() is None
    told = [json.loads(line) for line in place.errors(worker).splitlines()]
    halts = [line for line in told if line["event"] == "lane.halted"]
    assert "requires more credits" in halts[0]["reason"]
    assert "batchq resume" in halts[0]["what_to_do"]
    assert place.query("SELECT DISTINCT attempts FROM jobs") == [(1,)]


def test_one_prompt_that_halts_its_lane_does_not_end_a_run(place):
    prompts = [f"prompt {i}" for i in range(20)]
    prompts[3] = "[[fixture err_404_no_endpoints]]"
    (place.directory / "prompts.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    done = place.run("run", "prompts.jsonl", "-o", "out.jsonl", "-c", "4")
    assert done.returncode == 0, done.stderr
    assert place.count("done") == 19
    (row,) = place.query("SELECT state, error FROM jobs WHERE position = 3")
    assert row[0] == "failed"
    assert "halted its lane 3 times while others were answered" in row[1]
    assert place.query("SELECT halted_at FROM lanes") == [(None,)]


def test_resume_reopens_the_lane_of_a_batch_at_once(place, provider):
    provider.behave(require_key="good")
    place.write_prompts(5)
    place.run("enqueue", "prompts.jsonl")
    place.run("worker", "--until-empty", "-c", "1", env={"OPENAI_API_KEY": "bad"})
    said = place.run("resume", "prompts").stderr
    assert "1 halt lifted" in said
    assert place.query("SELECT halted_at, ready_at FROM lanes")[0][0] is None


# Money


@ON_BOTH
def test_a_budget_holds_to_the_cent_and_is_raised(place, provider):
    jobs = 150
    place.write_prompts(jobs)
    place.run("enqueue", "prompts.jsonl")
    whole = jobs * 2e-6  # about what all of it costs
    budget = f"{whole / 3:.9f}"
    assert place.run("budget", "prompts", budget).returncode == 0

    two = [place.start("worker", "-c", "8", "--until-empty") for _ in range(2)]
    assert [worker.wait(60) for worker in two] == [5, 5]
    assert "the budget is spent" in place.errors(two[0])

    tallied, of_jobs, logged = spent(place)
    ledger = provider.ledger()
    assert tallied == of_jobs == logged == round(ledger["cost"] * 1e9)
    dearest = place.query("SELECT max(cost) FROM attempts")[0][0]
    assert float(budget) * 1e9 <= tallied <= float(budget) * 1e9 + 16 * dearest
    shown = status(place)["batches"][0]
    assert (shown["state"], "the budget is spent" in shown["waiting"]) == ("over budget", True)
    assert place.count("failed") == 0

    assert "budget $10.0000" in place.run("budget", "prompts", "10").stderr
    assert place.run("worker", "--until-empty").returncode == 0
    assert place.count("done") == jobs
    assert spent(place)[0] == round(provider.ledger()["cost"] * 1e9)


def test_the_same_run_goes_on_under_a_budget_that_was_raised_meanwhile(place):
    place.write_prompts(40)
    command = ("run", "prompts.jsonl", "-o", "out.jsonl", "--batch", "it's mine", "--budget", "0.000001", "-c", "2")
    stopped = place.run(*command)
    assert stopped.returncode == 5
    assert "then run the same command again" in stopped.stderr
    assert f"batchq budget 'it'\"'\"'s mine' DOLLARS --db {place.database}" in stopped.stderr
    place.run("budget", "it's mine", "10")
    assert place.run(*command).returncode == 0
    assert place.count("done") == 40


def test_a_worker_that_stays_says_that_a_budget_is_spent_and_goes_on_when_it_is_raised(place):
    place.write_prompts(40)
    place.run("enqueue", "prompts.jsonl", "--budget", "0.000000001")
    worker = place.start("worker", "-c", "2")
    wait_for(lambda: "the budget is spent" in place.errors(worker), "a word in the log")
    place.run("budget", "prompts", "none")
    wait_for(lambda: place.count("done") == 40, "the rest")


@ON_BOTH
def test_a_provider_that_tells_no_cost_stops_a_budget_after_a_few_answers(place, provider):
    provider.behave(no_cost=True)
    place.write_prompts(50)
    place.run("enqueue", "prompts.jsonl", "--budget", "5")
    ended = place.run("worker", "--until-empty", "-c", "16")
    assert ended.returncode == 5
    assert "tells no cost" in ended.stderr
    assert 1 <= provider.ledger()["calls"] <= 3
    assert status(place)["models"] == [
        {"model": "fake/model", "cost_nano_dollars": None, "estimated_nano_dollars": 0, "unpriced": 3,
         "input_tokens": 6, "output_tokens": 9}
    ]  # fmt: skip

    place.run("enqueue", "prompts.jsonl", "--allow-unknown-cost")
    assert place.run("worker", "--until-empty").returncode == 0
    assert place.count("done") == 50


def test_a_dry_run_tells_rows_tokens_and_cost_and_writes_nothing(place):
    place.write_prompts(10)
    told = place.run(
        "enqueue", "prompts.jsonl", "--dry-run", "--json", "--model", "gpt-4o-mini", "--set", "max_tokens=50",
        env={"BATCHQ_PRICES": "openai"},
    )  # fmt: skip
    estimate = json.loads(told.stdout)
    assert (estimate["rows"], estimate["output_tokens"]) == (10, 500)
    assert 20 <= estimate["input_tokens"] <= 100
    assert estimate["output_cost"] == pytest.approx(500 * 6e-7)
    assert not place.database.exists()
    refused = place.run("enqueue", "prompts.jsonl", "--dry-run", "--skip-bad", "bad.jsonl")
    assert (refused.returncode, "leave --skip-bad out" in refused.stderr) == (2, True)
    said = place.run("enqueue", "prompts.jsonl", "--dry-run")
    assert "10 rows" in said.stdout
    assert "not limited" in said.stdout
    assert not place.database.exists()


# Limits and concurrency


def test_limits_are_set_shown_and_lifted(place):
    assert (
        "600 requests/min (bursts of 2), at most 5 in flight"
        in place.run("limit", "fake/model", "--rpm", "600", "--max-inflight", "5").stderr
    )
    assert "1,000 tokens/min" in place.run("limit", "fake/model", "--tpm", "1000", "--rpm", "none").stderr
    (lane,) = status(place)["lanes"]
    assert (lane["rpm"], lane["tpm"], lane["max_inflight"]) == (None, 1000.0, 5)
    assert "1,000 tokens/min; at most 5 in flight; 0 in flight now" in place.run("status").stdout
    place.run("limit", "fake/model", "--tpm", "none", "--max-inflight", "none")
    assert "no limit" in place.run("limit", "fake/model").stdout


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--rpm", "0"], "not between 0.001"),
        (["--rpm", "nan"], "not between 0.001"),
        (["--rpm", "fast"], "not a number"),
        (["--max-inflight", "2.5"], "a whole number"),
        (["--burst", "0.5"], "one call start at least"),
    ],
)
def test_what_can_not_be_a_limit_is_refused(place, options, complaint):
    refused = place.run("limit", "fake/model", *options)
    assert (refused.returncode, complaint in refused.stderr) == (2, True)


def test_a_limit_of_another_server_than_workers_call_is_told(place, provider):
    place.write_prompts(1)
    place.run("enqueue", "prompts.jsonl")
    place.start("worker", "-c", "1")
    wait_for(lambda: place.count("done") == 1, "a worker")
    told = place.run("limit", "fake/model", "--rpm", "6", "--base-url", "http://127.0.0.1:9/v1").stderr
    assert f"workers call {provider.base_url} for this endpoint" in told


def test_limits_of_an_enqueue_are_those_of_its_lane(place):
    place.write_prompts(3)
    place.run("enqueue", "prompts.jsonl", "--rpm", "120")
    assert [lane["rpm"] for lane in status(place)["lanes"]] == [120.0]


def test_an_enqueue_that_is_refused_leaves_the_limits_alone(place):
    place.write_prompts(3)
    place.run("enqueue", "prompts.jsonl", "--rpm", "120")
    (place.directory / "prompts.jsonl").write_text('"another"\n')
    assert place.run("enqueue", "prompts.jsonl", "--rpm", "7").returncode == 2
    assert [lane["rpm"] for lane in status(place)["lanes"]] == [120.0]


def test_neither_answers_nor_prompts_nor_keys_reach_the_log(place, provider):
    provider.behave(answer='fixed:{"n": "THE-ANSWER"}')
    (place.directory / "schema.json").write_text('{"type": "object", "properties": {"n": {"type": "integer"}}}')
    (place.directory / "prompts.jsonl").write_text('"THE-PROMPT"\n"[[status 400]] THE-PROMPT"\n')
    place.run("enqueue", "prompts.jsonl", "--schema", "schema.json")
    said = place.run("worker", "--until-empty", "--log-level", "debug", env={"OPENAI_API_KEY": "sk-THE-KEY-0123456789"})
    assert place.count("failed") == 2
    assert "job.failed" in said.stderr
    for secret in ("THE-ANSWER", "THE-PROMPT", "THE-KEY"):
        assert secret not in said.stderr
    assert "THE-ANSWER" in place.run("status", "prompts").stdout  # for whoever reads the database


@ON_BOTH
def test_running_workers_take_over_another_concurrency(place, provider):
    provider.behave(latency=0.3)
    place.write_prompts(400)
    place.run("enqueue", "prompts.jsonl")
    worker = place.start("worker", "-c", "2")
    wait_for(lambda: place.count("done") >= 4, "a start")
    assert provider.ledger()["peak_in_flight"] <= 2
    assert "1 worker will make 12 calls at once" in place.run("concurrency", "12", "--pid", str(worker.pid)).stderr
    wait_for(lambda: provider.ledger()["peak_in_flight"] >= 12, "twelve at once")
    assert "there is no live worker" in place.run("concurrency", "3", "--pid", "1").stderr


# Errors


@ON_BOTH
def test_status_shows_errors_by_class_and_retry_sends_one_class_back(place):
    prompts = ["[[status 400]]"] * 3 + ["[[fixture err_413_payload]]"] * 2 + ["fine"]
    (place.directory / "prompts.jsonl").write_text(
        "".join(json.dumps(f"{p} {i}") + "\n" for i, p in enumerate(prompts))
    )
    place.run("enqueue", "prompts.jsonl")
    place.run("worker", "--until-empty")
    shown = place.run("status", "prompts").stdout
    assert "errors of prompts" in shown
    groups = {group["error_class"]: group["count"] for group in status(place)["batches"][0]["errors"]}
    assert sorted(groups.values()) == [2, 3]
    bad_request = next(name for name, count in groups.items() if count == 3)
    assert f"  3 {bad_request}, e.g. position 0: Input validation failed" in shown
    assert "3 jobs of prompts will run again" in place.run("retry", "prompts", "--error", bad_request).stderr
    assert (place.count("pending"), place.count("failed")) == (3, 2)


# Schemas


def test_a_schema_that_is_none_is_refused_with_its_place(place):
    place.write_prompts(1)
    for text, complaint in (
        ("{", "schema.json:1: the schema is not JSON"),
        ('{"type": "objekt"}', "no schema that answers can be held to"),
        ('{"type": "array"}', "wrap it in one"),
        ("[]", "no schema"),
    ):
        (place.directory / "schema.json").write_text(text)
        refused = place.run("enqueue", "prompts.jsonl", "--schema", "schema.json")
        assert (refused.returncode, complaint in refused.stderr) == (2, True), refused.stderr
    assert not place.database.exists()


def test_a_run_with_a_schema_writes_json_results(place, provider):
    provider.behave(answer="json")
    place.write_prompts(3)
    schema = {"type": "object", "properties": {"echo": {"type": "string"}}, "required": ["echo"]}
    (place.directory / "schema.json").write_text(json.dumps(schema))
    done = place.run("run", "prompts.jsonl", "-o", "out.jsonl", "--schema", "schema.json")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (place.directory / "out.jsonl").read_text().splitlines()]
    assert [line["result"] for line in lines] == [{"echo": f"prompt {i}"} for i in range(3)]
