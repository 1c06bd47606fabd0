"""Equal requests run once, answers of before are taken over, and whoever follows is read through its leader."""

import json
from dataclasses import replace

import pytest
from completing import end_jobs, fail_odd, rows_of, succeed, with_store, write_lines

from batchq.formats import ReadOptions
from batchq.jobs import FinishedPlace, NewBatch, Reuse, Succeeded
from batchq.producer import Thrift, complete, enqueue
from batchq.survey import survey_input

BATCH = NewBatch("b", "echo")
DEDUPE = Thrift(dedupe=True)


@pytest.fixture
def database(location):
    return location


@pytest.fixture
def prompts(tmp_path):
    return tmp_path / "prompts.jsonl"


def add(database, path, new=BATCH, thrift=DEDUPE):
    with survey_input(path, ReadOptions()) as survey:
        filled = complete(new, survey, default_model=new.model)
        return with_store(database, lambda store: enqueue(store, survey, filled, thrift=thrift))


def results_of(database, name="b", **options):
    async def read(store):
        return [result async for result in store.results(await store.batch(name), with_prompt=True, **options)]

    return with_store(database, read)


def counts_of(database, name="b"):
    """The tallies, which must agree with a recount of the rows."""

    async def read(store):
        counts = (await store.progress(name)).counts
        recounted = await store.recount(await store.batch(name))
        told = {state: getattr(counts, state) for state in ("pending", "inflight", "done", "failed", "cancelled")}
        assert {state: count for state, count in told.items() if count} == recounted
        return recounted

    return with_store(database, read)


def test_equal_rows_run_once_and_all_have_the_answer(database, prompts):
    done = add(database, write_lines(prompts, ["a", "b", "a", "c", "a", "b"]))
    assert (done.added, done.followers, done.reused, done.total) == (6, 3, 0, 6)
    assert counts_of(database) == {"pending": 6}
    assert with_store(database, end_jobs) == 3
    assert counts_of(database) == {"done": 6}
    results = results_of(database)
    assert [json.loads(result.payload) for result in results] == ["a", "b", "a", "c", "a", "b"]
    assert [json.loads(result.result) for result in results] == [
        "answer 0", "answer 1", "answer 0", "answer 3", "answer 0", "answer 1",
    ]  # fmt: skip
    assert [result.leader for result in results] == [None, None, 0, None, 0, 1]
    # What was spent is counted once.
    assert sum(result.cost for result in results) == 3_000_000
    assert [result.position for result in results_of(database, unique=True)] == [0, 1, 3]


def test_without_dedupe_every_row_runs(database, prompts):
    add(database, write_lines(prompts, ["a", "a"]), thrift=None)
    assert with_store(database, end_jobs) == 2


def test_a_follower_is_never_written_again(database, prompts):
    add(database, write_lines(prompts, ["a", "a"]))
    before = rows_of(database, "*")[1]
    with_store(database, end_jobs)
    assert rows_of(database, "*")[1] == before


def test_who_follows_a_failed_job_fails_with_it_and_is_tried_again_with_it(database, prompts):
    add(database, write_lines(prompts, ["x", "a", "a", "a"]))
    with_store(database, lambda store: end_jobs(store, fail_odd))
    assert counts_of(database) == {"done": 1, "failed": 3}
    assert [result.state for result in results_of(database)] == ["done", "failed", "failed", "failed"]
    assert {result.error_class for result in results_of(database)[1:]} == {"bad_request"}
    (group,) = with_store(database, errors)
    assert group.count == 3
    assert with_store(database, retry) == 1
    assert counts_of(database) == {"done": 1, "pending": 3}
    assert with_store(database, end_jobs) == 1
    assert counts_of(database) == {"done": 4}


async def errors(store):
    return await store.errors(await store.batch("b"))


async def retry(store):
    return await store.retry(await store.batch("b"))


def test_followers_are_cancelled_with_their_leader(database, prompts):
    async def cancel(store):
        await store.cancel(await store.batch("b"))
        return (await store.progress("b")).finished

    add(database, write_lines(prompts, ["a", "a"]))
    assert with_store(database, cancel)
    assert counts_of(database) == {"cancelled": 2}
    assert [result.state for result in results_of(database)] == ["cancelled", "cancelled"]


