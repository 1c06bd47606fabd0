"""Two passes over an input: nothing is written until all of it is known to be good."""

import io
import json
import os
import sys
import threading
import tracemalloc

import pytest
from completing import end_jobs, rows_of, with_store, write_lines

from batchq import comparison, rows
from batchq.errors import BadInput, BatchConflict, UsageError
from batchq.formats import ReadOptions
from batchq.jobs import NewBatch, NewJob
from batchq.producer import Policy, complete, enqueue, run_name
from batchq.store import Store
from batchq.survey import survey_input

BATCH = NewBatch("b", "echo")


@pytest.fixture
def database(location):
    return location


@pytest.fixture
def prompts(tmp_path):
    return tmp_path / "prompts.jsonl"


def add(
    database, path, new=BATCH, *, seal=True, model=None, skip_bad=None, default_model=None, policy=None,
    **options,
):  # fmt: skip
    with survey_input(path, ReadOptions(**options), model=model, skip_bad=skip_bad) as survey:
        filled = complete(new, survey, default_model=default_model)
        return with_store(database, lambda store: enqueue(store, survey, filled, seal=seal, policy=policy))


def bad_rows(path, **options):
    with pytest.raises(BadInput) as caught, survey_input(path, ReadOptions(**options)):
        pass
    return caught.value


def request_line(custom_id, content="hi", model="m1", url="/v1/chat/completions"):
    body = {"messages": [{"role": "user", "content": content}]} | ({"model": model} if model else {})
    if url != "/v1/chat/completions":
        body = {"input": content, "model": model}
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def batch_of(database, name="b"):
    return with_store(database, lambda store: store.batch(name))


def test_rows_become_jobs_in_order_and_the_batch_is_sealed(database, prompts):
    done = add(database, write_lines(prompts, ["one", "two"]))
    assert (done.added, done.skipped, done.bad, done.total, done.sealed) == (2, 0, 0, 2, True)
    assert rows_of(database) == [(0, None, '"one"'), (1, None, '"two"')]
    assert batch_of(database).sealed_at is not None


def test_run_again_unchanged_it_adds_nothing(database, prompts):
    write_lines(prompts, [{"custom_id": f"r{i}", "prompt": f"p{i}"} for i in range(4500)])
    assert add(database, prompts).added == 4500
    before = rows_of(database, "id, key, created_at")
    done = add(database, prompts)
    assert (done.added, done.skipped, done.sealed) == (0, 4500, True)
    assert rows_of(database, "id, key, created_at") == before


@pytest.mark.parametrize("with_ids", [False, True])
def test_appended_rows_are_added_behind_the_others(database, prompts, with_ids):
    def row(i):
        return {"prompt": f"p{i}"} | ({"custom_id": f"r{i}"} if with_ids else {})

    add(database, write_lines(prompts, [row(i) for i in range(3)]))
    done = add(database, write_lines(prompts, [row(i) for i in range(2005)]))
    assert (done.added, done.skipped, done.sealed) == (2002, 3, True)
    assert [json.loads(payload) for _, _, payload in rows_of(database)] == [f"p{i}" for i in range(2005)]


def test_rows_with_ids_may_come_in_any_order(database, prompts):
    add(database, write_lines(prompts, [{"custom_id": "a", "prompt": "1"}, {"custom_id": "b", "prompt": "2"}]))
    rows = [{"custom_id": "c", "prompt": "3"}, {"custom_id": "b", "prompt": "2"}]
    done = add(database, write_lines(prompts, rows))
    assert (done.added, done.skipped) == (1, 1)
    assert [custom_id for _, custom_id, _ in rows_of(database)] == ["a", "b", "c"]


def test_every_bad_row_is_counted_and_the_first_twenty_are_told(prompts):
    write_lines(prompts, ["good"] + [{"promt": i} for i in range(30)] + [""])
    error = bad_rows(prompts)
    assert error.count == 31
    assert len(error.examples) == 20
    assert error.examples[0].startswith(f"{prompts}:2: this line") or error.examples[0].startswith(f"{prompts}:2: no ")
    assert "31 bad rows and 1 good" in str(error)


