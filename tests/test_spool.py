"""What a caller hands over, read twice."""

import asyncio
import subprocess
import sys
import textwrap
import time
from datetime import UTC, datetime
from pathlib import Path

import anyio
import pytest

from batchq.api.spool import is_empty, spooled, surveyed
from batchq.errors import BadInput, UsageError
from batchq.formats import PromptTemplate, ReadOptions


def payloads(prompts, options=None, **keywords):
    """The payloads that a survey reads of prompts, twice."""

    async def main():
        async with spooled(prompts, options, **keywords) as source, surveyed(source) as survey:
            first = [row.payload for row in survey.good_rows()]
            assert first == [row.payload for row in survey.good_rows()]
            assert survey.rows == len(first)
            return first

    return anyio.run(main)


async def slowly(items):
    for item in items:
        await asyncio.sleep(0)
        yield item


USER = {"role": "user", "content": "hi"}


@pytest.mark.parametrize("make", [list, tuple, iter, lambda items: (item for item in items), slowly])
def test_strings_come_from_any_iterable(make):
    assert payloads(make(["a", "b", "a"])) == ["a", "b", "a"]


def test_what_text_may_hold_survives():
    nasty = ["\0", "\ud800", "line\nbreak\r\u2028", "ü€😀", " padded "]
    assert payloads(nasty) == nasty


def test_requests_are_taken_as_they_are():
    assert payloads([{"prompt": "a", "mine": 1}]) == ["a"]
    assert payloads([{"messages": [USER]}]) == [{"messages": [USER]}]
    line = {"custom_id": "x", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": [USER]}}
    assert payloads([line]) == [{"body": {"messages": [USER]}}]
    assert line["body"] == {"messages": [USER]}


def test_a_list_of_messages_is_one_prompt():
    assert payloads([[USER], (USER, USER)]) == [{"messages": [USER]}, {"messages": [USER, USER]}]


def test_fields_and_templates():
    rows = [{"text": "x", "n": 1}, {"text": "y", "n": 2}]
    assert payloads(rows, ReadOptions(prompt_field="text")) == ["x", "y"]
    template = PromptTemplate("{{ n }}: {{ text }}", "template")
    assert payloads(rows, ReadOptions(template=template)) == ["1: x", "2: y"]
    assert payloads(["x"], ReadOptions(template=PromptTemplate("Say {{ prompt }}", "template"))) == ["Say x"]


def test_images_lie_where_the_caller_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("dot.png").write_bytes(b"\x89PNG\r\n\x1a\n0")
    (payload,) = payloads([{"prompt": "what?", "image": "dot.png"}], ReadOptions(image_field="image"))
    assert payload["messages"][0]["content"][1]["image_url"]["url"].startswith("data:image/png;base64,")


def test_tables_of_pandas_polars_and_arrow():
    import pandas as pd
    import polars as pl
    import pyarrow as pa

    columns = {"prompt": ["a", "b"], "custom_id": ["1", "2"]}
    for table in (pd.DataFrame(columns), pl.DataFrame(columns), pa.table(columns)):
        assert payloads(table) == ["a", "b"]
    for series in (pd.Series(["a", "b"]), pl.Series(["a", "b"]), pd.Series(["a", "b"]).to_numpy()):
        assert payloads(series) == ["a", "b"]
    assert payloads(pd.Series(["a"]).to_numpy(dtype="U1")) == ["a"]


def test_a_missing_value_of_a_series_is_named():
    import pandas as pd

    with pytest.raises(BadInput, match=r"prompts\[1\] can't be asked: it is"):
        payloads(pd.Series(["a", None, "c"], dtype="string"))


def test_a_file_is_read_as_enqueue_would(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("a\nb\n")
    assert payloads(path) == ["a", "b"]
    path.write_text("")
    with pytest.raises(UsageError, match="is empty"):
        payloads(path)


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (None, "it is None; a prompt is"),
        (17, "it is a value of type int; a prompt is"),
        (1.5, "it is a value of type float"),
        (True, "it is a value of type bool"),
        (b"x", "it is a value of type bytes"),
        (object(), "it is a value of type object"),
        ([], "it is a list, and not of messages"),
        (["a"], "it is a list, and not of messages"),
        ({"prompt": "x", "score": float("nan")}, "`score` is nan, which JSON does not know"),
        (
            {"prompt": "x", "meta": {"at": [datetime(2026, 1, 1, tzinfo=UTC)]}},
            "`meta.at[0]` is a value of type datetime",
        ),
        ({"prompt": "x", "raw": b"x"}, "`raw` is a value of type bytes"),
        ({("a", "b"): "x"}, "it is a dict with a key that is a value of type tuple"),
    ],
)
def test_what_json_cannot_hold_is_named(item, reason):
    with pytest.raises(BadInput) as caught:
        payloads(["a"] * 17 + [item], name="questions")
    assert str(caught.value).startswith(f"questions[17] can't be asked: {reason}"), caught.value
    assert caught.value.count == 1
    assert caught.value.examples[0].startswith("questions[17]: ")


