"""Files as all sorts of programs make them, and options that make no sense: taken unchanged, or refused with the reason.

What is refused ends with exit code 2, or 78 where it is configuration, a sentence on stderr that says where, and no
database.
"""

import gzip
import json
import os
import sys
import threading
from collections import Counter

import forked
import pytest
from completing import rows_of, write_lines
from fake_provider import running_provider
from processes import bench

from batchq.cli.commands import batchq
from batchq.cli.exits import run_command
from batchq.formats import BadRow, ReadOptions, Row, lines, read_rows
from batchq.formats.bounds import MAX_PASSES

PROMPT = {"prompt": "Hi"}
DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith(("BATCHQ_", "OPEN", "MODEL")):
            monkeypatch.delenv(name)
    return tmp_path


@pytest.fixture
def run(capfd):
    """Run a command in this process; return its exit code and stderr. Whatever happens, it is no traceback."""

    def call(*arguments):
        capfd.readouterr()
        code = run_command(batchq, [str(argument) for argument in arguments])
        err = capfd.readouterr().err
        assert "Traceback" not in err
        assert "unexpected" not in err.replace("unexpected end", "")
        return code, err

    return call


@pytest.fixture
def refused(run, here):
    """Enqueue a file with these bytes; it must be refused, and no database be there."""

    def call(name, data, *options, code=2):
        (here / name).write_bytes(data)
        found, err = run("enqueue", name, "--worker", "echo", "--batch", "b", *options)
        assert found == code, err
        assert not (here / "runs.db").exists()
        return err

    return call


# Files


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.jsonl", '{"prompt": "é"}\n'.encode("utf-16"), "a.jsonl is not UTF-8 text: it looks like UTF-16"),
        ("a.csv", "prompt\nHi\n".encode("utf-16-le"), "a.csv is not UTF-8 text: it looks like UTF-16"),
        ("a.csv", "prompt\nHi\n".encode("utf-16-be"), "a.csv is not UTF-8 text: it looks like UTF-16"),
        ("a.txt", "Hello\n".encode("utf-32"), "a.txt is not UTF-8 text: it looks like UTF-16 or UTF-32"),
        ("a.csv", "prompt\ncafé\n".encode("latin-1"), "a.csv:2: invalid UTF-8 at byte 4 of the line"),
        ("a.jsonl", gzip.compress(b'{"prompt": "Hi"}\n', mtime=0), "it is compressed: unpack it first"),
        ("a.txt", gzip.compress(b"Hi\n", mtime=0), "it is compressed"),
        ("a.csv", b"PK\x03\x04 and so on", "it is a zip archive, as spreadsheets are"),
        ("a.csv", b"PAR1 and so on", "it is Parquet: pass --input-format parquet"),
        (
            "a.jsonl",
            b'[{"prompt": "a"}, {"prompt": "b"}]\n',
            "a.jsonl:1: the line is a list, not an object or a string;",
        ),
        ("a.jsonl", json.dumps([PROMPT], indent=2).encode(), "`jq -c '.[]'` makes them of an array"),
        ("a.jsonl", b'{"prompt": "a", "prompt": "b"}\n', "a.jsonl:1: `prompt` stands in one object more than once"),
        ("a.jsonl", b'{"messages": [{"role": "user", "role": "x", "content": "a"}]}', "`role` stands in one object"),
        ("a.jsonl", b'{"prompt": "a", "x": ' + DEEP + b"}\n", "a.jsonl:1: JSON nested too deep: more than 200 levels"),
        ("a.jsonl", b'{"prompt": "a", "custom_id": ' + b"7" * 3000 + b"}", "`custom_id` has 3,000 bytes"),
        (
            "a.csv",
            b"prompt;x\na;b\n",
            "a.csv has one column, `prompt;x`: its fields seem to be separated by semicolons",
        ),
        ("a.csv", b"sep=;\nprompt;x\n", "separated by semicolons"),
        ("a.csv", b"prompt\tx\na\tb\n", "separated by tabs"),
        ("a.tsv", b"prompt,x\na,b\n", "separated by commas"),
        ("a.csv", b"prompt,x\ra,b\r", "a carriage return in a field that is not quoted"),
        ("a.csv", b"prompt,x\na\n", "a.csv:2: 1 field, the header has 2"),
        ("a.csv", b"," * 1_000_000 + b"\n", "more than one column ``"),
        ("a.csv", b"x" * 1_000_000 + b",y\na,b\n", "only `" + "x" * 40 + "…`, `y`: name the prompt's"),
        ("a.jsonl", b'{"prompt":"a","custom_id":"1"}\n{"prompt":"b","custom_id":"1"}\n', "first on line 1"),
    ],
)
def test_what_other_programs_write_is_refused_with_its_place_and_what_to_do(refused, name, data, reason):
    assert reason in refused(name, data)


