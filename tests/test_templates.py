"""Prompts made by a template from the fields of each row."""

import json
import sqlite3

import pytest
from completing import rows_of, write_lines
from hypothesis import given, settings
from hypothesis import strategies as st

from batchq.cli.commands import batchq
from batchq.cli.exits import run_command
from batchq.errors import UsageError
from batchq.formats import BadRow, PromptTemplate, ReadOptions, Row, read_rows
from batchq.formats.rows import RowError

MESSAGES = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
    """Run a command in an empty directory; return its exit code and what it says."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BATCHQ_DB", raising=False)

    def call(*arguments):
        capfd.readouterr()
        code = run_command(batchq, [str(argument) for argument in arguments])
        return code, capfd.readouterr().err

    return call


def read(path, template, **options):
    return list(read_rows(path, ReadOptions(template=PromptTemplate(template), **options)))


def written(path, data):
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def payloads(rows):
    assert [row for row in rows if isinstance(row, BadRow)] == []
    return [row.payload for row in rows]


def reason(template, row):
    with pytest.raises(RowError) as caught:
        PromptTemplate(template).render(row)
    return str(caught.value)


# What it makes of a row


def test_a_template_over_each_format(tmp_path):
    lines = [{"text": 'a "b"\nc', "n": 1}, {"text": "\u2028", "n": 2.5}]
    assert payloads(read(write_lines(tmp_path / "in.jsonl", lines), "{{ n }}: {{ text }}")) == [
        '1: a "b"\nc',
        "2.5: \u2028",
    ]
    table = written(tmp_path / "in.csv", 'text,n\r\n"a ""b""\nc",1\r\n,2\r\n')
    assert payloads(read(table, "{{ n }}: {{ text }}")) == ['1: a "b"\nc', "2: "]
    assert payloads(read(written(tmp_path / "in.tsv", "text\tn\na\t1\n"), "{{ n }}: {{ text }}")) == ["1: a"]
    assert payloads(read(written(tmp_path / "in.txt", "a\nb\n"), "Say {{ prompt }}!")) == ["Say a!", "Say b!"]
    strings = write_lines(tmp_path / "strings.jsonl", ["a", "b"])
    assert payloads(read(strings, "Say {{ prompt }}!")) == ["Say a!", "Say b!"]


def test_ids_and_lines_are_kept(tmp_path):
    path = written(tmp_path / "in.csv", "key,text\n7,a\n8,b\n")
    assert read(path, "-{{ text }}-", id_field="key") == [Row(2, "7", "-a-"), Row(3, "8", "-b-")]
    lines = write_lines(tmp_path / "in.jsonl", [{"custom_id": "x", "text": "a"}, {"text": "b"}])
    first, second = read(lines, "{{ text }}")
    assert first == Row(1, "x", "a")
    assert "no `custom_id`" in second.reason


def test_rows_of_messages_and_batch_lines_are_objects_like_others(tmp_path):
    line = {"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": {"model": "m", "input": "x"}}
    path = write_lines(tmp_path / "in.jsonl", [line, {"custom_id": "b", "messages": MESSAGES, "body": {"input": "y"}}])
    assert read(path, "Judge: {{ body.input }}") == [Row(1, "a", "Judge: x"), Row(2, "b", "Judge: y")]


def test_a_row_alone_is_no_object(tmp_path):
    (row,) = read(write_lines(tmp_path / "in.jsonl", [3]), "{{ prompt }}")
    assert row.reason == "the line is a number, not an object"


def test_blank_lines_of_text_stay_bad(tmp_path):
    rows = read(written(tmp_path / "in.txt", "a\n\n"), "Say {{ prompt }}!")
    assert rows[1] == BadRow(2, "empty prompt", b"")
    (row,) = read(write_lines(tmp_path / "in.jsonl", [{"a": " "}]), "{{ a }}")
    assert row.reason == "empty prompt"


def test_one_line_end_at_the_end_of_a_file_is_dropped(tmp_path):
    for data, prompt in ((b"{{ a }}\n", "x"), (b"\xef\xbb\xbfq\r\n{{ a }}\r\n", "q\nx"), (b"{{ a }}\n\n", "x\n")):
        assert PromptTemplate.of_file(written(tmp_path / "t.j2", data)).render({"a": "x"}) == prompt


def test_nothing_is_escaped_and_values_are_not_templates():
    row = {"a": "<&'\"> {{ b }} é\u2028\0\ud800", "o": {"k": ["<é'", None, 1]}}
    assert PromptTemplate("{{ a }}").render(row) == row["a"]
    assert PromptTemplate("{{ o | tojson }}").render(row) == '{"k": ["<é\'", null, 1]}'


def test_all_of_jinja_that_people_use():
    row = {"text": "long story", "labels": ["a", "b"], "Review Text": "fine", "row_count": 2}
    template = "{{ text | upper | truncate(4, true, '') }}{% for l in labels %} {{ loop.index }}.{{ l }}{% endfor %}"
    assert PromptTemplate(template).render(row) == "LONG 1.a 2.b"
    assert PromptTemplate("{% if hint is defined %}{{ hint }}{% else %}none{% endif %}").render(row) == "none"
    assert PromptTemplate("{{ hint | default('none') }}").render(row) == "none"
    assert PromptTemplate('{{ row["Review Text"] }}').render(row) == "fine"
    assert PromptTemplate("{{ row }}").render({"row": "my own"}) == "my own"


@settings(max_examples=60, deadline=None)
@given(st.text(), st.text())
def test_any_text_stands_in_the_prompt_as_it_is(before, value):
    prompt = f"{before}|{value}|"
    assert PromptTemplate("{{ before }}|{{ value }}|").render({"before": before, "value": value}) == prompt


# What it refuses


def test_a_missing_field_is_an_error_with_its_line(tmp_path):
    lines = write_lines(tmp_path / "in.jsonl", [{"text": "a"}, {"txt": "b", "id": 2}, {"text": "c"}])
    first, second, third = read(lines, "Classify: {{ text }}")
    assert (first.payload, third.payload) == ("Classify: a", "Classify: c")
    assert second == BadRow(2, "no field `text`; the line has `txt`, `id`", b'{"txt": "b", "id": 2}')
    (row,) = read(written(tmp_path / "in.csv", 'txt\n"a\nb"\n'), "{{ text }}")
    assert (row.line, row.reason) == (2, "no field `text`; the line has `txt`")


@pytest.mark.parametrize("template", ["{% if text %}x{% endif %}", "{{ text | upper }}", "{% for c in text %}{% endfor %}",
                                      "{{ text ~ 'x' }}", "{{ text.a }}", "{{ text | tojson }}", "{{ text == 'a' }}"])  # fmt: skip
def test_a_missing_field_is_an_error_wherever_it_stands(template):
    assert "no field `text`; the line has `other`" in reason(template, {"other": 1})


@pytest.mark.parametrize(
    "template",
    [
        "{{ items | map(attribute='typo') | list }}",
        "{{ [items[0].typo, 1] }}",
        "{{ {'a': (items[0].typo,)} }}",
        "{{ items[0].typo | pprint }}",
        "{{ [items[0].typo] | string }}",
    ],
)
def test_a_missing_member_is_an_error_inside_of_what_is_printed(template):
    assert "no `typo` in an object that has `a`" in reason(template, {"items": [{"a": 1}]})


@pytest.mark.parametrize(
    "template",
    [
        "{{ joiner() }}",
        "{{ cycler('a') }}",
        "{{ cycler }}",
        "{{ range }}",
        "{{ text.upper }}",
        "{{ [1, 2] | map('string') }}",
        "{{ [joiner()] }}",
        "{{ {'a': [cycler('b')]} }}",
        "{% macro shout() %}!{% endmacro %}{{ shout }}",
    ],
)
def test_what_has_no_text_of_its_own_is_not_printed(template):
    assert "which has no text" in reason(template, {"text": "x"})


def test_percent_signs_still_fill_in_and_divide():
    template = (
        "{{ '%5.1f|%%|%-4s|%*d' % (2.25, text, 3, 7) }} {{ 7 % 3 }} {{ '%(a)s' | format(a=text) }} {{ [1, 'b'] }}"
    )
    assert PromptTemplate(template).render({"text": "x"}) == "  2.2|%|x   |  7 1 x [1, 'b']"


def test_a_missing_member_and_a_null_are_errors_too():
    assert "no `b` in an object that has `a`" in reason("{{ o.b }}", {"o": {"a": 1}})
    assert reason("{{ o }}", {"o": None}) == "`o` is null; `{{ o or '' }}` in the template would leave it out"
    assert "a value that is null" in reason("{{ o.a }}", {"o": {"a": None}})
    assert PromptTemplate("[{{ o or '' }}]").render({"o": None}) == "[]"


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ text['__class__'] }}",
        "{{ text | attr('__class__') }}",
        "{{ '{0.__class__}'.format(text) }}",
        "{{ text.format.__globals__ }}",
        "{{ items.append(1) }}",
        "{{ row.update(text=1) }}",
    ],
)
def test_the_sandbox_has_no_way_out(template):
    row = {"text": "x", "items": [1]}
    assert "the template does what none may" in reason(template, row)
    assert row == {"text": "x", "items": [1]}


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{{ 'x' * 10**12 }}", "repetition"),
        ("{{ 10**12 * [1] }}", "repetition"),
        ("{{ 9 ** 999999999 }}", "exponent"),
        ("{{ '%500000000d' % 3 }}", "a text of more than 10,000,000 characters"),
        ("{{ '%-0500000000d|%s' % (3, text) }}", "a text of more than"),
        ("{{ '%(a).500000000f' % {'a': 1.5} }}", "a text of more than"),
        ("{{ '%*d' % (500000000, 3) }}", "a text of more than"),
        ("{{ '%500000000d' | format(3) }}", "a text of more than"),
        ("{% for i in range(10**9) %}x{% endfor %}", "Range too big"),
        ("{% for i in range(99999) %}{{ 'x' * 10000 }}{% endfor %}", "more than 50,000,000 characters"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ text + 1 }}", "can only concatenate str"),
        ("{{ 1 / 0 }}", "division by zero"),
    ],
)
def test_what_gets_out_of_hand_is_a_bad_row(template, problem):
    assert problem in reason(template, {"text": "x"})


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a\n{{ text", r"t\.j2:2: the template is not valid Jinja2: unexpected end of template"),
        ("a\n\n{% fo x %}", r"t\.j2:3: .*unknown tag 'fo'"),
        ("{{ a | uper }}", r"t\.j2:1: .*No filter named 'uper'"),
        ("{{ [1, 2] | random }}", "No filter named 'random'"),
        ("{% include 'other.j2' %}", r"t\.j2: a template can't include"),
        ("{% extends a %}", "can't include"),
        ("{{" + "(" * 5000, r"t\.j2: the template can't be used"),
    ],
)
def test_templates_that_are_none(tmp_path, source, message):
    with pytest.raises(UsageError, match=message):
        PromptTemplate.of_file(written(tmp_path / "t.j2", source))


def test_a_template_on_the_command_line_is_called_by_its_option():
    with pytest.raises(UsageError, match=r"^--prompt: the template is not valid"):
        PromptTemplate("{{ text")


def test_files_that_can_not_be_templates(tmp_path):
    with pytest.raises(UsageError, match=r"can't read the template .*no\.j2: No such file"):
        PromptTemplate.of_file(tmp_path / "no.j2")
    with pytest.raises(UsageError, match=r"bad\.j2 is not UTF-8"):
        PromptTemplate.of_file(written(tmp_path / "bad.j2", b"\xff"))


def test_a_template_and_a_prompt_field_contradict_each_other():
    with pytest.raises(UsageError, match="both --prompt-field text and the template --prompt"):
        ReadOptions(template=PromptTemplate("{{ a }}"), prompt_field="text")


# The command line


def test_prompt_and_template_from_the_command_line(run, tmp_path):
    written(tmp_path / "in.csv", "id,text\n1,good\n2,bad\n")
    written(tmp_path / "t.j2", "Judge:\n{{ text }}\n")
    for name, *options in (("a", "--prompt", "Classify: {{ text }}"), ("b", "--template", "t.j2", "--id-field", "id")):
        code, err = run("enqueue", "in.csv", "--worker", "echo", "--batch", name, "--db", f"{name}.db", *options)
        assert code == 0, err
    assert rows_of("a.db") == [(0, None, '"Classify: good"'), (1, None, '"Classify: bad"')]
    assert rows_of("b.db") == [(0, "1", '"Judge:\\ngood"'), (1, "2", '"Judge:\\nbad"')]


def test_a_missing_field_names_file_and_line_and_nothing_is_written(run, tmp_path):
    write_lines(tmp_path / "in.jsonl", [{"text": "a"}, {"texd": "b"}])
    code, err = run("enqueue", "in.jsonl", "--worker", "echo", "--prompt", "Classify: {{ text }}")
    assert code == 2
    assert err.startswith("in.jsonl:2: no field `text`; the line has `texd`\n")
    assert not (tmp_path / "runs.db").exists()
    options = ("--worker", "echo", "--prompt", "Classify: {{ text }}", "--skip-bad", "bad.jsonl")
    assert run("enqueue", "in.jsonl", *options)[0] == 0
    assert (tmp_path / "bad.jsonl").read_text() == json.dumps({"texd": "b"}) + "\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompt", "{{ text }}", "--template", "t.j2"], "leave one out"),
        (["--prompt", "{{ text }}", "--prompt-field", "text"], "leave one out"),
        (["--prompt", "Classify: {text}"], "no field of a row"),
        (["--template", "no.j2"], "can't read the template no.j2"),
        (["--prompt", "{{ text"], "--prompt: the template is not valid"),
    ],
)
def test_usage_errors_of_templates(run, tmp_path, options, message):
    write_lines(tmp_path / "in.jsonl", [{"text": "a"}])
    code, err = run("enqueue", "in.jsonl", "--worker", "echo", *options)
    assert code == 2
    assert message in err
    assert not (tmp_path / "runs.db").exists()


def test_another_template_is_another_request(run, tmp_path):
    write_lines(tmp_path / "in.jsonl", [{"text": "a"}])
    assert run("enqueue", "in.jsonl", "--worker", "echo", "--prompt", "A {{ text }}")[0] == 0
    code, err = run("enqueue", "in.jsonl", "--worker", "echo", "--prompt", "B {{ text }}")
    assert code == 2
    assert "holds another request" in err
    with sqlite3.connect("runs.db") as database:
        assert database.execute("SELECT count(*) FROM jobs").fetchone() == (1,)
    database.close()
