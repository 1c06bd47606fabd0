"""Keys stand in nothing that a run writes, and prompts and answers in no log, whatever goes wrong."""

from __future__ import annotations

import base64
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import quote

import forked
import pytest
from listening_server import Heard, Reply, completion, failure, listening_server
from processes import ON_BOTH, Bench, bench_for, wait_for
from raw_connection import connect

# Like no provider's, so that only their being known can keep them out; with what JSON and URLs spell otherwise.
KEYS = {
    "OPENAI_API_KEY": "plantedkey1/Zq8vB3nM5xC7+openai",
    "OPENROUTER_API_KEY": "plantedkey2/Yw6tR4eP2oL9+router",
    "of an endpoint": "plantedkey3/Xk1jH5gF7dS3+endpoint",
    "in a file": "plantedkey4/Vb2nM8cX4zA6+file",
}
PASSWORD = "plantedpassword5Ur3yT9qW1"
PROMPT = "the planted prompt about Wilhelmina's blue bicycle"
ANSWER = "the planted answer about Konstantin's wooden ladder"
PIECE = 12  # so much of a secret tells it; a provider's `plan…e1` does not

WORKER = f"""
import os
from batchq import Answer, Halt, Reject

async def answer(prompt):
    key = os.environ["OPENROUTER_API_KEY"]
    if "returned" in prompt:
        return Answer({{"told": key, "text": {ANSWER!r}}}, meta={{"sent": key}}, finish_reason=key)
    if "refused" in prompt:
        raise Reject(f"{{key}} was refused for: {{prompt}}", answer=Answer({ANSWER!r}))
    if "halting" in prompt:
        raise Halt(f"nobody may ask {{prompt!r}} with {{key}}")
    raise ValueError(f"called with {{key}}: {{prompt}}")
"""
FORMS = {
    "done": lambda heard: completion(f"{ANSWER}; {PROMPT}; {heard.key}", provider=f"{heard.key} gave it"),
    "bad key": lambda heard: failure(401, f"Incorrect API key provided: {heard.key}. You said: {heard.prompt}"),
    "bad request": lambda heard: failure(400, f"Invalid: {heard.prompt} from {heard.key}"),
    "far back": lambda heard: Reply(500, "x" * 985 + heard.key + heard.prompt, {"content-type": "text/plain"}),
    "moved": lambda heard: Reply(307, "", {"location": f"http://127.0.0.1:1/{quote(heard.key)}?key={heard.key}"}),
    "throttled": lambda heard: failure(429, f"{heard.key} asked {heard.prompt!r} too often", **{"retry-after": "0"}),
}


class EchoingProvider:
    """Quotes the key and the prompt in whatever it says."""

    def __init__(self) -> None:
        self.prompts: list[str] = []

    def answer(self, heard: Heard) -> Reply:
        """Answer as the prompt asks; patience is asked for once."""
        prompt = heard.prompt
        form = next((form for form in FORMS if form in prompt), "done")
        if form == "throttled" and prompt in self.prompts:
            form = "done"
        self.prompts.append(prompt)
        if "slowly" in prompt:
            time.sleep(30)
        reply = FORMS[form](heard)
        return Reply(reply.status, reply.body.replace("/", "\\/") if "done" in prompt else reply.body, reply.headers)


@pytest.fixture
def place(request, tmp_path):
    """A directory in which runs write, with the settings above it."""
    directory = tmp_path / "run"
    (directory / "tmp").mkdir(parents=True)
    (tmp_path / "key").write_text(KEYS["in a file"])
    (tmp_path / ".env").write_text(f"OPENAI_API_KEY={KEYS['OPENAI_API_KEY']}\n")
    own = {
        "OPENROUTER_API_KEY": KEYS["OPENROUTER_API_KEY"],
        "TMPDIR": str(directory / "tmp"),
        "PYTHONASYNCIODEBUG": "1",
    }
    with bench_for(request, directory, **own) as made:
        if "BATCHQ_DB" in made.environment:
            url = made.environment["BATCHQ_DB"].replace("batchq@", f"batchq:{PASSWORD}@", 1)
            made.environment["BATCHQ_DB"] = url
        (directory / "mine.py").write_text(WORKER)
        yield made


