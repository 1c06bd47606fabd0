"""`run` synchronises: the same rows resume, more rows are added, others start a generation that pays only for them."""

import asyncio
import json
import os
import signal
import uuid

import pytest
from completing import end_jobs, fail_odd, rows_of, succeed, with_store, write_lines
from fake_provider import running_provider
from processes import bench, wait_for
from raw_connection import connect

from batchq.errors import BatchConflict
from batchq.formats import ReadOptions
from batchq.generations import Wishes, synchronise
from batchq.jobs import Ended, Failed, NewBatch, Reason, RunnerIdentity, Serving, Wants
from batchq.pids import pid_space
from batchq.producer import Policy, Thrift, enqueue
from batchq.settlement import settle
from batchq.store import ExchangeRequest
from batchq.survey import survey_input

BATCH = NewBatch("b", "echo")


@pytest.fixture
def database(location):
    return location


@pytest.fixture
def prompts(tmp_path):
    return tmp_path / "prompts.jsonl"


def sync(database, path, rows, new=BATCH, **wishes):
    with survey_input(write_lines(path, rows), ReadOptions()) as survey:
        return with_store(database, lambda store: run_and_leave(store, survey, new, Wishes(**wishes)))


async def run_and_leave(store, survey, new, wishes):
    """Synchronise, start a runner for the batch, and end it before it did anything."""
    found = await synchronise(store, survey, new, wishes)
    runner = RunnerIdentity(uuid.uuid4().hex, "host", 1, 16, "echo", 60_000, batch_ids=frozenset([found.batch.id]))
    await store.register(runner)
    await store.retire(runner)
    return found


def answers(database, name):
    async def read(store):
        return [result async for result in store.results(await store.batch(name))]

    return [json.loads(result.result) if result.result else result.state for result in with_store(database, read)]


def names(database):
    return [name for (name,) in with_rows(database, "SELECT name FROM batches ORDER BY id")]


def with_rows(database, sql):
    with connect(database) as connection:
        return connection.tuples(sql)


def test_the_same_rows_are_the_same_batch(database, prompts):
    assert sync(database, prompts, ["a", "b"]).enqueued.added == 2
    again = sync(database, prompts, ["a", "b"])
    assert (again.batch.name, again.enqueued.added, again.enqueued.skipped) == ("b", 0, 2)


def test_more_rows_are_added_to_it(database, prompts):
    sync(database, prompts, ["a", "b"])
    more = sync(database, prompts, ["a", "b", "c"])
    assert (more.batch.name, more.enqueued.added) == ("b", 1)
    assert with_store(database, end_jobs) == 3


def test_a_changed_row_starts_a_generation_that_takes_over_what_is_done(database, prompts):
    sync(database, prompts, ["a", "b", "c"])
    with_store(database, end_jobs)
    changed = sync(database, prompts, ["a", "B", "c", "d"])
    assert (changed.batch.name, changed.enqueued.added, changed.enqueued.reused) == ("b~2", 4, 2)
    assert with_store(database, end_jobs) == 2
    assert answers(database, "b~2") == ["answer 0", "answer 1", "answer 2", "answer 3"]
    assert answers(database, "b") == ["answer 0", "answer 1", "answer 2"]


def test_fewer_rows_are_another_generation_that_costs_nothing(database, prompts):
    sync(database, prompts, ["a", "b", "c"])
    with_store(database, end_jobs)
    fewer = sync(database, prompts, ["c", "a"])
    assert (fewer.batch.name, fewer.enqueued.reused) == ("b~2", 2)
    assert answers(database, "b~2") == ["answer 2", "answer 0"]


def test_what_an_old_generation_had_to_do_is_cancelled(database, prompts):
    sync(database, prompts, ["a", "b", "c"])
    with_store(database, lambda store: end_jobs(store, at_most=1))
    changed = sync(database, prompts, ["a", "x"])
    assert changed.superseded == ("b",)
    assert with_store(database, end_jobs) == 1
    assert answers(database, "b") == ["answer 0", "cancelled", "cancelled"]


