"""Images beside prompts: URLs as they are, files as their content."""

import base64
import json
from pathlib import Path

import pytest
from completing import rows_of, write_lines

from batchq.cli.commands import batchq
from batchq.cli.exits import run_command
from batchq.errors import UsageError
from batchq.formats import BadRow, PromptTemplate, ReadOptions, images, read_rows

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)
CONTENTS = {
    "png": PNG,
    "jpeg": b"\xff\xd8\xff\xe0rest",
    "webp": b"RIFF\x10\0\0\0WEBPVP8 ",
    "gif": b"GIF89a\1\0\1\0",
}


def about(url, prompt="what is it?"):
    image = {"type": "image_url", "image_url": {"url": url}}
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": prompt}, image]}]}


def data_url(kind):
    return f"data:image/{kind};base64,{base64.b64encode(CONTENTS[kind]).decode()}"


def read_cell(directory, value, **options):
    path = write_lines(directory / "in.jsonl", [{"prompt": "what is it?", "img": value}])
    (row,) = read_rows(path, ReadOptions(image_field="img", **options))
    return row


@pytest.mark.parametrize("kind", CONTENTS)
def test_a_file_is_embedded_with_the_type_that_its_content_tells(tmp_path, kind):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "x.bin").write_bytes(CONTENTS[kind])
    assert read_cell(tmp_path, "pictures/x.bin").payload == about(data_url(kind))
    assert read_cell(tmp_path, str(tmp_path / "pictures" / "x.bin")).payload == about(data_url(kind))


@pytest.mark.parametrize(("name", "kind"), [("x.PNG", "png"), ("x.jpg", "jpeg"), ("x.webp", "webp"), ("x.gif", "gif")])
def test_else_with_the_type_that_its_name_tells(tmp_path, name, kind):
    (tmp_path / name).write_bytes(b"unusual")
    assert read_cell(tmp_path, name).payload == about(f"data:image/{kind};base64,dW51c3VhbA==")


@pytest.mark.parametrize(
    "url", ["https://e.org/a?b=c d", "http://e.org/x", "HTTPS://E.ORG", "data:image/png;base64,AA=="]
)
def test_a_url_goes_as_it_is(tmp_path, url):
    assert read_cell(tmp_path, url).payload == about(url)


@pytest.mark.parametrize("value", ["", "  ", None])
def test_an_empty_cell_means_text_only(tmp_path, value):
    assert read_cell(tmp_path, value).payload == "what is it?"


def test_what_is_no_image_is_a_bad_row_that_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "_MAX_BYTES", 100)
    (tmp_path / "notes.txt").write_text("text")
    (tmp_path / "empty.png").touch()
    (tmp_path / "big.png").write_bytes(PNG + bytes(100))
    (tmp_path / "dir.png").mkdir()
    for value, reason in (
        ("no.png", "'no.png' of `img` does not exist in "),
        ("notes.txt", "none that models take: PNG, JPEG, WebP or GIF"),
        ("empty.png", "is empty"),
        ("big.png", "is larger than 20 MB"),
        ("dir.png", "is not a file"),
        ("x" * 5000, "can't be read: File name too long"),
        ("a\0b", "'a\\x00b' of `img` does not exist"),
        ("s3://bucket/x.png", "a URL of http, https or data"),
        (3, "`img` is a number, not the path or URL of an image"),
    ):
        row = read_cell(tmp_path, value)
        assert isinstance(row, BadRow), value
        assert reason in row.reason
        assert row.line == 1


def test_the_limit_is_of_twenty_megabytes(tmp_path):
    (tmp_path / "just.png").write_bytes(PNG + bytes((20 << 20) - len(PNG)))
    (tmp_path / "more.png").write_bytes(PNG + bytes((20 << 20) - len(PNG) + 1))
    assert not isinstance(read_cell(tmp_path, "just.png"), BadRow)
    assert "larger than 20 MB" in read_cell(tmp_path, "more.png").reason


def test_a_row_without_the_field_is_bad(tmp_path):
    path = write_lines(tmp_path / "in.jsonl", [{"prompt": "a"}, {"messages": []}, "b"])
    rows = list(read_rows(path, ReadOptions(image_field="img")))
    assert [row.reason for row in rows] == [
        "no field `img`; the line has `prompt`",
        "no field `prompt`; the line has `messages`",
        "the line is a string, not an object with the field `prompt`",
    ]


def test_with_a_template_a_prompt_field_and_a_csv(tmp_path):
    path = tmp_path / "in.csv"
    path.write_text("q,img\nwhat is it?,https://e.org/x\nwho?,\n")
    first, second = read_rows(path, ReadOptions(prompt_field="q", image_field="img"))
    assert (first.payload, second.payload) == (about("https://e.org/x"), "who?")
    first, second = read_rows(path, ReadOptions(template=PromptTemplate("Say: {{ q }}"), image_field="img"))
    assert (first.payload, second.payload) == (about("https://e.org/x", "Say: what is it?"), "Say: who?")
    with pytest.raises(UsageError, match="no column `image`, only `q`, `img`: name one of them with --image-field"):
        list(read_rows(path, ReadOptions(prompt_field="q", image_field="image")))


def test_enqueued_from_anywhere_and_from_a_stream(tmp_path, monkeypatch, capfd):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x.png").write_bytes(PNG)
    write_lines(tmp_path / "data" / "in.jsonl", [{"img": "x.png"}])
    monkeypatch.chdir(tmp_path)
    options = ["--worker", "echo", "--batch", "b", "--prompt", "Describe it", "--image-field", "img"]
    assert run_command(batchq, ["enqueue", "data/in.jsonl", "--db", "a.db", *options]) == 0
    monkeypatch.chdir(tmp_path / "data")
    with Path("in.jsonl").open() as stream:
        monkeypatch.setattr("sys.stdin", stream)
        assert run_command(batchq, ["enqueue", "-", "--db", "b.db", *options]) == 0
    monkeypatch.chdir(tmp_path)
    for database in ("a.db", "data/b.db"):
        ((_, _, payload),) = rows_of(database)
        assert json.loads(payload) == about(data_url("png"), "Describe it")
    (tmp_path / "data" / "x.png").unlink()
    assert run_command(batchq, ["enqueue", "data/in.jsonl", "--db", "c.db", *options]) == 2
    assert "data/in.jsonl:1: the image 'x.png' of `img` does not exist" in capfd.readouterr().err