@pytest.mark.parametrize("with_ids", [False, True])
def test_appended_rows_follow_what_is_done_already(database, prompts, with_ids):
    def rows(prompts_):
        if not with_ids:
            return prompts_
        return [{"prompt": prompt, "custom_id": f"r{index}"} for index, prompt in enumerate(prompts_)]

    add(database, write_lines(prompts, rows(["a", "b"])))
    with_store(database, end_jobs)
    done = add(database, write_lines(prompts, rows(["a", "b", "a", "c", "b", "c"])))
    assert (done.added, done.skipped, done.followers) == (4, 2, 3)
    assert counts_of(database) == {"done": 4, "pending": 2}
    assert with_store(database, end_jobs) == 1
    results = [json.loads(result.result) for result in results_of(database)]
    assert results == ["answer 0", "answer 1", "answer 0", "answer 3", "answer 1", "answer 3"]


def test_rows_in_pieces_follow_rows_that_another_piece_brought(database, prompts):
    add(database, write_lines(prompts, [{"prompt": "a", "custom_id": "one"}]))
    done = add(database, write_lines(prompts, [{"prompt": "a", "custom_id": "two"}]))
    assert (done.added, done.followers) == (1, 1)
    assert with_store(database, end_jobs) == 1
    assert [(result.custom_id, json.loads(result.result)) for result in results_of(database)] == [
        ("one", "answer 0"), ("two", "answer 0"),
    ]  # fmt: skip