def test_back_to_the_old_rows_revives_what_was_cancelled(database, prompts):
    sync(database, prompts, ["a", "b"])
    sync(database, prompts, ["a", "x"])
    back = sync(database, prompts, ["a", "b"])
    assert (back.batch.name, back.revived) == ("b", 2)
    with_store(database, end_jobs)
    assert answers(database, "b") == ["answer 0", "answer 1"]


def test_a_generation_that_a_live_process_was_started_for_goes_on(database, prompts):
    old = sync(database, prompts, ["a", "b"]).batch
    elsewhere = RunnerIdentity("r", "another-host", 1, 16, "echo", 60_000, batch_ids=frozenset([old.id]))
    anybody = RunnerIdentity("any", "another-host", 2, 16, "echo", 60_000)
    with_store(database, lambda store: store.register(elsewhere))
    with_store(database, lambda store: store.register(anybody))
    assert sync(database, prompts, ["x"]).superseded == ()
    assert with_store(database, end_jobs) == 3


@pytest.mark.parametrize(("space", "superseded"), [(pid_space(), ("b",)), ("another container's", ()), (None, ())])
def test_a_process_that_has_ended_keeps_nothing_where_its_pid_means_something(database, prompts, space, superseded):
    old = sync(database, prompts, ["a", "b"]).batch
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    gone = RunnerIdentity(
        "r", os.uname().nodename, pid, 16, "echo", 60_000, batch_ids=frozenset([old.id]), pid_space=space
    )
    with_store(database, lambda store: store.register(gone))
    assert sync(database, prompts, ["x"]).superseded == superseded


def test_calls_that_a_general_worker_is_making_are_waited_for_and_not_paid_for_twice(database, prompts):
    async def supersede_beside_a_call(store):
        hand = RunnerIdentity("general", "host", os.getpid(), 1, "echo", 60_000, pid_space=pid_space())
        await store.register(hand)
        serving = (Serving("echo", "default", "http://127.0.0.1:1/v1", opened=True),)
        (claim,) = (await store.exchange(ExchangeRequest(hand, [], [], Wants(1, serving)))).claims
        with survey_input(write_lines(prompts, ["a", "x"]), ReadOptions()) as survey:
            changing = asyncio.create_task(synchronise(store, survey, BATCH, Wishes(on_waiting=said.append)))
            while not said:
                await asyncio.sleep(0.01)
            assert not changing.done()
            ended = settle(Ended(claim, succeed(claim), 1))
            await store.exchange(ExchangeRequest(hand, [ended], [], Wants(0, serving)))
            return await changing

    said: list[str] = []
    sync(database, prompts, ["a", "b"])
    changed = with_store(database, supersede_beside_a_call)
    assert changed.superseded == ("b",)
    assert changed.enqueued.reused == 1
    assert answers(database, "b") == ["answer 0", "cancelled"]


def test_a_batch_that_was_enqueued_by_itself_is_nobodys_to_change(database, prompts):
    with survey_input(write_lines(prompts, ["a", "b"]), ReadOptions()) as survey:
        with_store(database, lambda store: enqueue(store, survey, BATCH))
    assert sync(database, prompts, ["a", "b"]).batch.name == "b"
    with pytest.raises(BatchConflict, match="position 0"):
        sync(database, prompts, ["x"])
    with pytest.raises(BatchConflict, match="1 of the batch not among them"):
        sync(database, prompts, ["a"])
    assert names(database) == ["b"]


def test_a_batch_whose_name_differs_in_capitals_is_another(database, prompts):
    sync(database, prompts, ["a"], NewBatch("B~2", "echo"))
    assert sync(database, prompts, ["x"]).superseded == ()
    assert names(database) == ["B~2", "b"]


def test_a_revival_that_was_left_half_way_is_completed(database, prompts):
    sync(database, prompts, ["a", "b"])
    with_store(database, cancel)
    with connect(database) as connection:
        connection.execute("UPDATE batches SET state = 'open'")
    assert sync(database, prompts, ["a", "b"]).revived == 2


async def cancel(store):
    await store.cancel(await store.batch("b"))