def write_settings(place: Bench, base_url: str) -> None:
    """Name the provider thrice, each time with another key, and one that is not there."""
    table = "[endpoints.{}]\nbase_url = {!r}\n{} = {!r}\n"
    (place.directory.parent / "batchq.toml").write_text(
        f"base_url = {base_url!r}\n"
        + table.format("second", base_url, "api_key", KEYS["of an endpoint"])
        + table.format("filed", base_url, "api_key_file", str(place.directory.parent / "key"))
        + table.format("closed", "http://127.0.0.1:1/v1", "api_key", KEYS["of an endpoint"])
    )


def spellings(secret: str) -> set[str]:
    """A secret's pieces, and what base64 and a URL make of it."""
    encoded = {base64.b64encode(b" " * shift + secret.encode()).decode()[4:-4] for shift in range(3)}
    whole = {secret, secret.replace("/", "\\/"), quote(secret), quote(secret, safe=""), *encoded}
    return {text[start : start + PIECE] for text in whole for start in range(len(text) - PIECE + 1)}


def found_in(text: str, secret: str) -> list[str]:
    return sorted(piece for piece in spellings(secret) if piece in text)


def everything_written(place: Bench) -> dict[str, str]:
    """What stands below the directory, and in every table of a server."""
    files = [path for path in place.directory.rglob("*") if path.is_file() and path.suffix not in {".py", ".pyc"}]
    written = {path.name: path.read_bytes().decode("latin-1") for path in files}
    if isinstance(place.database, str):
        with connect(place.database) as connection:
            for (name,) in connection.tuples("SELECT tablename FROM pg_tables WHERE schemaname = 'public'"):
                rows = connection.tuples(f"SELECT t::text FROM {name} t")
                written[f"table {name}"] = "\n".join(row for (row,) in rows)
    return written


def enqueue(place: Bench, batch: str, prompts: list[str], *options: str) -> None:
    path = place.directory / "tmp" / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{PROMPT}: {prompt}"}) + "\n" for prompt in prompts))
    done = place.run("enqueue", str(path), "--batch", batch, "--max-attempts", "2", *options)
    assert done.returncode == 0, done.stderr
    path.unlink()


def fill(place: Bench) -> None:
    asked = ["done", "bad request", "far back", "moved", "throttled"]
    enqueue(place, "mixed", asked, "--model", "m", "--keep-response")
    enqueue(place, "typed", asked, "--model", "m", "--worker", "pydantic_ai", "--endpoint", "second")
    enqueue(place, "halted", ["bad key"], "--model", "m1", "--endpoint", "filed")
    enqueue(place, "away", ["done"], "--model", "m", "--endpoint", "closed")
    enqueue(place, "own", ["returned", "refused", "raised"], "--worker", "mine.py:answer")
    enqueue(place, "own_halt", ["halting"], "--worker", "mine.py:answer", "--model", "m2")


def say_all_there_is(place: Bench) -> list[str]:
    """Run what shows and writes; return what stood on stderr."""
    told = []
    for arguments in (
        ["status"], ["collect", "mixed", "-o", "mixed.csv"], ["collect", "own", "--no-wait", "-o", "own.jsonl"],
        ["collect", "halted", "--wait-timeout", "0.2s"], ["show", "mixed", "1"], ["show", "typed", "0", "--json"],
        ["run", "again.jsonl", "--model", "m", "-o", "again.out", "--max-attempts", "1"],
    ):  # fmt: skip
        done = place.run(*arguments)
        (place.directory / f"{len(told)}.stdout").write_text(done.stdout)
        told.append(done.stderr)
    return told


ALLOW_CORE_FILES = 'ulimit -Sc "$(ulimit -Hc)"; exec "$@"'


def start_for_real(place: Bench, *arguments: str) -> subprocess.Popen[str]:
    """Start a command by itself, no fork of another process, with all that Python says to developers."""
    with (place.directory / f"{len(place.started)}.err").open("w") as err:
        command = ["sh", "-c", ALLOW_CORE_FILES, "sh", sys.executable, "-X", "dev", "-m", "batchq", *arguments]
        process = subprocess.Popen(command, cwd=place.directory, env=place.environment, text=True, stderr=err)
    place.started.append(process)
    return process


def keeps_secrets(place: Bench, process, secrets: list[str]) -> None:
    """Hold what a system tells of a running process against the secrets."""
    told = "".join(Path(f"/proc/{process.pid}/{name}").read_text() for name in ("cmdline", "comm", "status"))
    assert "\0worker\0" in told
    assert not [secret for secret in secrets if found_in(told, secret)]
    limits = Path(f"/proc/{process.pid}/limits").read_text()
    assert next(line.split()[4] for line in limits.splitlines() if line.startswith("Max core file size")) == "0"