def test_what_holds_itself_is_refused():
    circle = {"prompt": "x"}
    circle["self"] = circle
    with pytest.raises(BadInput, match=r"prompts\[0\] can't be asked: it is nested too deep, or holds itself"):
        payloads([circle])


def test_what_the_reader_refuses_stands_in_the_message():
    with pytest.raises(BadInput) as caught:
        payloads(["a", " ", "b", "", {"prompt": "c"}, ""])
    assert str(caught.value) == (
        "4 prompts can't be asked, and nothing was enqueued: prompts[1]: empty prompt;"
        " prompts[3]: empty prompt; prompts[4]: this line has `prompt`, the lines before it are bare strings; 1 more"
    )


@pytest.mark.parametrize(
    ("prompts", "reason"),
    [
        ("a single prompt", "put it in a list"),
        (b"bytes", "put it in a list"),
        ({"prompt": "a"}, "a single request: put it in a list"),
        (None, "prompts is None: give a list"),
        (17, "prompts is a value of type int: give a list"),
    ],
)
def test_what_holds_no_prompts_is_refused(prompts, reason):
    with pytest.raises(UsageError, match=reason):
        payloads(prompts)


def test_nothing_is_a_legal_input():
    async def main():
        async with spooled([]) as source:
            assert is_empty(source)
        async with spooled(["a"]) as source:
            assert not is_empty(source)
        async with spooled(Path(__file__)) as source:
            assert not is_empty(source)

    anyio.run(main)


def test_the_copy_goes_whatever_happens():
    async def main():
        with pytest.raises(ZeroDivisionError):
            async with spooled(["a"]) as source:
                raise ZeroDivisionError
        assert not source.path.exists()

    anyio.run(main)


def test_errors_of_the_callers_own_iterable_come_through():
    def broken():
        yield "a"
        raise FileNotFoundError("mine")

    with pytest.raises(FileNotFoundError, match="mine"):
        payloads(broken())


def test_others_have_the_event_loop_meanwhile():
    async def main():
        gaps = []

        async def tick():
            last = time.monotonic()
            while True:
                await anyio.sleep(0.001)
                gaps.append(time.monotonic() - last)
                last = time.monotonic()

        def slow():
            for _ in range(60):
                time.sleep(0.01)
                yield "a"

        async with anyio.create_task_group() as group:
            group.start_soon(tick)
            async with spooled(slow()):
                pass
            group.cancel_scope.cancel()
        assert len(gaps) >= 5
        assert max(gaps) < 0.3

    anyio.run(main)


MEMORY = """
import anyio, resource, sys
from batchq.api.opening import open_queue

async def main(count):
    async with open_queue(sys.argv[1]) as queue:
        done = await queue.enqueue((f"{n} " + "x" * 800 for n in range(count)), batch=f"b{count}", worker="echo")
        assert done.added == count
        seen = 0
        async for result in queue.results(done.batch):
            seen += 1
        assert seen == count

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

anyio.run(main, 8_000)
before = peak()
anyio.run(main, 40_000)
print(before, peak())
"""


def test_memory_does_not_grow_with_the_number_of_prompts(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEMORY), str(tmp_path / "q.db")],
        check=False, text=True, capture_output=True, timeout=120, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    before, after = map(int, done.stdout.split())
    assert after - before < 20, (before, after)  # MB, of 32 MB of prompts, and as many results