def test_a_duplicate_custom_id_names_both_lines(prompts):
    write_lines(prompts, [{"custom_id": c, "prompt": "x"} for c in ("a", "b", "c", "b", "a", "b")])
    error = bad_rows(prompts)
    assert error.examples == (
        f"{prompts}:4: duplicate custom_id 'b', first on line 2",
        f"{prompts}:5: duplicate custom_id 'a', first on line 1",
        f"{prompts}:6: duplicate custom_id 'b', first on line 2",
    )


def test_bad_rows_of_all_kinds_are_told_in_the_order_of_the_file(prompts):
    lines = [{"custom_id": "a", "prompt": "x"}, {"custom_id": "a", "prompt": "y"}, {"custom_id": "c"}]
    error = bad_rows(write_lines(prompts, lines))
    assert [example.split(":")[1] for example in error.examples] == ["2", "3"]


def test_several_models_are_an_error_with_the_line(prompts):
    lines = [request_line("a"), request_line("b", model=None), request_line("c", model="m2")]
    error = bad_rows(write_lines(prompts, lines))
    assert error.count == 1
    assert error.examples[0].startswith(f"{prompts}:3: model 'm2' where line 1 has 'm1'")


def test_several_urls_are_an_error_with_the_line(prompts):
    error = bad_rows(write_lines(prompts, [request_line("a"), request_line("b", url="/v1/embeddings")]))
    assert error.examples[0].startswith(f"{prompts}:2: url /v1/embeddings where line 1 has /v1/chat/completions")


def test_the_model_comes_from_the_flag_then_the_file_then_the_default(prompts):
    write_lines(prompts, [request_line("a"), request_line("b", model="m2")])
    with survey_input(prompts, ReadOptions(), model="mine") as survey:
        assert complete(BATCH, survey, default_model="env").model == "mine"
        assert survey.file_model == "m1"
    write_lines(prompts, [request_line("a")])
    with survey_input(prompts, ReadOptions()) as survey:
        assert complete(BATCH, survey, default_model="env").model == "m1"
    write_lines(prompts, ["x"])
    with survey_input(prompts, ReadOptions()) as survey:
        assert complete(BATCH, survey, default_model="env").model == "env"
        with pytest.raises(UsageError, match="needs a model"):
            complete(BATCH, survey, needs_model=True)


def test_the_url_goes_into_the_settings_unless_it_is_the_default(database, prompts):
    add(database, write_lines(prompts, [request_line("a")]))
    assert batch_of(database).settings == {}
    add(database, write_lines(prompts, [request_line("a", url="/v1/embeddings")]), NewBatch("c", "echo"))
    assert batch_of(database, "c").settings == {"url": "/v1/embeddings"}


def test_a_changed_row_is_an_error_that_names_it_and_nothing_is_written(database, prompts):
    add(database, write_lines(prompts, ["a", "b", "c"]))
    with pytest.raises(BatchConflict, match=r"prompts\.jsonl:2: position 1 .* holds another request.*--batch"):
        add(database, write_lines(prompts, ["a", "B", "c", "d"]))
    assert len(rows_of(database)) == 3
    assert batch_of(database).sealed_at is not None


def test_a_changed_row_with_an_id_is_named_by_it(database, prompts):
    add(database, write_lines(prompts, [{"custom_id": "x", "prompt": "1"}]))
    rows = [{"custom_id": "new", "prompt": "2"}, {"custom_id": "x", "prompt": "changed"}]
    with pytest.raises(BatchConflict, match=r"prompts\.jsonl:2: custom_id 'x' is in the batch 'b' \(position 0\)"):
        add(database, write_lines(prompts, rows))
    assert len(rows_of(database)) == 1


@pytest.mark.parametrize("ids_first", [False, True])
def test_rows_with_and_without_ids_do_not_mix(database, prompts, ids_first):
    plain, named = [{"prompt": "1"}], [{"custom_id": "x", "prompt": "2"}]
    add(database, write_lines(prompts, named if ids_first else plain))
    with pytest.raises(BatchConflict, match="custom_ids"):
        add(database, write_lines(prompts, plain if ids_first else named))
    assert len(rows_of(database)) == 1


