"""Rate limits with real worker processes: the provider's ledger and the log of attempts say what was called when."""

import bisect
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest
from fake_provider import Provider, running_provider
from processes import ON_BOTH, Bench, bench_for, wait_for


@pytest.fixture
def place(request, tmp_path):
    with bench_for(request, tmp_path) as made:
        yield made


def start_workers(place: Bench, provider: Provider, processes: int, slots: int) -> list[subprocess.Popen]:
    """Start workers that wait for work; all are up when this returns."""
    options = ["--base-url", provider.base_url, "--concurrency", str(slots), "--log-level", "warning"]
    started = [place.start("worker", *options) for _ in range(processes)]
    wait_for(lambda: place.query("SELECT count(*) FROM runners") == [(processes,)], "the workers to be up")
    return started


def enqueue(place: Bench, prompts: list[str], *options: str, name: str = "prompts", model: str = "m") -> None:
    path = place.directory / f"{name}.txt"
    path.write_text("".join(f"{prompt}\n" for prompt in prompts))
    done = place.run("enqueue", str(path), "--model", model, *options)
    assert done.returncode == 0, done.stderr


def numbered(count: int) -> list[str]:
    return [f"prompt {number}" for number in range(count)]


def limit(place: Bench, provider: Provider, *options: str, model: str = "m") -> None:
    done = place.run("limit", model, "--base-url", provider.base_url, *options)
    assert done.returncode == 0, done.stderr


def wait_until_done(place: Bench, jobs: int, deadline: float) -> None:
    wait_for(lambda: place.count("done") == jobs, f"{jobs} answers", deadline)


def most_within(times: list[float], window: float) -> int:
    """Return the most of the sorted `times` in any half-open window."""
    return max(bisect.bisect_left(times, start + window) - first for first, start in enumerate(times))


@pytest.mark.parametrize(("processes", "slots"), [(1, 16), (4, 4)])
def test_an_unknown_limit_is_learned_with_few_429s_and_none_of_them_charges_an_attempt(place, processes, slots):
    with running_provider(rate=20, burst=5, retry_after=1, latency=0.05) as provider:
        start_workers(place, provider, processes, slots)
        enqueue(place, numbered(100))

        wait_until_done(place, 100, 60)

        ledger = provider.ledger(prompts=True)
        assert ledger["answered_prompts"] == dict.fromkeys(numbered(100), 1)
        assert 1 <= ledger["rejected"] < 20
        assert place.query("SELECT DISTINCT state, attempts FROM jobs") == [("done", 1)]
        assert sorted(place.query("SELECT outcome, charged, count(*) FROM attempts GROUP BY 1, 2")) == [
            ("succeeded", 1, 100),
            ("throttled", 0, ledger["rejected"]),
        ]


def test_a_limit_that_is_configured_wastes_hardly_a_call(place):
    with running_provider(rate=20, burst=5, retry_after=1, latency=0.05) as provider:
        limit(place, provider, "--rpm", "1200")
        start_workers(place, provider, 4, 4)
        enqueue(place, numbered(45))

        wait_until_done(place, 45, 30)

        assert provider.ledger()["rejected"] <= 3


@ON_BOTH
def test_four_processes_share_a_configured_limit_use_it_and_never_pass_it(place):
    # Two seconds' worth, so that a machine that is busy for a moment loses nothing.
    per_second, burst, jobs = 10, 20, 90
    with running_provider(latency=0.05) as provider:
        limit(place, provider, "--rpm", str(per_second * 60), "--burst", str(burst))
        start_workers(place, provider, 4, 4)
        enqueue(place, numbered(jobs))

        wait_until_done(place, jobs, 60)

        since = time.time() - time.monotonic()  # the provider's clock is that of its event loop
        arrivals = [since + arrival for arrival, _ in provider.ledger(times=True)["times"]]
        claims = sorted(claimed / 1000 for (claimed,) in place.query("SELECT started_at FROM attempts"))
        assert len(arrivals) == len(claims) == jobs
        # What was claimed apart may arrive together, where the machine was busy in between: no call comes before its
        # claim, and the limit counts the time that the slowest of them took. An event loop looks at its clock once a round.
        on_their_way = [arrival - claim for arrival, claim in zip(sorted(arrivals), claims, strict=True)]
        assert min(on_their_way) >= -0.1
        for seconds in (0.5, 1, 2, 5, 60):
            assert most_within(claims, seconds) <= per_second * seconds + burst
            assert most_within(arrivals, seconds) <= per_second * (seconds + max(on_their_way)) + burst + 1
        assert jobs >= 0.9 * (per_second * (claims[-1] - claims[0]) + burst)
        assert place.query("SELECT count(DISTINCT runner) FROM attempts")[0][0] >= 2