def test_truncated_answers_run_again_once_they_are_allowed(database, prompts):
    sync(database, prompts, ["a", "b"])
    with_store(database, lambda store: end_jobs(store, lambda _claim: Failed(Reason("truncated", "cut off"))))
    assert sync(database, prompts, ["a", "b"]).retried == 0
    assert sync(database, prompts, ["c", "a"], policy=Policy(allow_truncated=False)).enqueued.reused == 1
    allowed = sync(database, prompts, ["a", "b"], policy=Policy(allow_truncated=True))
    assert allowed.retried == 2


def refuse_then_time_out(claim):
    error_class = "bad_request" if claim.position == 0 else "timeout"
    return Failed(Reason(error_class, "no"))


def test_failed_jobs_run_again_where_the_reason_may_pass(database, prompts):
    sync(database, prompts, ["a", "b"])
    with_store(database, lambda store: end_jobs(store, refuse_then_time_out))
    again = sync(database, prompts, ["a", "b"])
    assert again.retried == 1
    assert with_store(database, end_jobs) == 1
    assert answers(database, "b") == ["failed", "answer 1"]


def test_what_was_refused_is_not_asked_again_by_the_next_generation(database, prompts):
    sync(database, prompts, ["a", "b"])
    with_store(database, lambda store: end_jobs(store, refuse_then_time_out))
    changed = sync(database, prompts, ["b", "a", "c"])
    assert changed.enqueued.reused == 1
    assert with_store(database, end_jobs) == 2
    assert answers(database, "b~2") == ["answer 0", "failed", "answer 2"]


def test_a_batch_whose_runner_is_about_to_start_is_left_alone(database, prompts):
    with survey_input(write_lines(prompts, ["a"]), ReadOptions()) as survey:
        with_store(database, lambda store: synchronise(store, survey, BATCH, Wishes()))
    assert sync(database, prompts, ["x"]).superseded == ()


def test_fresh_ignores_what_was_answered(database, prompts):
    sync(database, prompts, ["a"])
    with_store(database, end_jobs)
    fresh = sync(database, prompts, ["a"], fresh=True)
    assert (fresh.batch.name, fresh.enqueued.reused) == ("b~2", 0)
    assert with_store(database, end_jobs) == 1


def test_several_inputs_of_one_script_have_a_generation_each(database, prompts):
    for rows in (["a", "b"], ["x", "y"]) * 2:
        sync(database, prompts, rows)
        with_store(database, end_jobs)
    assert names(database) == ["b", "b~2"]


def test_duplicates_are_one_job_also_in_the_next_generation(database, prompts):
    thrift = Thrift(dedupe=True)
    sync(database, prompts, ["a", "a", "b"], thrift=thrift)
    with_store(database, end_jobs)
    changed = sync(database, prompts, ["a", "c", "a", "c"], thrift=thrift)
    assert (changed.enqueued.added, changed.enqueued.reused, changed.enqueued.followers) == (4, 1, 2)
    assert with_store(database, end_jobs) == 1
    assert answers(database, "b~2") == ["answer 0", "answer 1", "answer 0", "answer 1"]


def test_other_settings_under_the_same_name_are_an_error(database, prompts):
    sync(database, prompts, ["a"])
    with pytest.raises(BatchConflict, match=r"model is .*other"):
        sync(database, prompts, ["b"], NewBatch("b", "echo", model="other"))


def test_a_name_with_a_tilde_of_its_own_is_no_generation(database, prompts):
    sync(database, prompts, ["a"], NewBatch("b~draft", "echo"))
    assert sync(database, prompts, ["z"]).batch.name == "b"


def test_rows_with_custom_ids_stand_in_the_order_of_the_input(database, prompts):
    rows = [{"prompt": prompt, "custom_id": prompt} for prompt in "abc"]
    sync(database, prompts, rows)
    with_store(database, end_jobs)
    more = [*rows, {"prompt": "d", "custom_id": "d"}]
    assert sync(database, prompts, more).batch.name == "b"
    with_store(database, end_jobs)
    for number, changed in ((2, more[::-1]), (3, [{"prompt": "e", "custom_id": "e"}, *rows]), (4, rows[1:])):
        found = sync(database, prompts, changed)
        assert found.batch.name == f"b~{number}"
        assert found.enqueued.reused == len(rows) + (number == 2) - (number == 4)
        with_store(database, end_jobs)
        ids = [custom_id for (custom_id,) in with_rows(
            database, f"SELECT custom_id FROM jobs WHERE batch_id = {found.batch.id} ORDER BY position"
        )]  # fmt: skip
        assert ids == [row["custom_id"] for row in changed]