def test_a_model_of_a_line_that_nobody_could_ask_for_is_a_bad_row(refused):
    body = {"model": "a\0b", "messages": [{"role": "user", "content": "Hi"}]}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    assert "a.jsonl:1: `model` in the body is not the name of a model" in refused("a.jsonl", json.dumps(line).encode())


def test_a_million_columns_are_read(run, here):
    (here / "a.csv").write_bytes(
        b"prompt," + b",".join(b"c%d" % i for i in range(1_000_000)) + b"\nHi" + b"," * 1_000_000
    )
    assert run("enqueue", "a.csv", "--worker", "echo")[0] == 0
    assert rows_of("runs.db", "payload") == [('"Hi"',)]


@pytest.mark.parametrize("options", [("--prompt", "{{ x }}"), ("--prompt-field", "x"), ("--id-field", "x")])
def test_other_separators_are_told_also_where_a_column_is_named(run, here, options):
    (here / "a.csv").write_bytes(b"x;y\na;b\n")
    code, err = run("enqueue", "a.csv", "--worker", "echo", *options)
    assert (code, "separated by semicolons" in err) == (2, True), err


def test_one_mistake_in_every_row_is_told_three_times(run, here):
    write_lines(here / "a.jsonl", [*[{"text": "a"}] * 30, {"prompt": 1}])
    code, err = run("enqueue", "a.jsonl", "--worker", "echo")
    assert (code, err.count("name the prompt's field"), "… and 28 more" in err) == (2, 3, True), err


def test_a_column_with_a_semicolon_in_its_name_may_be_meant(run, here):
    (here / "a.csv").write_bytes(b"a;b\nHi\n")
    assert run("enqueue", "a.csv", "--worker", "echo", "--prompt-field", "a;b")[0] == 0


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.csv"])
@pytest.mark.parametrize("is_last", [True, False])
def test_a_line_that_is_no_prompt_any_more_is_refused_and_not_held_in_memory(tmp_path, monkeypatch, name, is_last):
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 1_000)
    monkeypatch.setattr("batchq.formats.delimited.MAX_LINE_BYTES", 1_000)
    long = b'"' + b"x" * 5_000 + b'"'
    path = tmp_path / name
    path.write_bytes((b"prompt\n" if name == "a.csv" else b"") + long + (b"" if is_last else b'\n"Hi"\n'))
    if name == "a.csv":
        with pytest.raises(Exception, match=r"a.csv:2: the line has more than"):
            list(read_rows(path, ReadOptions()))
        return
    bad, *others = read_rows(path, ReadOptions())
    assert isinstance(bad, BadRow)
    assert "the line has more than" in bad.reason
    assert len(bad.raw) <= 1_001
    assert [(row.line, type(row)) for row in others] == ([] if is_last else [(2, Row)])


def test_a_stream_whose_format_nobody_tells_is_refused_by_its_own_name_before_it_is_read(run, here):
    os.mkfifo(here / "pipe")
    code, err = run("enqueue", "pipe", "--worker", "echo")
    assert (code, "the name of pipe does not tell its format" in err) == (2, True)


def test_a_pipe_is_read_once(run, here):
    os.mkfifo(here / "pipe.jsonl")
    writing = threading.Thread(target=(here / "pipe.jsonl").write_text, args=('{"prompt": "Hi"}\n',))
    writing.start()
    assert run("enqueue", "pipe.jsonl", "--worker", "echo")[0] == 0
    writing.join()


def test_a_stream_that_fits_on_no_disk_is_refused(tmp_path):
    limited = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20));"
    command = (
        "from batchq.cli import main; sys.argv = ['batchq', 'enqueue', '-', '--batch', 'b', '--worker', 'echo']; main()"
    )
    with bench(tmp_path) as place:
        done = forked.run(
            [sys.executable, "-c", limited + command], cwd=tmp_path, env=place.environment, text=True, timeout=60,
            input='"Hi"\n' * 400_000,
        )  # fmt: skip
    assert (done.returncode, "standard input can't be copied to " in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "runs.db").exists()


