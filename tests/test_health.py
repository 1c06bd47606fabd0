"""`batchq health` says whether the workers of this machine come round, by their files and by nothing else."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from processes import ON_BOTH, bench_for, wait_for
from tcp_proxy import tcp_proxy

from batchq.supervision.runtime import RuntimeDirectory, runtime_directory

# What a command that runs every few seconds should not import.
HEAVY = ("aiohttp", "httpx2", "openai", "pydantic", "pydantic_settings", "rich", "sqlalchemy", "structlog")
FORKING = """
import os, time

def forks(prompt):
    if os.fork() == 0:
        time.sleep(600)
        os._exit(0)
    open("forked", "w").close()
    time.sleep(600)
"""


@pytest.fixture
def place(request, tmp_path):
    with bench_for(request, tmp_path, BATCHQ_RUNTIME_DIR=str(tmp_path / "run")) as made:
        yield made


def worker(place, *options, **environment):
    started = place.start("worker", "--worker", "echo", "--lease", "3s", *options, env=environment)
    wait_for(lambda: "worker.started" in place.errors(started), "the worker to start")
    return started


def ask(place, *arguments):
    asked = place.run("health", "--json", *arguments)
    assert asked.returncode in {0, 1}, asked.stderr
    told = json.loads(asked.stdout)
    assert told["healthy"] is (asked.returncode == 0)
    assert (told["reason"] is None) is told["healthy"]
    return told


def files(place):
    return sorted(path.name for path in (place.directory / "run").iterdir())


@ON_BOTH
def test_a_worker_is_well_while_it_works_and_says_goodbye(place):
    place.write_prompts(5)
    assert place.run("enqueue", "prompts.jsonl", "--batch", "b", "--worker", "echo").returncode == 0
    started = worker(place)
    wait_for(lambda: any(each["done"] == 5 for each in ask(place)["workers"]), "the answers to be counted")

    asked = place.run("health")
    assert (asked.returncode, asked.stderr) == (0, "")
    assert asked.stdout.startswith(
        f"worker {started.pid}: running, 0 of 16 calls in flight, 5 done, 0 failed, came round"
    )
    [told] = ask(place)["workers"]
    assert (told["pid"], told["phase"], told["lease_seconds"]) == (started.pid, "running", 3.0)
    assert told["healthy"] and not told["ended"] and not told["database_away"]
    text = (place.directory / "run" / files(place)[0]).read_text()
    assert "prompt" not in text and str(place.database) not in text

    started.send_signal(signal.SIGTERM)
    assert started.wait(30) == 0
    assert files(place) == []
    assert "no worker runs here" in ask(place)["reason"]


def test_one_that_is_stopped_is_stuck_after_its_lease_and_one_that_was_killed_is_told_of_once(place):
    stuck, other = worker(place), worker(place)
    assert ask(place)["healthy"]

    stuck.send_signal(signal.SIGSTOP)
    told = wait_for(lambda: None if (found := ask(place))["healthy"] else found, "the worker to count as stuck", 30)
    assert told["reason"].startswith(f"worker {stuck.pid} is stuck: its loop has not come round for ")
    assert {each["pid"]: each["healthy"] for each in told["workers"]} == {stuck.pid: False, other.pid: True}
    assert all(each["silent_seconds"] > 3 for each in told["workers"] if not each["healthy"])
    assert ask(place, str(other.pid))["healthy"]

    stuck.send_signal(signal.SIGCONT)
    wait_for(lambda: ask(place)["healthy"], "the worker to go on", 30)

    stuck.kill()
    stuck.wait(30)
    told = place.run("health")
    assert told.returncode == 0
    assert f"worker {stuck.pid}: gone without a word" in told.stdout
    assert [each["pid"] for each in ask(place)["workers"]] == [other.pid]

    other.kill()
    other.wait(30)
    told = ask(place)
    assert [each["ended"] for each in told["workers"]] == [True]
    assert "no worker runs here" in told["reason"]
    assert ask(place)["workers"] == []


def test_one_is_asked_for_by_pid_or_by_the_beginning_of_its_id(place):
    one, _other = worker(place), worker(place)
    [found] = ask(place, str(one.pid))["workers"]
    assert found["pid"] == one.pid
    assert [each["pid"] for each in ask(place, found["id"][:8])["workers"]] == [one.pid]

    missing = ask(place, str(one.pid), "999999999")
    assert missing["reason"].startswith("no worker 999999999 runs here")
    assert [each["pid"] for each in missing["workers"]] == [one.pid]


def test_one_that_starts_takes_away_what_a_killed_one_left(place):
    killed = worker(place)
    [left] = files(place)
    killed.kill()
    killed.wait(30)
    worker(place)
    wait_for(lambda: len(files(place)) == 1 and files(place) != [left], "its file to be taken away")


def test_what_a_worker_has_forked_does_not_pass_for_it(place):
    (place.directory / "forking.py").write_text(FORKING)
    place.write_prompts(1)
    added = place.run("enqueue", "prompts.jsonl", "--batch", "b", "--worker", "forking.py:forks")
    assert added.returncode == 0, added.stderr
    started = place.start("worker", "--worker", "forking.py:forks", "--lease", "3s", start_new_session=True)
    try:
        wait_for((place.directory / "forked").exists, "the fork")
        assert ask(place)["healthy"]
        started.kill()
        started.wait(30)
        assert [each["ended"] for each in ask(place)["workers"]] == [True]
        os.killpg(started.pid, 0)  # the fork is there
    finally:
        os.killpg(started.pid, signal.SIGKILL)


def test_one_whose_database_is_away_is_well(request, tmp_path):
    url = request.getfixturevalue("postgres_queue")
    port = urlsplit(url).port
    with bench_for(request, tmp_path, BATCHQ_RUNTIME_DIR=str(tmp_path / "run")) as place:
        with tcp_proxy(port) as proxy:
            place.environment["BATCHQ_DB"] = url.replace(f":{port}/", f":{proxy.port}/")
            started = worker(place, "--lease", "30s")
        # Nobody is at that port any more.
        wait_for(lambda: "database.unavailable" in place.errors(started), "the worker to miss its database")
        told = wait_for(lambda: (found := ask(place))["workers"][0]["database_away"] and found, "it to say so")
        assert told["healthy"]
        assert place.run("health").stdout.rstrip().endswith("its database is away")


def test_a_directory_that_was_cleaned_is_written_to_again(place):
    worker(place)
    for name in files(place):
        (place.directory / "run" / name).unlink()
    (place.directory / "run").rmdir()
    wait_for(lambda: ask(place)["healthy"], "the worker to write again")


def test_what_can_not_be_written_costs_no_call_and_is_told_once(place):
    (place.directory / "run").write_text("no directory")
    place.write_prompts(3)
    assert place.run("enqueue", "prompts.jsonl", "--batch", "b", "--worker", "echo").returncode == 0
    started = worker(place)
    wait_for(lambda: place.count("done") == 3, "the answers")
    started.send_signal(signal.SIGTERM)
    assert started.wait(30) == 0
    events = [json.loads(line) for line in place.errors(started).splitlines()]
    [untold] = [event for event in events if event["event"] == "health.untold"]
    assert untold["directory"] == str(place.directory / "run")
    assert "File exists" in untold["reason"]
    asked = place.run("health")
    assert (asked.returncode, asked.stdout) == (78, "")
    assert asked.stderr == f"batchq: can't look into {place.directory / 'run'}: Not a directory\n"


def test_files_that_no_worker_has_written_are_passed_over(place):
    run = place.directory / "run"
    run.mkdir()
    (run / "worker-1.json").write_text("{")
    (run / "worker-2.json").write_text('{"pid": 1}')
    (run / "worker-3.json").write_text(json.dumps(["worker"] * 100))
    (run / "worker-4.json").symlink_to("/etc/passwd")
    (run / "worker-5.json").mkdir()
    os.mkfifo(run / "worker-6.json")
    (run / "notes.txt").write_text("not ours")
    told = ask(place)
    assert (told["healthy"], told["workers"]) == (False, [])
    assert (run / "notes.txt").exists()


@pytest.mark.parametrize("trap", ["a link", "open to all", "open to readers"])
def test_a_directory_that_somebody_else_has_laid_out_is_refused(place, trap):
    del place.environment["BATCHQ_RUNTIME_DIR"]
    place.environment.pop("XDG_RUNTIME_DIR", None)
    elsewhere = place.directory / "elsewhere"
    elsewhere.mkdir()
    place.environment["TMPDIR"] = str(place.directory)
    own = place.directory / f"batchq-{os.geteuid()}"
    if trap == "a link":
        own.symlink_to(elsewhere)
    else:
        own.mkdir()
        own.chmod(0o777 if trap == "open to all" else 0o755)

    started = worker(place)

    wait_for(lambda: "health.untold" in place.errors(started), "the worker to refuse it")
    assert [*elsewhere.iterdir(), *own.iterdir()] == []
    asked = place.run("health")
    assert asked.returncode == 78
    assert str(own) in asked.stderr
    assert place.run("health", "--runtime-dir", str(elsewhere)).returncode == 1


def test_it_imports_little(place):
    started = worker(place)
    program = (
        "import sys; sys.argv[1:] = ['health']\n"
        "from batchq.cli import main\n"
        "try: main()\n"
        f"finally: print(*sorted({{*{HEAVY}}} & {{*sys.modules}}), file=sys.stderr)"
    )
    asked = subprocess.run(
        [sys.executable, "-c", program],
        env=place.environment,
        cwd=place.directory,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (asked.returncode, asked.stderr) == (0, "\n")
    assert f"worker {started.pid}: running" in asked.stdout


def test_where_it_looks(tmp_path):
    session = tmp_path / "session"
    session.mkdir()
    everything = {
        "BATCHQ_RUNTIME_DIR": "/a",
        "RUNTIME_DIRECTORY": "/b:/c",
        "XDG_RUNTIME_DIR": str(session),
        "TMPDIR": "/d",
    }
    assert runtime_directory(everything, Path("/given")) == RuntimeDirectory(Path("/given"), given=True)
    found = []
    while everything:
        found.append(runtime_directory(everything))
        everything.pop(next(iter(everything)))
    found.append(runtime_directory({}))
    user = os.geteuid()
    assert found == [
        RuntimeDirectory(Path("/a"), given=True),
        RuntimeDirectory(Path("/b"), given=True),
        RuntimeDirectory(session / "batchq", given=False),
        RuntimeDirectory(Path(f"/d/batchq-{user}"), given=False),
        RuntimeDirectory(Path(f"/tmp/batchq-{user}"), given=False),
    ]
    another = {"XDG_RUNTIME_DIR": "/nowhere", "TMPDIR": "/d"}
    assert runtime_directory(another).path == Path(f"/d/batchq-{user}")
