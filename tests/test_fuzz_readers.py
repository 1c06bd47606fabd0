"""Any bytes, any template, any settings: a value, or the documented error, and never another exception.

BATCHQ_TEST_EXAMPLES asks for so many examples of each, other ones each time:

    BATCHQ_TEST_EXAMPLES=20000 pytest tests/test_fuzz_readers.py tests/test_fuzz_cli.py
"""

import csv
import io
import json
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchq.config import load_settings
from batchq.errors import ConfigurationError, UsageError
from batchq.formats import BadRow, PromptTemplate, ReadOptions, read_rows, row_lines
from batchq.formats.fields import read_fields
from batchq.formats.rows import RowError

EXAMPLES = int(os.environ.get("BATCHQ_TEST_EXAMPLES", "0"))
QUICK = settings(
    max_examples=EXAMPLES or 60,
    deadline=None,
    derandomize=not EXAMPLES,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

PIECES = [
    *(b"\n", b"\r\n", b"\r", b'"', b'""', b",", b";", b"\t", b"\0", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"\x1f\x8b"),
    *(
        b"prompt",
        b"custom_id",
        b"prompt,custom_id\n",
        b"[",
        b"]",
        b"{",
        b"}",
        b":",
        b"NaN",
        b"1e999",
        b"-0",
        b"9" * 5000,
    ),
    *(b'{"prompt": "a"}', b'{"prompt": "a", "prompt": "b"}', b'{"messages": [{"role": "user", "content": "a"}]}'),
    *(
        b'"a"',
        b"\\ud800",
        b"\\u0000",
        b'{"prompt": "b", "custom_id": 1}',
        b" ",
        b"\xe2\x80\xa8",
        b"[" * 300,
        b"]" * 300,
    ),
    b'{"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": {"input": "x", "model": "m"}}',
]
FILES = st.one_of(
    st.binary(max_size=200), st.lists(st.sampled_from(PIECES) | st.binary(max_size=4), max_size=25).map(b"".join)
)
FORMATS = st.sampled_from(["jsonl", "txt", "csv", "tsv"])
NAMES = st.sampled_from([None, None, "prompt", "custom_id", "x", "", "\0"])


@contextmanager
def file_of(data):
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "in")
        path.write_bytes(data)
        yield path


@QUICK
@given(FILES, FORMATS, NAMES, NAMES)
def test_rows_and_their_lines_are_read_or_refused_alike(data, input_format, prompt_field, id_field):
    with file_of(data) as path:
        try:
            options = ReadOptions(input_format, prompt_field, id_field)
            rows = list(read_rows(path, options))
        except UsageError as error:
            assert str(path) in str(error)
            return
        starts = list(row_lines(path, options))
    assert [row.line for row in rows] == starts
    for row in rows:
        if isinstance(row, BadRow):
            assert "\n" not in row.reason
        else:
            json.dumps(row.payload, allow_nan=False)


@QUICK
@given(FILES, FORMATS)
def test_fields_are_read_or_refused(data, input_format):
    with file_of(data) as path:
        try:
            for row in read_fields(path, ReadOptions(input_format), lambda _: None):
                json.dumps(row.fields, allow_nan=False)
        except UsageError as error:
            assert str(path) in str(error)


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda text: not text.isspace())


@QUICK
@given(st.lists(TEXTS, min_size=1, max_size=8), st.sampled_from(["csv", "tsv"]), st.sampled_from(["\n", "\r\n"]))
def test_what_the_standard_library_writes_is_read_back(prompts, input_format, line_end):
    file = io.StringIO(newline="")
    writer = csv.writer(
        file, delimiter="," if input_format == "csv" else "\t", lineterminator=line_end, quoting=csv.QUOTE_ALL
    )
    writer.writerows([["x", "prompt"], *([str(number), prompt] for number, prompt in enumerate(prompts))])
    with file_of(file.getvalue().encode()) as path:
        assert [row.payload for row in read_rows(path, ReadOptions(input_format))] == prompts
        fields = list(read_fields(path, ReadOptions(input_format), lambda _: None))
    assert [row.fields["prompt"] for row in fields] == prompts