@ON_BOTH
def test_a_planted_key_is_in_nothing_that_a_run_writes_and_a_prompt_in_no_log(place):
    provider = EchoingProvider()
    secrets = [*KEYS.values(), PASSWORD]
    with listening_server(provider.answer) as server:
        write_settings(place, server.base_url)
        fill(place)
        logs = [place.start("worker", "--until-empty", "--log-level", "debug", "--worker", name)
                for name in ("openrouter", "pydantic_ai", "mine.py:answer")]  # fmt: skip
        for process in logs:
            process.wait(60)
        (place.directory / "again.jsonl").write_text(json.dumps(f"{PROMPT}: bad request"))
        told = say_all_there_is(place)
        enqueue(place, "slow", ["done, but slowly"], "--model", "m3")
        stopped = start_for_real(place, "worker", "--batch", "slow", "--log-level", "debug")
        wait_for(lambda: any("slowly" in prompt for prompt in provider.prompts), "a call in flight")
        keeps_secrets(place, stopped, secrets)
        for _ in range(2):
            stopped.send_signal(signal.SIGTERM)
            wait_for(lambda: "stopping" in place.errors(stopped) or stopped.poll() is not None, "a word of the signal")
        assert stopped.wait(60) in {143, 0, 75}
        told += [place.errors(process) for process in (*logs, stopped)]
        sent = {heard.key for heard in server.heard}

    assert sent == {KEYS["OPENAI_API_KEY"], KEYS["of an endpoint"], KEYS["in a file"]}, "each was used"
    written = everything_written(place)
    assert not {
        name: found_in(text, secret) for secret in secrets for name, text in written.items() if found_in(text, secret)
    }
    for text in told:
        for secret in (*secrets, PROMPT, ANSWER):
            assert not found_in(text, secret), f"{found_in(text, secret)} in:\n{text}"
        assert "Traceback" not in text, text
    shown = "".join(text for name, text in written.items() if name.endswith((".stdout", ".jsonl", ".csv")))
    assert PROMPT in shown, "prompts are shown where they are asked for"
    assert ANSWER in shown, "answers are, too"
    assert shown.count("[redacted]") > 5, "keys were echoed"


def test_a_traceback_quotes_no_key_and_no_prompt(place):
    write_settings(place, "http://127.0.0.1:1/v1")
    enqueue(place, "first", ["done"], "--model", "m")
    with connect(place.database) as connection:
        connection.execute("CREATE TRIGGER broken BEFORE INSERT ON jobs BEGIN SELECT no_such_function(); END")
    (place.directory / "more.jsonl").write_text(json.dumps(f"{PROMPT}: more"))
    told = [
        place.run("enqueue", "more.jsonl", "--model", "m", env={"BATCHQ_DEBUG": debug}).stderr for debug in ("", "1")
    ]
    (place.directory / "broken.py").write_text(
        "import os\nraise RuntimeError('imported with ' + os.environ['OPENROUTER_API_KEY'])\n"
    )
    told += [place.run("worker", "--worker", "broken.py:f", env={"BATCHQ_DEBUG": debug}).stderr for debug in ("", "1")]
    run = ("run", "more.jsonl", "--worker", "broken.py:f", "-o", "out.jsonl")
    told += [place.run(*run, env={"BATCHQ_DEBUG": "1"}).stderr]
    told += [place.run("worker", env={"OPENAI_API_KEY": f"{KEYS['OPENAI_API_KEY']}é"}).stderr]
    assert "Traceback" in told[1], "it was asked for"
    assert "no_such_function" in told[1]
    assert "imported with [redacted]" in told[2]
    assert "RuntimeError: imported with [redacted]" in told[4]
    assert "OPENAI_API_KEY should hold a key and nothing else" in told[-1]
    for text in told:
        for secret in (*KEYS.values(), PROMPT):
            assert not found_in(text, secret), text