def test_the_log_of_a_taken_over_answer_is_empty(database, prompts):
    sync(database, prompts, ["a", "b"])
    with_store(database, lambda store: end_jobs(store, fail_odd))
    sync(database, prompts, ["a"])
    assert rows_of(database, "attempts, cost", "id")[-1] == (0, 0)


# With real processes, a provider's ledger as the judge.


def calls(provider):
    return provider.ledger()["calls"]


def test_an_edited_input_pays_only_for_what_is_new_after_a_kill(tmp_path):
    with (
        running_provider(latency=0.15) as provider,
        bench(tmp_path, MODEL="m", BATCHQ_BASE_URL=provider.base_url) as place,
    ):
        path = place.write_prompts(60)
        command = ("run", str(path), "-o", "out.jsonl", "--concurrency", "8")
        process = place.start(*command, "--lease", "2s")
        wait_for(lambda: place.count("done") >= 20, "twenty answers")
        process.send_signal(signal.SIGKILL)
        process.wait()
        held = place.count("inflight")
        lines = path.read_text().splitlines()
        path.write_text("\n".join([json.dumps({"prompt": "a new first row"}), *lines[10:]]) + "\n")
        done = place.run(*command)
        assert done.returncode == 0, done.stderr
        assert "takes its place" in done.stderr
        rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
        assert len(rows) == 51
        assert all(row["state"] == "done" for row in rows)
        # Each prompt was paid for once, but for those that were in flight when the process was killed.
        assert calls(provider) <= 61 + held
        before = calls(provider)
        assert place.run(*command).returncode == 0
        assert calls(provider) == before


def test_several_models_have_a_batch_and_a_file_each(tmp_path):
    with running_provider() as provider, bench(tmp_path, BATCHQ_BASE_URL=provider.base_url) as place:
        path = place.write_prompts(5)
        done = place.run("run", str(path), "-o", "out-{model}.jsonl", "--model", "x/one", "--model", "two")
        assert done.returncode == 0, done.stderr
        assert len((tmp_path / "out-x_one.jsonl").read_text().splitlines()) == 5
        assert len((tmp_path / "out-two.jsonl").read_text().splitlines()) == 5
        assert calls(provider) == 10
        refused = place.run("run", str(path), "-o", "out.jsonl", "--model", "one", "--model", "two")
        assert refused.returncode == 2
        assert "put {model} into the name" in refused.stderr
        place.run("enqueue", str(path), "--batch", "both", "--model", "one", "--model", "two")
        assert [name for (name,) in place.query("SELECT name FROM batches WHERE name LIKE 'both%' ORDER BY id")] == [
            "both@one", "both@two",
        ]  # fmt: skip


def test_dedupe_samples_and_reuse_by_the_ledger(tmp_path):
    with running_provider() as provider, bench(tmp_path, MODEL="m", BATCHQ_BASE_URL=provider.base_url) as place:
        write_lines(tmp_path / "in.jsonl", ["a", "b", "a", "a"])
        worker = ("worker", "--until-empty")
        assert place.run("enqueue", "in.jsonl", "--dedupe", "--batch", "deduped").returncode == 0
        place.run(*worker)
        assert calls(provider) == 2
        assert len(place.results("deduped")) == 4
        said = place.run("enqueue", "in.jsonl", "--reuse", "--batch", "reused").stderr
        assert "4 answers taken over from before" in said
        place.run(*worker)
        assert calls(provider) == 2
        assert {row["usage"]["cost"] for row in place.results("reused")} == {0.0}
        place.run("enqueue", "in.jsonl", "--samples", "3", "--dedupe", "--batch", "sampled")
        place.run(*worker)
        assert calls(provider) == 2 + 6
        assert len(place.results("sampled")) == 12