def test_other_settings_are_an_error(database, prompts):
    add(database, write_lines(prompts, ["a"]))
    with pytest.raises(BatchConflict, match='system is null, not "be brief"'):
        add(database, prompts, NewBatch("b", "echo", settings={"system": "be brief"}))


def test_bad_rows_are_set_aside_as_they_stand(database, prompts, tmp_path):
    raw = [b'{"custom_id": "a", "prompt": "1"}\r\n', b"\n", b'{"custom_id": "b"}\r\n', b"\xff\xfe\n",
           b'{"custom_id": "a",  "prompt": "again"}\n', b'{"custom_id": "c", "prompt": "2"}\n', b"not json"]  # fmt: skip
    prompts.write_bytes(b"".join(raw))
    aside = tmp_path / "bad.jsonl"
    done = add(database, prompts, skip_bad=aside)
    assert (done.added, done.bad, done.total) == (2, 4, 2)
    assert aside.read_bytes() == raw[2] + raw[3] + raw[4] + raw[6] + b"\n"
    assert [custom_id for _, custom_id, _ in rows_of(database)] == ["a", "c"]
    again = add(database, prompts, skip_bad=aside)
    assert (again.added, again.bad) == (0, 4)


def test_bad_records_of_a_csv_keep_their_header_and_all_their_lines(database, tmp_path):
    path, aside = tmp_path / "in.csv", tmp_path / "bad.csv"
    path.write_bytes(b'\xef\xbb\xbfcustom_id,prompt\na,"one\ntwo"\nb,"\n\n "\nc,three\na,"dup\nlicate"\nd,\n')
    assert add(database, path, skip_bad=aside).added == 2
    assert aside.read_bytes() == b'custom_id,prompt\nb,"\n\n "\na,"dup\nlicate"\nd,\n'


def test_nothing_bad_leaves_an_empty_file(database, prompts, tmp_path):
    aside = tmp_path / "bad.jsonl"
    for _ in range(2):
        add(database, write_lines(prompts, ["a"]), skip_bad=aside)
        assert aside.read_bytes() == b""


@pytest.mark.parametrize("held", ["of somebody else\n", '""\n""\n', '""', "x"])
def test_bad_rows_replace_no_other_file(path, prompts, tmp_path, held):
    aside = tmp_path / "bad.jsonl"
    aside.write_text(held)
    with pytest.raises(UsageError, match="exists, and holds something else"):
        add(path, write_lines(prompts, ["a", ""]), skip_bad=aside)
    assert aside.read_text() == held
    assert not path.exists()


def test_a_policy_changes_what_is_there_and_its_source_is_remembered(database, prompts, tmp_path):
    add(database, write_lines(prompts, ["a"]), policy=Policy(priority=3))
    assert (batch_of(database).priority, batch_of(database).source) == (3, str(prompts))
    other = write_lines(tmp_path / "other.jsonl", ["a", "b"])
    done = add(database, other, policy=Policy(max_attempts=2))
    assert done.changed == {"max_attempts": 2}
    found = batch_of(database)
    assert (found.priority, found.max_attempts, found.source) == (3, 2, str(other))
    with pytest.raises(BatchConflict):
        add(database, write_lines(prompts, ["X"]), policy=Policy(priority=9))
    assert (batch_of(database).priority, batch_of(database).source) == (3, str(other))


def test_only_bad_rows_are_an_error_even_if_they_may_be_skipped(prompts, tmp_path):
    with pytest.raises(BadInput, match="no good one"):
        add(None, write_lines(prompts, [""]), skip_bad=tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


def test_the_input_is_not_overwritten_by_its_bad_rows(prompts):
    write_lines(prompts, ["a", ""])
    with pytest.raises(UsageError, match="the input itself"):
        add(None, prompts, skip_bad=prompts.parent / "." / prompts.name)
    assert prompts.read_text() == '"a"\n""\n'


def test_standard_input_is_read_twice_through_a_copy(database, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'"a"\n"b"\n')))
    done = add(database, None, seal=False)
    assert (done.added, done.sealed) == (2, False)
    assert batch_of(database).sealed_at is None


def test_messages_about_standard_input_name_it(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'"a"\n""\n')))
    assert bad_rows(None).examples == ("standard input:2: empty prompt",)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    with pytest.raises(UsageError, match="standard input is empty"), survey_input(None, ReadOptions()):
        pass