def test_rows_that_say_the_same_in_another_way_are_equal(database, prompts):
    lines = [
        {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": [{"role": "user", "content": "a"}], "temperature": 1}},
        {"custom_id": "2", "method": "POST", "url": "/v1/chat/completions", "body": {"temperature": 1, "messages": [{"content": "a", "role": "user"}]}},
    ]  # fmt: skip
    done = add(database, write_lines(prompts, lines))
    assert done.followers == 1
    # Each shows the prompt as its own line had it.
    assert [json.loads(result.payload)["body"] for result in results_of(database)] == [line["body"] for line in lines]


def test_many_duplicates_across_chunks(database, prompts):
    done = add(database, write_lines(prompts, [f"p{i % 1_500}" for i in range(9_000)]))
    assert (done.added, done.followers) == (9_000, 7_500)
    assert with_store(database, end_jobs) == 1_500
    assert counts_of(database) == {"done": 9_000}
    results = results_of(database)
    assert [json.loads(result.result) for result in results] == [f"answer {i % 1_500}" for i in range(9_000)]


def test_samples_of_a_prompt_are_jobs_of_their_own(database, prompts):
    new = NewBatch("b", "echo", settings={"samples": 3})
    done = add(database, write_lines(prompts, ["a", "b", "a"]), new)
    assert (done.added, done.followers, done.total) == (9, 3, 9)
    assert with_store(database, end_jobs) == 6
    keys = [result.key for result in results_of(database)]
    assert len(set(keys)) == 6
    assert keys[:3] == keys[6:]


def test_samples_have_custom_ids_of_their_own(database, prompts):
    new = NewBatch("b", "echo", settings={"samples": 2})
    add(database, write_lines(prompts, [{"prompt": "a", "custom_id": "x"}]), new)
    assert [result.custom_id for result in results_of(database)] == ["x#1", "x#2"]


def test_the_first_sample_is_the_plain_request(database, prompts):
    write_lines(prompts, ["a"])
    add(database, prompts)
    add(database, prompts, NewBatch("several", "echo", settings={"samples": 2}))
    assert results_of(database)[0].key == results_of(database, "several")[0].key


def test_a_request_that_was_answered_is_done_from_the_start_at_no_cost(database, prompts):
    add(database, write_lines(prompts, ["a", "b"]))
    with_store(database, end_jobs)
    again = NewBatch("again", "echo")
    done = add(database, write_lines(prompts, ["b", "c", "a", "b"]), again, Thrift(dedupe=True, reuse=Reuse()))
    assert (done.added, done.reused, done.followers) == (4, 2, 1)
    assert counts_of(database, "again") == {"done": 3, "pending": 1}
    assert with_store(database, end_jobs) == 1
    results = results_of(database, "again")
    assert [json.loads(result.result) for result in results] == ["answer 1", "answer 1", "answer 0", "answer 1"]
    assert [result.cost for result in results] == [0, 1_000_000, 0, 0]
    assert [result.attempts for result in results] == [0, 1, 0, 0]


def test_nothing_is_reused_that_asks_another_worker_or_model(database, prompts):
    add(database, write_lines(prompts, ["a"]), NewBatch("b", "echo", model="one"))
    with_store(database, end_jobs)
    for number, new in enumerate(
        (
            NewBatch("other", "echo", model="two"),
            NewBatch("other", "shout.py:shout", model="one"),
            NewBatch("other", "echo", model="one", settings={"system": "be brief"}),
            NewBatch("other", "echo", model="one", settings={"params": {"temperature": 0}}),
            NewBatch("other", "echo", model="one", endpoint="elsewhere"),
            NewBatch("other", "echo", model="one", settings={"agent": {"instructions": "be brief"}}),
        )
    ):
        named = NewBatch(f"other{number}", new.worker, new.endpoint, new.model, new.settings)
        assert add(database, prompts, named, Thrift(reuse=Reuse())).reused == 0


def cut_off_or_fail(claim):
    outcome = fail_odd(claim)
    return Succeeded(replace(outcome.answer, finish_reason="length")) if isinstance(outcome, Succeeded) else outcome


async def set_policy(store, **changes):
    await store.update_policy(await store.batch("b"), changes)


def test_a_message_and_the_text_in_it_are_two_requests_to_a_function(database, prompts):
    function = NewBatch("b", "script.py:shout")
    add(database, write_lines(prompts, ["a"]), function)
    with_store(database, lambda store: end_jobs(store, worker="script.py:shout"))
    message = [{"messages": [{"role": "user", "content": "a"}]}]
    other = NewBatch("other", "script.py:shout")
    assert add(database, write_lines(prompts, message), other, Thrift(reuse=Reuse())).reused == 0


def test_failed_and_truncated_answers_are_not_reused_unless_wanted(database, prompts):
    write_lines(prompts, ["a", "b"])
    add(database, prompts, NewBatch("b", "echo", allow_truncated=True))
    with_store(database, lambda store: end_jobs(store, cut_off_or_fail))
    # What counts is the answer itself, whatever its batch allows by now.
    with_store(database, lambda store: set_policy(store, allow_truncated=False))
    reuse = Thrift(reuse=Reuse())
    assert add(database, prompts, NewBatch("strict", "echo"), reuse).reused == 0
    assert add(database, prompts, NewBatch("loose", "echo", allow_truncated=True), reuse).reused == 1
    refusals = Thrift(reuse=Reuse(refusals=True))
    assert add(database, prompts, NewBatch("refused", "echo", allow_truncated=True), refusals).reused == 2
    assert counts_of(database, "refused") == {"done": 1, "failed": 1}
    keeping = NewBatch("keeping", "echo", allow_truncated=True, keep_response=True)
    assert add(database, prompts, keeping, reuse).reused == 0


def test_what_has_ended_is_read_in_that_order_with_its_followers(database, prompts):
    add(database, write_lines(prompts, ["a", "b", "a", "c"]))

    async def watch(store):
        batch = await store.batch("b")
        await end_jobs(store, at_most=2)
        first = await store.finished(batch, FinishedPlace())
        nothing = await store.finished(batch, first.place)
        await end_jobs(store)
        rest = await store.finished(batch, first.place)
        return first, nothing, rest

    first, nothing, rest = with_store(database, watch)
    assert sorted(result.position for result in first.results) == [0, 1, 2]
    assert nothing.results == ()
    assert [result.position for result in rest.results] == [3]


def test_a_damaged_answer_of_a_leader_is_its_followers_too(database, prompts):
    add(database, write_lines(prompts, ["a", "a"]))
    with_store(database, lambda store: end_jobs(store, lambda claim: Succeeded(succeed(claim).answer)))
    job, attempts = with_store(database, lambda store: show(store, 1))
    assert job.state == "done"
    assert len(attempts) == 1


async def show(store, position):
    return await store.job(await store.batch("b"), position)
