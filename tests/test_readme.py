"""Every example of README.md, done as it says, against a fake provider.

Each section has a directory of its own, with the files of the table below in it. `<!-- continues: Quick start -->` before
an example means that it goes on where that section has ended, `<!-- not run: why -->` that it can't be run.
"""

import ast
import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import forked
import forked_client
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click import Group
from fake_provider import running_provider
from processes import Bench, bench

from batchq import prompt_map
from batchq.cli.commands import COMMANDS, batchq
from batchq.config import Settings
from batchq.exit_codes import ExitCode
from batchq.supervision.runtime import VARIABLE as RUNTIME_DIR

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
PROMPTS = [f"Name bird {number}." for number in range(6)]
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c489"
    "0000000d49444154789c6360606060000000050001a5f645400000000049454e44ae426082"
)

# What examples name without making it. Whole directories are made for images.
FILES = {
    "prompts.jsonl": "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS),
    "more.jsonl": '{"prompt": "Name a fish."}\n',
    "prompts.txt": "".join(f"{prompt}\n" for prompt in PROMPTS),
    "reviews.csv": "id,text,stars\nr1,I love it,5\nr2,Broke after a day,1\nr3,It is all right,3\n",
    "products.csv": "id,prompt,image\np1,What is it?,images/pixel.png\np2,What is this for?,\n",
    "images/pixel.png": PIXEL,
    "judge.j2": "Is this review positive or negative?\n\n{{ text }}\n",
    "schema.json": json.dumps(
        {
            "type": "object",
            "properties": {"sentiment": {"type": "string", "enum": ["positive", "negative"]}},
            "required": ["sentiment"],
            "additionalProperties": False,
        }
    ),
}
TABLES = {
    "prompts.parquet": {"prompt": PROMPTS},
    "reviews.parquet": {"id": ["r1", "r2"], "text": ["I love it", "Broke after a day"]},
}
# Answers that are asked for with these words, where the provider's echo would not do.
ANSWERS = {"schema.json": '{"sentiment": "positive"}'}

# Nobody stops a worker or a watcher here.
BATCHQ = f"""#!/bin/bash
arguments=()
for argument; do [ "$argument" = --watch ] || arguments+=("$argument"); done
if [ "$1" = worker ] && [[ " $* " != *" --until-empty "* ]]; then arguments+=(--until-empty); fi
exec '{sys.executable}' -I -S '{forked_client.__file__}' "$FORKS" -m batchq "${{arguments[@]}}"
"""
NOTEBOOK = """
import ast, asyncio, sys
from pathlib import Path
cell = compile(Path(sys.argv[1]).read_text(), sys.argv[1], "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
asyncio.run(eval(cell))
"""
SECONDS_PER_EXAMPLE = 30
MOST_NOT_RUN = 5

FENCE = re.compile(r"(?:^<!-- (?P<note>.+?) -->\n+)?^```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#+ (?P<title>.+)$", re.MULTILINE)
NAMED = re.compile(r"# ([\w./-]+\.\w+)\n")
URL = re.compile(r"https?://[\w.:-]+(?:/\w+)*/v1\b")
INPUT = re.compile(r"(?<!-o )(?<!out=\")(?<!> )\b[\w./-]+\.(?:jsonl?|csv|tsv|txt|j2|parquet|py|toml)\b")


@dataclass(frozen=True)
class Example:
    """A fenced block of the README."""

    section: str
    number: int
    kind: str
    text: str
    note: str

    @property
    def continues(self) -> str | None:
        return self.note.removeprefix("continues: ") if self.note.startswith("continues: ") else None

    @property
    def runs(self) -> bool:
        return self.kind in {"python", "sh", "toml", "json"} and not self.note.startswith("not run: ")

    def file(self, otherwise: str) -> str:
        """The name in a comment on the first line."""
        named = NAMED.match(self.text)
        return named[1] if named else otherwise


def examples() -> Iterator[Example]:
    title, end = "", 0
    for number, fence in enumerate(FENCE.finditer(README)):
        for heading in HEADING.finditer(README, end, fence.start()):
            title = heading["title"]
        end = fence.end()
        yield Example(title, number, fence["kind"], fence["text"], fence["note"] or "")