def test_the_name_of_an_input_may_be_any_bytes(run, here):
    name = os.fsdecode(b"caf\xe9.jsonl")
    (here / name).write_text('{"prompt": "Hi"}\n')
    assert run("enqueue", name, "--worker", "echo", "--batch", "b")[0] == 0


# Prompts


EXTREMES = [
    "x",
    "\0",
    "\ud800",
    "a\udfffb",
    "\U0001f600",
    "a\r\nb",
    "  a\t",
    "\ufeffa",
    "a\u2028b",
    "\x1b[31m",
    '"',
    "\\",
]


def test_prompts_reach_the_provider_as_they_are(tmp_path):
    prompts = [*EXTREMES, "long " * 400_000]
    with running_provider() as provider, bench(tmp_path, BATCHQ_BASE_URL=provider.base_url) as place:
        write_lines(tmp_path / "prompts.jsonl", [{"prompt": prompt} for prompt in prompts])
        done = place.run("run", "prompts.jsonl", "-o", "out.jsonl", "--model", "echo")
        assert done.returncode == 0, done.stderr
        asked = provider.ledger(prompts=True)["prompts"]
        results = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert Counter(asked) == Counter(prompts)
    assert [row["state"] for row in results] == ["done"] * len(prompts)


# Templates


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", f"{MAX_PASSES:,} passes"),
        ("{% for i in range(9) recursive %}{{ loop(range(99999)) }}{% endfor %}", "passes"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "maximum recursion depth"),
        ("{{ prompt | slice(10**9) | list }}", "more than 10,000,000"),
        ("{{ prompt | batch(10**9, 'x') | list }}", "more than 10,000,000"),
        ("{{ prompt | center(10**9) }}", "more than 10,000,000"),
        ("{{ prompt.ljust(10**9) }}", "more than 10,000,000"),
        ("{{ prompt | replace('H', 'x' * 10**7) | replace('x', 'y' * 10**7) }}", "more than 10,000,000"),
        ("{{ (prompt * 10**6).replace('i', 'y' * 10**6) }}", "more than 10,000,000"),
        ("{{ (('x' * 10**7,) * 1000) | join }}", "more than 10,000,000"),
        ("{{ ('x' * 10**6).join(['a'] * 1000) }}", "more than 10,000,000"),
        (
            "{% set n = namespace(a=prompt) %}{% for i in range(64) %}{% set n.a = n.a ~ n.a %}{% endfor %}",
            "10,000,000",
        ),
        (
            "{% set n = namespace(a=prompt) %}{% for i in range(64) %}{% set n.a = n.a + n.a %}{% endfor %}",
            "10,000,000",
        ),
    ],
)
def test_a_template_that_gets_out_of_hand_is_a_bad_row(refused, template, problem):
    err = refused("a.jsonl", b'{"prompt": "Hi"}\n', "--prompt", template + "{{ prompt }}")
    assert "a.jsonl:1: " in err
    assert problem in err


def test_loops_and_joined_texts_mean_what_they_did(run, here):
    write_lines(here / "a.jsonl", [{"prompt": "x", "items": ["a", "b"]}])
    template = (
        "{% for i in items %}{{ loop.index }}/{{ loop.length }}{{ i ~ 1 ~ prompt }}{% if loop.last %}.{% endif %}{% endfor %}"
        "{% for i in [] %}{% else %}none{% endfor %}{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}"
        "{{ items | join('+') }}{{ prompt | replace('x', 'y') }}{{ prompt | center(3) }}{{ (1 ~ 2) ~ 3 }}"
    )
    assert run("enqueue", "a.jsonl", "--worker", "echo", "--prompt", template)[0] == 0
    assert json.loads(rows_of("runs.db", "payload")[0][0]) == "1/2a1x2/2b1x.nonea1a+by x 123"