def test_a_pipe_with_a_name_is_read_twice_through_a_copy(database, tmp_path):
    pipe = tmp_path / "pipe.txt"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=("one\ntwo\n",))
    writer.start()
    assert add(database, pipe).added == 2
    writer.join()


def test_a_file_that_changes_between_the_passes_is_noticed(database, prompts):
    with survey_input(write_lines(prompts, ["a"]), ReadOptions()) as survey:
        write_lines(prompts, ["a", "b"])
        with pytest.raises(BadInput, match="changed while"):
            with_store(database, lambda store: enqueue(store, survey, BATCH))
    assert batch_of(database).sealed_at is None


def test_chunks_are_bounded_by_rows_and_by_bytes(database, prompts):
    class Recording:
        def __init__(self, store):
            self.store, self.chunks = store, []

        def __getattr__(self, name):
            return getattr(self.store, name)

        async def add_jobs(self, batch, chunk, reuse):
            self.chunks.append((len(chunk), sum(len(job.payload) for job in chunk)))
            return await self.store.add_jobs(batch, chunk, reuse)

    write_lines(prompts, ["x" * 1_000_000] * 9 + ["y"] * 9_000)
    recorded = []

    async def record(store):
        recording = Recording(store)
        await enqueue(recording, survey, BATCH)
        recorded.extend(recording.chunks)
        return store.rows_per_write

    with survey_input(prompts, ReadOptions()) as survey:
        allowed = with_store(database, record)
    assert max(count for count, _ in recorded) == allowed
    assert max(size for _, size in recorded) < rows.CHUNK_BYTES + 1_000_003
    assert sum(count for count, _ in recorded) == 9_009


def test_memory_does_not_grow_with_the_input(prompts):
    def peak(rows):
        with prompts.open("w") as file:
            file.writelines(f'{{"custom_id": "row-{i}", "prompt": "{i}"}}\n' for i in range(rows))
        tracemalloc.start()
        with survey_input(prompts, ReadOptions()):
            found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(40_000) < peak(10_000) + 500_000


def test_a_batch_cancelled_meanwhile_takes_no_more_rows(database, prompts):
    async def cancel_and_add(store):
        batch = await store.open_batch(BATCH)
        await store.cancel(batch)
        with pytest.raises(BatchConflict, match="cancelled"):
            await store.add_jobs(batch, [NewJob(0, None, "k", '"x"')])

    with_store(database, cancel_and_add)


def test_a_finished_batch_takes_appended_rows_and_keeps_its_answers(database, prompts):
    add(database, write_lines(prompts, ["a", "b"]))
    assert with_store(database, end_jobs) == 2
    done = add(database, write_lines(prompts, ["a", "b", "c"]))
    assert (done.added, done.skipped) == (1, 2)
    assert [state for (state,) in rows_of(database, "state")] == ["done", "done", "pending"]


def test_a_run_is_named_after_all_that_makes_its_requests():
    name = run_name("prompts", BATCH)
    assert name == run_name("prompts", NewBatch("other", "echo", priority=7))
    others = {
        run_name("prompts", new)
        for new in (
            NewBatch("b", "other"),
            NewBatch("b", "echo", endpoint="e"),
            NewBatch("b", "echo", model="m"),
            NewBatch("b", "echo", settings={"system": "s"}),
        )
    }
    assert len({name, *others}) == 5
    assert name.startswith("prompts-")
    assert len(name) == len("prompts-") + 8


def test_a_producer_that_compares_for_long_stays_alive(database, prompts, monkeypatch):
    said = []

    async def keep_alive(_store, batch):
        said.append(batch.name)

    add(database, write_lines(prompts, [f"p{i}" for i in range(30)]), seal=False)
    monkeypatch.setattr(rows.Rows.chunks, "__kwdefaults__", {"size": 10})
    monkeypatch.setattr(Store, "keep_alive", keep_alive)
    add(database, prompts)
    assert said == []
    monkeypatch.setattr(comparison, "_SAY_ALIVE_SECONDS", -1.0)
    add(database, prompts)
    assert said == ["b"] * 3