def test_the_library_shows_no_key_and_its_callers_log_quotes_no_prompt(place, tmp_path):
    (place.directory / "script.py").write_text("""
import asyncio, logging, os, pathlib
from batchq import prompt_map
logging.basicConfig(level=logging.DEBUG)
async def main():
    for name in ("prompts.txt", "bad.txt"):
        try:
            await prompt_map(pathlib.Path(name), model_name="m", openrouter_api_key=os.environ["OPENROUTER_API_KEY"],
                             max_attempts=1, progress_every=1)
        except Exception:
            logging.exception("it failed")
asyncio.run(main())
""")
    (place.directory / "prompts.txt").write_text(f"{PROMPT}: bad request\n{PROMPT}: done\n")
    (place.directory / "bad.txt").write_text(f"{PROMPT}: bad key\n")
    provider = EchoingProvider()
    with listening_server(provider.answer) as server:
        write_settings(place, server.base_url)
        done = forked.run(
            [sys.executable, "script.py"], cwd=place.directory, env=place.environment, text=True, timeout=60
        )
    assert "it failed" in done.stderr
    assert "1 with bad_request, e.g. position 0: Invalid: […] from [redacted]" in done.stderr
    assert len(provider.prompts) >= 3, done.stderr
    for secret in (*KEYS.values(), PROMPT, ANSWER):
        assert not found_in(done.stderr, secret), done.stderr


def test_what_is_quoted_is_taken_out_and_all_else_stays():
    from batchq.concealing import without_quotes

    prompt = "Tell me all about the history of bicycles."
    assert without_quotes(f"bad input: {prompt} (400)", [prompt]) == "bad input: […] (400)"
    assert without_quotes("at 'all about the history of bicy'", [prompt]) == "at '[…]'"
    assert without_quotes("no credit is left on this account", [prompt]) == "no credit is left on this account"
    assert without_quotes("no such thing", ["", "no such"]) == "no such thing", "what is that short may be any word"
    assert without_quotes(f"bad: {'x' * 99}", ["y" * 500_000 + "x" * 50]) == "bad: […][…]"


@pytest.fixture
def no_keys(monkeypatch):
    """As if no key had been read yet."""
    from batchq import concealing

    monkeypatch.setattr(concealing, "_spellings", [])
    monkeypatch.setattr(concealing, "_placeholders", [])
    return concealing


@pytest.mark.parametrize(
    "key", ["a", "EMPTY", "lm-studio", "password", "completion", "sk-no-key-required", "Not_Needed"]
)
def test_a_placeholder_for_a_key_changes_no_answer(no_keys, key):
    from batchq_workers.endpoint_client import redacted_body

    no_keys.remember(key)
    answer = json.dumps({"text": f"a {key} is what it says", f"{key}_tokens": 5})
    assert no_keys.conceal_json(answer) == answer
    assert redacted_body(answer.encode(), key) == answer.encode()
    assert (no_keys.conceal(f"with {key}.") == "with [redacted].") is (len(key) >= 8), (
        "what is logged has no key at all"
    )


@pytest.mark.parametrize(
    "key", ["sk-or-v1-0a1b2c3d4e5f", "Yw/6tR4eP2+oL9", "abcdefghijklmnopqrstuvwxyz", "AbCdEfGhIjKl", "hunter22"]
)
def test_any_other_is_taken_out_of_answers(no_keys, key):
    from batchq_workers.endpoint_client import redacted_body

    no_keys.remember(key)
    assert json.loads(no_keys.conceal_json(json.dumps({key: [f"with {key}."]}))) == {"[redacted]": ["with [redacted]."]}
    assert redacted_body(f"with {key}.".encode(), key) == b"with [redacted]."


@pytest.mark.parametrize(
    "text", ["\tau-0123456789\n", "\\tau-0123456789", "\u00e9-tau-0123456789", 'say "tau-0123456789"']
)
def test_an_answer_stays_json_where_its_escapes_meet_a_key(no_keys, text):
    no_keys.remember("tau-0123456789")
    no_keys.remember("e9-tau-0123456789")
    expected = text.replace("tau-0123456789", "[redacted]")
    assert json.loads(no_keys.conceal_json(json.dumps(text))) == expected


@pytest.mark.parametrize(
    "text",
    ["'key_findings' is a required property", "no api_endpoint in api-compatible servers", "Bearer authentication is required"],
)  # fmt: skip
def test_a_word_that_begins_like_a_key_stays_in_an_error(text):
    from batchq.concealing import without_keys

    assert without_keys(text) == text


@pytest.mark.parametrize(
    "key", ["key-0a1b2c3d4e", "api_abcdefgh1", "Bearer eyJhbGciOi0", "sk-abcdefghijkl", "gsk_abcdefghijkl"]
)
def test_what_looks_like_a_key_does_not(key):
    from batchq.concealing import without_keys

    assert without_keys(f"no such key: {key}") == "no such key: [redacted]"