# Options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--set", ".".join("a" * 3000) + "=1"), "the settings of a batch "),
        (("--set", "a=" + "[" * 300 + "]" * 300), "nested too deep"),
        (("--set", "a=\udcff"), "is not UTF-8 text"),
        (("--system", "a\udcff"), "--system: 'a\\udcff' is not UTF-8 text"),
        (("--prompt", "{{ prompt }}\udcff"), "is not UTF-8 text"),
        (("--model", "a\udcff"), "is not UTF-8 text"),
        (("--model", "a\nb"), "is not the name of a model"),
        (("--image-field", "\udcff"), "a.jsonl:1: no field `\\udcff`"),
        (("--prompt", "{{ row['\ud800'] }}"), "a.jsonl:1: "),
        (("--endpoint", "\udcff"), "can't be the name of an endpoint"),
        (("--endpoint", ""), "can't be the name of an endpoint"),
        (("--worker", ":"), "':' names no function: write module:function"),
        (("--worker", "x.py:"), "names no function"),
    ],
)
def test_options_that_mean_nothing_are_refused(refused, options, message):
    assert message in refused("a.jsonl", b'{"prompt": "Hi"}\n', *options)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (b'{"type": "object", "x": NaN}', "the settings of a batch must be JSON"),
        (b'{"type": "object", "$schema": 1}', "its `$schema` is no text"),
        (b'{"type": "object", "not": ' + b'{"not": ' * 250 + b"{}" + b"}" * 251, "nested too deep"),
        (b'{"type": "object", "n": ' + b"1" * 5000 + b"}", "can't be read as a schema"),
        (b"\xff\xfe{}", "not UTF-8 text"),
        (b"", "s.json:1: the schema is not JSON"),
        (b"[]", "it is not a JSON object"),
    ],
)
def test_a_schema_that_is_none_is_refused(refused, here, schema, message):
    (here / "s.json").write_bytes(schema)
    assert message in refused("a.jsonl", b'{"prompt": "Hi"}\n', "--schema", "s.json")


def test_a_schema_may_begin_with_a_byte_order_mark(run, here):
    (here / "s.json").write_bytes(b'\xef\xbb\xbf{"type": "object"}')
    write_lines(here / "a.jsonl", [PROMPT])
    assert run("enqueue", "a.jsonl", "--worker", "echo", "--schema", "s.json")[0] == 0


def test_retry_says_which_errors_there_are(run, here):
    (here / "w.py").write_text("def fail(prompt):\n    raise LookupError('no')\n")
    write_lines(here / "a.jsonl", [PROMPT])
    run("run", "a.jsonl", "--batch", "a", "-o", "out.jsonl", "--worker", "w.py:fail", "--max-attempts", "1")
    code, err = run("retry", "a", "--error", "nonsense")
    assert (code, "no job of a failed with 'nonsense'; there is LookupError" in err) == (2, True)
    assert run("retry", "a", "--error", "LookupError")[0] == 0


# Settings


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("batchq.toml", b"a = " + b"[" * 100_000, "batchq.toml can't be read: "),
        ("batchq.toml", b"n = " + b"1" * 5000, "batchq.toml can't be read: "),
        ("batchq.toml", b"\xef\xbb\xbfdb = 'x.db'\n", "batchq.toml begins with a byte order mark"),
        ("batchq.toml", b"db = 'x'\ndb = 'y'\n", "batchq.toml can't be read: Cannot overwrite a value"),
        ("batchq.toml", b'db = "a\\u0000b"\n', "can't be the name of a database: "),
        ("batchq.toml", b'db = "' + b"x" * 5000 + b'"\n', "can't be the name of a database: File name too long"),
        (".env", b"\xef\xbb\xbfBATCHQ_DB=x.db\n", ".env begins with a byte order mark"),
        (".env", b"BATCHQ_DBB=x.db\n", ".env: there is no setting BATCHQ_DBB; known: "),
        (".env", "BATCHQ_DB=x.db\n".encode("utf-16"), ".env is not UTF-8 text"),
    ],
)
def test_settings_that_can_not_be_read_name_their_file(run, here, name, data, message):
    (here / name).write_bytes(data)
    code, err = run("status")
    assert (code, message in err) == (78, True), err


def test_a_variable_that_is_no_setting_is_told(run, monkeypatch):
    monkeypatch.setenv("BATCHQ_CONCURENCY", "5")
    code, err = run("status")
    assert (code, "the environment: there is no setting BATCHQ_CONCURENCY; known: BATCHQ_ALLOW" in err) == (78, True)


@pytest.mark.parametrize(("name", "reason"), [("x" * 5000, "File name too long"), ("\udcff.db", "it is not UTF-8")])
def test_a_database_that_can_have_no_such_name_is_refused(run, here, name, reason):
    write_lines(here / "a.jsonl", [PROMPT])
    code, err = run("enqueue", "a.jsonl", "--worker", "echo", "--db", name)
    assert (code, reason in err) == (78, True), err
