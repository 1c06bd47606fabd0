"""`batchq exporter`: what it counts is what happened."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPException
from urllib.parse import urlsplit

import pytest
from fake_provider import running_provider
from processes import ON_BOTH, bench, bench_for, wait_for
from prometheus_client.parser import text_string_to_metric_families
from scraping import BATCH, Exporter, enqueued, get
from tcp_proxy import tcp_proxy


@pytest.fixture
def place(request, tmp_path):
    with bench_for(request, tmp_path) as opened:
        yield opened


@ON_BOTH
def test_it_counts_what_happened_since_it_began(place):
    with running_provider(error_mix="503:0.2", seed=3) as provider, enqueued(place, provider):
        exporter = Exporter(place)
        batch = BATCH
        assert exporter.value("batchq_jobs", batch=batch, state="pending") == 20
        assert exporter.value("batchq_oldest_pending_age_seconds", batch=batch) >= 0
        assert exporter.value("batchq_claims_total", model="m") == 0

        assert place.run("worker", "--until-empty", "-c", "4").returncode == 0
        wait_for(lambda: exporter.value("batchq_jobs_finished_total", state="done") == 20, "it to count all", 20)

        ledger = provider.ledger()
        assert exporter.value("batchq_jobs", batch=batch, state="done") == 20
        assert exporter.value("batchq_claims_total", worker="openrouter") == ledger["calls"]
        assert exporter.value("batchq_attempts_total") == ledger["calls"]
        assert exporter.value("batchq_attempts_total", outcome="succeeded") == 20
        assert exporter.value("batchq_attempt_duration_seconds_count") == ledger["calls"]
        assert exporter.value("batchq_job_queue_seconds_count") == 20
        assert exporter.value("batchq_cost_dollars_total") == pytest.approx(ledger["cost"])
        log = place.query("SELECT sum(input_tokens), sum(output_tokens) FROM attempts")[0]
        tokens = [exporter.value("batchq_tokens_total", type=each) for each in ("input", "output")]
        assert tokens == list(map(int, log))
        page = get(exporter.url)[1]
        texts = place.query("SELECT payload, result FROM jobs")
        assert not [text for row in texts for text in row if json.loads(text) in page]


def test_counters_never_fall(place):
    with running_provider() as provider, enqueued(place, provider, 5):
        exporter = Exporter(place)
        assert place.run("worker", "--until-empty").returncode == 0
        wait_for(lambda: exporter.value("batchq_jobs_finished_total") == 5, "it to count all", 20)
        before = exporter.samples()
        assert place.run("purge", BATCH, "--yes").returncode == 0
        after = exporter.samples()
        assert not [key for key in after if key[0] == "batchq_jobs"]
        counters = [key for key in before if key[0].endswith(("_total", "_count", "_sum", "_bucket"))]
        assert counters
        assert all(after[key] == before[key] for key in counters)


@ON_BOTH
def test_what_retry_sends_back_is_counted_again_and_not_the_attempts_before(place):
    with running_provider(error_mix="400:1") as provider, enqueued(place, provider, 3):
        exporter = Exporter(place)
        place.run("worker", "--until-empty")
        failed = {"name": "batchq_jobs_finished_total", "state": "failed"}
        wait_for(lambda: exporter.value(**failed) == 3, "it to count all", 20)
        provider.behave(error_mix="")
        assert place.run("retry", BATCH).returncode == 0
        assert exporter.value("batchq_jobs", state="pending") == 3
        assert place.run("worker", "--until-empty").returncode == 0
        wait_for(lambda: exporter.value("batchq_jobs_finished_total", state="done") == 3, "it to count all", 20)
        assert exporter.value(**failed) == 3
        assert exporter.value("batchq_attempts_total") == provider.ledger()["calls"] == 6
        assert exporter.value("batchq_claims_total") == 6
        assert exporter.value("batchq_attempts_total", outcome="failed") == 3
        assert exporter.value("batchq_attempt_duration_seconds_count") == 6
        assert exporter.value("batchq_job_queue_seconds_count") == 3


def test_what_begins_while_it_runs_is_told_as_0_first(place):
    with running_provider() as provider:
        place.run("enqueue", str(place.write_prompts(1)), "--worker", "echo", "--batch", "before")
        exporter = Exporter(place)
        with enqueued(place, provider, 4):
            assert place.run("worker", "--until-empty").returncode == 0
        first = exporter.samples()
        begun = {key: value for key, value in first.items() if ("model", "m") in key and key[0].endswith("_total")}
        assert set(begun.values()) == {0}
        assert {key[0] for key in begun} >= {"batchq_jobs_finished_total", "batchq_cost_dollars_total"}
        assert exporter.value("batchq_claims_total", model="m") == 4
        done = {"name": "batchq_jobs_finished_total", "model": "m", "state": "done"}
        wait_for(lambda: exporter.value(**done) == 4, "it to count all", 20)


def test_a_batch_that_is_paused_waits_for_nobody(place):
    place.write_prompts(2)
    place.run("enqueue", "prompts.jsonl", "--worker", "echo", "--batch", "a")
    exporter = Exporter(place)
    wait_for(lambda: exporter.value("batchq_oldest_pending_age_seconds", batch="a") > 0, "it to have waited")
    assert place.run("pause", "a").returncode == 0
    assert exporter.value("batchq_oldest_pending_age_seconds") is None
    assert exporter.value("batchq_batches", state="paused") == 1


def test_once_it_prints_what_is_and_no_counters(place):
    place.write_prompts(2)
    place.run("enqueue", "prompts.jsonl", "--worker", "echo", "--batch", BATCH)
    done = place.run("exporter", "--once")
    assert (done.returncode, done.stderr) == (0, "")
    families = list(text_string_to_metric_families(done.stdout))
    assert {family.type for family in families} == {"gauge"}
    (told,) = [family for family in families if family.name == "batchq_jobs"]
    assert {sample.labels["state"]: sample.value for sample in told.samples if sample.labels["batch"] == BATCH} == {
        "pending": 2, "inflight": 0, "done": 0, "failed": 0, "cancelled": 0,
    }  # fmt: skip
    away = place.run("exporter", "--once", "--db", "nowhere.db")
    assert (away.returncode, "batchq_up 0.0" in away.stdout, "no queue" in away.stderr) == (0, True, True)


def test_a_server_that_says_nothing_keeps_no_scrape_waiting_and_no_end(request, tmp_path):
    url = request.getfixturevalue("postgres_queue")
    port = urlsplit(url).port
    with tcp_proxy(port) as proxy, bench(tmp_path, BATCHQ_DB=url.replace(f":{port}/", f":{proxy.port}/")) as place:
        exporter = Exporter(place)
        assert exporter.value("batchq_up") == 1
        proxy.silent_for_new = frozenset({"down"})
        proxy.go_silent("down")
        began = time.monotonic()
        assert exporter.value("batchq_up") == 0
        assert time.monotonic() - began < 10  # when Prometheus gives up
        assert "no answer within" in place.errors(exporter.process)
        proxy.silent_for_new = frozenset()
        assert exporter.value("batchq_up") == 1
        proxy.go_silent("down")
        with ThreadPoolExecutor() as pool:
            asked = pool.submit(get, exporter.url)
            time.sleep(0.2)
            exporter.process.send_signal(signal.SIGTERM)
            assert exporter.process.wait(30) == 0
            with suppress(OSError, HTTPException):
                asked.result(30)


def test_workers_come_and_go(place):
    with running_provider(latency=0.2) as provider, enqueued(place, provider, 400):
        exporter = Exporter(place)
        assert exporter.value("batchq_workers", state="live") == 0
        worker = place.start("worker", "-c", "3")
        wait_for(lambda: exporter.value("batchq_worker_in_flight", pid=str(worker.pid)) == 3, "its calls")
        assert exporter.value("batchq_worker_concurrency") == 3
        assert exporter.value("batchq_lane_in_flight", model="m") == 3
        worker.send_signal(signal.SIGTERM)
        worker.wait(30)
        assert exporter.value("batchq_workers", state="live") == 0


def test_a_lane_that_is_halted_and_a_budget_are_told(place):
    with running_provider(credits=0.0) as provider, enqueued(place, provider, 3, "--budget", "2"):
        exporter = Exporter(place)
        place.start("worker")
        wait_for(lambda: exporter.value("batchq_lane_halted", model="m") == 1, "the halt")
        assert exporter.value("batchq_batches", state="halted") == 1
        assert exporter.value("batchq_batch_budget_dollars") == 2


def test_a_queue_that_goes_away_and_comes_back_is_told_and_ends_nothing(place):
    exporter = Exporter(place)
    assert exporter.value("batchq_up") == 0
    assert "there is no queue" in place.errors(exporter.process)
    place.write_prompts(2)
    place.run("enqueue", "prompts.jsonl", "--worker", "echo")
    assert exporter.value("batchq_up") == 1
    assert exporter.value("batchq_jobs", state="pending") == 2
    assert "can be read again" in place.errors(exporter.process)
    exporter.process.send_signal(signal.SIGTERM)
    assert exporter.process.wait(20) == 0


def test_other_pages_and_a_place_where_nobody_can_listen(place):
    exporter = Exporter(place)
    root = exporter.url.removesuffix("/metrics")
    assert get(f"{root}/healthz") == (200, "ok\n")
    with pytest.raises(urllib.error.HTTPError, match="404"):
        get(f"{root}/x")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = place.run("exporter", "--listen", f"127.0.0.1:{taken.getsockname()[1]}")
    assert (done.returncode, "can't listen at 127.0.0.1" in done.stderr) == (78, True)
    assert place.run("exporter", "--listen", "9464").returncode == 2


def test_without_the_library_it_says_what_to_install(place):
    script = """
import sys
from batchq.cli.commands import batchq
from batchq.cli.exits import run_command
sys.modules["prometheus_client"] = None  # as if there were none
sys.exit(run_command(batchq, ["exporter", "--once"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=place.directory, env=place.environment, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (
        78,
        "batchq: prometheus_client is not installed: pip install 'batchq[metrics]'\n",
    )