@ON_BOTH
def test_nothing_is_claimed_from_a_429_until_its_pause_is_over(place):
    pause_ms = 2_000
    with running_provider(rate=10, burst=4, retry_after=2, strict_window=True, latency=0.05) as provider:
        start_workers(place, provider, 3, 4)
        enqueue(place, numbered(15))

        wait_until_done(place, 15, 60)

        log = place.query("SELECT started_at, ended_at, runner, outcome FROM attempts")
        pauses: list[tuple[int, str]] = []  # from the first 429 of each, committed by whom
        for ended, runner in sorted((ended, runner) for _, ended, runner, outcome in log if outcome == "throttled"):
            if not pauses or ended >= pauses[-1][0] + pause_ms:
                pauses.append((ended, runner))
        assert pauses
        for begun, by in pauses:
            # Who committed the 429 claimed nothing in the same exchange; others may have, a moment before. Where they
            # wait for no common lock, theirs may have begun a moment later and still have been committed before.
            known = begun if isinstance(place.database, Path) else begun + 700
            inside = [row for row in log if known < row[0] < begun + pause_ms or (row[0] == begun and row[2] == by)]
            assert inside == []
        on_their_way = sum(started <= begun <= ended for begun, _ in pauses for started, ended, _, _ in log)
        assert provider.ledger()["inside_retry_after"] < on_their_way
        assert place.query("SELECT DISTINCT state, attempts FROM jobs") == [("done", 1)]


def test_a_throttled_model_does_not_hold_up_another(place):
    with running_provider(retry_after=120, latency=0.02) as provider:
        start_workers(place, provider, 2, 4)
        enqueue(place, [f"[[status 429]] {number}" for number in range(40)], name="refused", model="refused")
        wait_for(lambda: place.query("SELECT 1 FROM attempts WHERE outcome = 'throttled'"), "the first 429")

        enqueue(place, numbered(200), name="welcome", model="welcome")

        wait_until_done(place, 200, 30)
        ledger = provider.ledger(prompts=True)
        assert ledger["answered_prompts"] == dict.fromkeys(numbered(200), 1)
        assert ledger["rejected"] <= 2 * 4  # what had begun before the first 429 was known
        refused = "SELECT DISTINCT jobs.state, attempts FROM jobs JOIN batches ON batches.id = batch_id WHERE name = ?"
        assert place.query(refused, "refused") == [("pending", 0)]


@ON_BOTH
def test_three_processes_share_a_limit_of_calls_in_flight_and_a_higher_one_takes_effect(place):
    with running_provider(latency=0.2) as provider:
        limit(place, provider, "--max-inflight", "4")
        start_workers(place, provider, 3, 8)
        enqueue(place, numbered(250))
        wait_for(lambda: place.count("done") >= 24, "the first answers")
        assert provider.ledger()["peak_in_flight"] == 4

        limit(place, provider, "--max-inflight", "20")

        wait_for(lambda: provider.ledger()["peak_in_flight"] > 16, "more calls than any two processes could make")
        wait_until_done(place, 250, 60)
        assert provider.ledger()["peak_in_flight"] <= 20


STORM = "429:0.3,500:0.05,502:0.05,whitespace:0.02,html:0.02,err200_empty_choices:0.01,hang:0.02"


@ON_BOTH
def test_a_storm_ends_with_one_answer_for_every_prompt_and_true_accounts(place):
    jobs = 60
    with running_provider(error_mix=STORM, error_calls=5, retry_after=0.25, latency=0.05) as provider:
        start_workers(place, provider, 4, 8)
        enqueue(place, numbered(jobs), "--call-timeout", "2s")

        wait_until_done(place, jobs, 90)

        ledger = provider.ledger(prompts=True)
        assert set(ledger["answered_prompts"]) == set(numbered(jobs))
        log = place.query("SELECT job_id, outcome, charged, error_class FROM attempts")
        assert len(log) == ledger["calls"]
        outcomes = Counter(outcome for _, outcome, _, _ in log)
        assert outcomes["throttled"] == ledger["rejected"] > 0
        assert {(outcome, charged) for _, outcome, charged, _ in log} == {
            ("succeeded", 1),
            ("retry", 1),
            ("throttled", 0),
        }
        assert {"timeout", "broken_answer"} <= {error_class for _, _, _, error_class in log}

        charges = Counter(job for job, _, charged, _ in log if charged)
        assert dict(place.query("SELECT id, attempts FROM jobs")) == charges
        answers = Counter(job for job, outcome, _, _ in log if outcome == "succeeded")
        assert list(answers.values()) == [1] * jobs
        assert [row["result"] for row in place.results("prompts")] == [f"echo: prompt {i}" for i in range(jobs)]

        totals = (
            "SELECT sum(pending), sum(inflight), sum(done), sum(failed), sum(attempts), sum(throttles) FROM tallies"
        )
        assert place.query(totals) == [(0, 0, jobs, 0, ledger["calls"], outcomes["throttled"])]