EXAMPLES = list(examples())
SECTIONS = {example.section: [each for each in EXAMPLES if each.section == example.section] for example in EXAMPLES}


@pytest.fixture(scope="module")
def provider():
    with running_provider() as running:
        yield running


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """What stands in a section's directory before its first example."""
    directory = tmp_path_factory.mktemp("template")
    for name, content in FILES.items():
        path = directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    for name, columns in TABLES.items():
        pq.write_table(pa.table(columns), directory / name)
    # Scripts and installers need only be there.
    scripts = [path.name for path in (ROOT / "scripts").iterdir() if os.access(path, os.X_OK) and path.is_file()]
    for name in [*(f"scripts/{script}" for script in scripts), *(f"bin/{name}" for name in ("pip", "pipx", "uv"))]:
        write_program(directory / name, "#!/bin/sh\nexit 0\n")
    write_program(directory / "bin" / "batchq", BATCHQ)
    return directory


def write_program(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


class Reader:
    """Does what sections say, each in its directory."""

    def __init__(self, template, provider, directory):
        self.template = template
        self.provider = provider
        self.directory = directory
        self.places = {}

    def read(self, section: str) -> Path:
        """Run a section's examples, once; return where."""
        assert section in SECTIONS, f"the README has no section {section!r} with examples to continue"
        if section not in self.places:
            self.places[section] = self.directory / str(len(self.places))
            shutil.copytree(self.template, self.places[section])
            for example in SECTIONS[section]:
                if example.runs:
                    self.follow(example, self.read(example.continues or section))
        return self.places[section]

    def follow(self, example: Example, place: Path) -> None:
        answer = [answer for word, answer in ANSWERS.items() if word in example.text]
        self.provider.behave(answer=f"fixed:{answer[0]}" if answer else "echo")
        command = prepared(example, URL.sub(self.provider.base_url, example.text), place)
        if command:
            code, output = self.run(command, place)
            failed = Bench(place, {}).count("failed")
            assert (code, failed) == (0, 0), complaint(example, place, code, failed, output)

    def run(self, command: list[str], place: Path) -> tuple[int, str]:
        path = os.pathsep.join([str(place / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
        settings = {
            "PATH": path,
            "MODEL": "openai/gpt-4o-mini",
            "BATCHQ_BASE_URL": self.provider.base_url,
            "OPENROUTER_API_KEY": "sk-or-planted",
            "PYTHONDONTWRITEBYTECODE": "1",
            "FORKS": forked.forking_process().address,
        }
        start = forked.Popen if command[0] == sys.executable else subprocess.Popen
        with (
            bench(place, **settings) as shell,
            start(
                command,
                cwd=place,
                env=shell.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            ) as process,
        ):
            try:
                output, _ = process.communicate(timeout=SECONDS_PER_EXAMPLE)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # with what it has started
                output = process.communicate()[0] + f"\nstopped after {SECONDS_PER_EXAMPLE} s"
        return process.returncode, output


def prepared(example: Example, text: str, place: Path) -> list[str]:
    """Return the command that tries an example, whose files are written; nothing where reading it is enough."""
    match example.kind:
        case "sh":
            return ["bash", "-eu", "-o", "pipefail", "-c", text + "wait\n"]
        case "python":
            return python_command(write(place, example.file(f"example_{example.number}.py"), text), text)
        case "toml":
            tomllib.loads(text)
            name = write(place, example.file("batchq.toml"), text)
            load = [sys.executable, "-c", "from batchq.config import load_settings; load_settings()"]
            return load if name == "batchq.toml" else []
        case _:
            json.loads(text)
            return []


def write(place: Path, name: str, text: str) -> str:
    (place / name).parent.mkdir(parents=True, exist_ok=True)
    (place / name).write_text(text)
    return name


def python_command(name: str, text: str) -> list[str]:
    if Path(name).name.startswith("test_"):
        return [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", ".", name]
    flags = compile(text, name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT).co_flags
    return [sys.executable, *(["-c", NOTEBOOK] if flags & inspect.CO_COROUTINE else []), name]


def complaint(example: Example, place: Path, code: int, failed: int, output: str) -> str:
    missing = sorted({name for name in INPUT.findall(example.text) if not (place / name).exists()})
    why = (
        f", and names files that neither an example nor the table FILES makes: {', '.join(missing)}" if missing else ""
    )
    ended = f"ends with exit code {code} and {failed} failed jobs"
    return f"an example in {example.section!r} {ended}{why}:\n\n{example.text}\n{output}"


@pytest.mark.parametrize("section", [title for title, found in SECTIONS.items() if any(each.runs for each in found)])
def test_the_examples_run(section, template, provider, tmp_path):
    Reader(template, provider, tmp_path / "sections").read(section)


def test_few_examples_are_not_run():
    left_out = [example for example in EXAMPLES if example.note.startswith("not run: ")]
    for example in left_out:
        print(f"not run, in {example.section!r}: {example.note.removeprefix('not run: ')}")
    assert len(left_out) <= MOST_NOT_RUN


# What the README says in tables and between backticks.

PROSE = FENCE.sub("", README)
SPANS = re.findall(r"`([^`]+)`", PROSE)
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")


def first_column(header: str) -> str:
    """The first cells of the table with this header."""
    table = README.partition(f"\n{header}\n")[2].partition("\n\n")[0]
    assert table, f"the README has no table {header!r}"
    return "\n".join(row.split("|")[1] for row in table.splitlines()[1:])


def options_of(command: str) -> set[str]:
    found = batchq.get_command(None, command)
    group = [found.get_command(None, name) for name in found.list_commands(None)] if isinstance(found, Group) else []
    params = [each for part in (found, *group) for each in part.params]
    return {"--help", *(name for each in params for name in (*each.opts, *each.secondary_opts))}


def options_of_scripts() -> set[str]:
    named = [ROOT / "scripts" / name for name in ("bench", "demo", "test")]
    files = [*named, *(ROOT / "scripts" / "benchmarks").glob("*.py")]
    return {option for path in files for option in OPTION.findall(path.read_text())}


def test_the_table_of_commands_has_them_all():
    assert set(re.findall(r"`batchq ([a-z]+)", first_column("| command | does |"))) == set(COMMANDS)


def test_the_options_exist():
    known = {command: options_of(command) for command in COMMANDS}
    everywhere = {"--version", *options_of_scripts(), *(option for options in known.values() for option in options)}
    for span in SPANS:
        program, _, command = span.partition(" ")
        if program == "batchq":
            allowed = known.get(command.split(" ")[0], everywhere)
        elif span.startswith("--"):
            allowed = everywhere
        else:
            continue
        unknown = set(OPTION.findall(span)) - allowed
        assert not unknown, f"`{span}` names {', '.join(sorted(unknown))}, which does not exist"


def test_the_settings_exist():
    known = {name: variables(name) for name in Settings.model_fields if name != "endpoints"}
    every = {variable for names in known.values() for variable in names}
    told = set(re.findall(r"`(\w+)`", first_column("| setting | meaning |")))
    assert told <= every
    # BATCHQ_TEST_…: what the tests themselves are told. Where `health` looks, it learns from the environment alone.
    assert set(re.findall(r"\bBATCHQ_(?!TEST_)\w+", README)) <= every | {RUNTIME_DIR}
    assert [name for name, names in known.items() if not names & told] == []


def variables(setting: str) -> set[str]:
    alias = Settings.model_fields[setting].validation_alias
    return {name for name in alias.choices if name.isupper()} if alias else {f"BATCHQ_{setting.upper()}"}


def test_the_table_of_exit_codes_has_them_all():
    section = README.partition("\n## Exit codes\n")[2]
    assert dict(re.findall(r"^\| (\d+) \| (.+) \|$", section, re.MULTILINE)) == {
        str(code.value): code.meaning for code in ExitCode
    }


def test_the_table_of_parameters_has_them_all():
    told = re.findall(r"`(\w+)`", first_column("| parameter | meaning |"))
    assert set(told) == set(inspect.signature(prompt_map).parameters)


def test_the_extras_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    told = {
        extra for found in re.findall(r"(?:batchq|install '?\.)\[([\w,-]+)\]", README) for extra in found.split(",")
    }
    assert told <= set(extras)