@QUICK
@given(st.lists(st.text(min_size=1).filter(lambda text: not text.isspace()), min_size=1, max_size=8), st.booleans())
def test_json_lines_are_read_back(prompts, bare):
    lines = [json.dumps(prompt if bare else {"prompt": prompt, "x": prompt}) + "\n" for prompt in prompts]
    with file_of("".join(lines).encode()) as path:
        assert [row.payload for row in read_rows(path, ReadOptions("jsonl"))] == prompts


# Templates

WORDS = [
    *(
        "{{",
        "}}",
        "{%",
        "%}",
        "{#",
        "#}",
        "{{ a }}",
        "{{ b.c }}",
        "{{ n }}",
        "{{ row }}",
        "{{ zz }}",
        "a",
        "b",
        "n",
        "x",
    ),
    *(" ", "|", "~", "+", "*", "**", "%", "(", ")", "[", "]", "'", "1", "10**9", "999999999", ".", ",", "=", "-"),
    *(
        "for i in b",
        "for i in range(99999)",
        "endfor",
        "if a",
        "else",
        "endif",
        "set a = a ~ a",
        "macro f(x)",
        "endmacro",
    ),
    *("f(1)", "loop.index", "loop(b)", "recursive", "include 'x'", "import 'x' as y", "extends a", "raw", "endraw"),
    *("| center(999999999)", "| replace('x', a)", "| join", "| list", "| tojson", "| format(a)", "| batch(3)", "| sum"),
    *(".__class__", ".format(a)", "| attr('__init__')", "| map('upper')", "| xmlattr", "| urlize", "| groupby('c')"),
]
TEMPLATES = st.lists(st.sampled_from(WORDS) | st.text(max_size=3), max_size=14).map(" ".join)
ROWS = {"a": "text", "b": [{"c": 1}, {"c": None}], "n": None}


@QUICK
@given(TEMPLATES)
def test_a_template_makes_a_prompt_or_says_why_not(source):
    try:
        template = PromptTemplate(source)
    except UsageError as error:
        assert "--prompt" in str(error)
        return
    try:
        rendered = template.render(ROWS)
    except RowError as error:
        assert "\n" not in str(error)
    else:
        assert isinstance(rendered, str)


# Settings

TOML = [
    *("db", "model", "base_url", "api_key_file", "endpoints", "[endpoints.a]", "[endpoints]", "nope", "prices", "="),
    *(
        "'x.db'",
        "'http://h/v1'",
        "1",
        "true",
        "[]",
        "{}",
        "nan",
        "1979-05-27",
        '"\\u0000"',
        "'" + "x" * 300 + "'",
        "\n",
        "\n",
    ),
    *(".", "#", "[", "]", "'", '"', "base_url = 'x'", "api_key = 'k'", "[" * 5000, "\ufeff", "\0"),
]
DOTENV = [
    "BATCHQ_DB",
    "MODEL",
    "BATCHQ_NOPE",
    "BATCHQ_ENDPOINTS",
    "=",
    "x.db",
    "{}",
    "{",
    "'",
    '"',
    "\n",
    " ",
    "export ",
    "#",
]


@QUICK
@given(
    st.lists(st.sampled_from(TOML) | st.text(max_size=2), max_size=10).map(" ".join),
    st.lists(st.sampled_from(DOTENV) | st.text(max_size=2), max_size=8).map("".join),
)
def test_settings_are_read_or_refused(toml, dotenv):
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        Path(directory, "batchq.toml").write_text(toml, encoding="utf-8", errors="replace")
        Path(directory, ".env").write_text(dotenv, encoding="utf-8", errors="replace")
        for name in [name for name in os.environ if name.startswith(("BATCHQ_", "OPEN", "MODEL"))]:
            patch.delenv(name)
        os.chdir(directory)
        try:
            load_settings()
        except ConfigurationError as error:
            assert str(error)
        finally:
            os.chdir(here)
