"""deploy/supervisord.conf under a real supervisord: four workers, a stop that waits for the drain, one that is killed."""

import configparser
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fake_provider import running_provider
from processes import bench, wait_for

from batchq.cli.worker import worker as worker_command

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ROOT / "deploy" / "supervisord.conf"
BIN = Path(sys.executable).parent
PROGRAM = "program:batchq-worker"
WORKERS = 4
CALLS = 2


def shipped():
    read = configparser.RawConfigParser(inline_comment_prefixes=(" ;",))
    read.read_string(SHIPPED.read_text())
    return read


def worker_options():
    program, name, *arguments = shipped()[PROGRAM]["command"].split()
    assert (program, name) == ("batchq", "worker")
    return worker_command.make_context("worker", arguments).params


class Supervisor:
    """The shipped file, copied, with nothing changed but the command: whose Python, and how much at once."""

    def __init__(self, place, *options):
        self.place = place
        self.file = place.directory / "supervisord.conf"
        mine = f"command={BIN / 'batchq'} worker {' '.join(options)}"
        lines = SHIPPED.read_text().splitlines()
        self.file.write_text("\n".join(mine if line.startswith("command=") else line for line in lines) + "\n")
        self.process = subprocess.Popen(
            [BIN / "supervisord", "--nodaemon", "--configuration", self.file],
            cwd=place.directory,
            env=place.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
        )

    def control(self, *arguments):
        return subprocess.run(
            [BIN / "supervisorctl", "--configuration", self.file, *arguments],
            env=self.place.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def log(self):
        path = self.place.directory / "supervisord.log"
        return path.read_text() if path.exists() else ""

    def pids(self):
        """Who was started, from the first to the last."""
        return [int(line.rpartition(" ")[2]) for line in self.log().splitlines() if " spawned: " in line]

    def living(self):
        """Those of them that have not ended."""
        return [pid for pid in self.pids() if _is_worker(pid)]

    def ends(self):
        """How workers ended, as supervisor tells it."""
        return [
            line.partition(" (")[2] for line in self.log().splitlines() if " exited: " in line or " stopped: " in line
        ]

    def end(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        finally:
            for pid in self.living():
                os.kill(pid, signal.SIGKILL)
            self.process.kill()
            self.process.wait(10)


def _is_worker(pid):
    try:
        return str(BIN / "batchq").encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


@pytest.fixture(scope="module")
def provider():
    with running_provider() as running:
        yield running


@pytest.fixture
def place(tmp_path, provider):
    with bench(tmp_path, BATCHQ_BASE_URL=provider.base_url, MODEL="m") as made:
        made.environment["BATCHQ_RUNTIME_DIR"] = str(tmp_path / "run")
        yield made


@pytest.fixture
def supervised(place):
    started = []

    def start(*options):
        started.append(Supervisor(place, *options))
        return started[0]

    yield start
    for each in started:
        each.end()


def enqueue(place, name, count):
    added = place.run("enqueue", str(place.write_prompts(count, f"{name}.jsonl")), "--batch", name)
    assert added.returncode == 0, added.stderr


def holders(place):
    """How many jobs each worker has in flight, by pid."""
    return dict(
        place.query(
            "SELECT r.pid, count(*) FROM jobs j JOIN runners r ON r.id = j.claimed_by WHERE j.state = 'inflight' GROUP BY 1 ORDER BY max(j.id)"
        )
    )


def all_busy(place, supervisor):
    held = holders(place)
    return set(held.values()) == {CALLS} and set(held) == set(supervisor.living()) and len(held) == WORKERS


def test_four_workers_outlive_a_kill_and_a_stop_waits_for_their_calls(place, provider, supervised):
    provider.behave(latency=4.0)
    enqueue(place, "first", 24)
    supervisor = supervised("--concurrency", str(CALLS), "--lease", "2s", "--drain-timeout", "120s")
    wait_for(lambda: all_busy(place, supervisor), "four workers to be busy")
    newest = list(holders(place))[-1]  # its calls last longest

    os.kill(newest, signal.SIGKILL)

    provider.behave(latency=0.2)
    wait_for(lambda: len(supervisor.pids()) == WORKERS + 1, "another in its place")
    wait_for(lambda: place.count("done") == 24, "all to be done")
    [(lost,)] = place.query("SELECT count(*) FROM attempts WHERE outcome = 'lost'")
    assert 0 < lost <= CALLS

    provider.behave(latency=3.0)
    calls = provider.ledger()["calls"]
    enqueue(place, "more", 40)
    wait_for(lambda: all_busy(place, supervisor), "four workers to be busy again")
    assert place.run("health").stdout.count(": running, ") == WORKERS

    stopped = supervisor.control("stop", "batchq-worker:*")

    assert sorted(stopped.stdout.splitlines()) == [f"batchq-worker:batchq-worker_{n:02d}: stopped" for n in range(4)]
    assert holders(place) == {}
    assert provider.ledger()["calls"] - calls == place.count("done") - 24 >= WORKERS * CALLS
    assert place.query("SELECT outcome FROM attempts WHERE outcome NOT IN ('succeeded', 'lost')") == []
    assert supervisor.ends() == ["terminated by SIGKILL; not expected)", *["exit status 0)"] * WORKERS]
    for number in range(WORKERS):
        assert '"worker.stopped"' in (place.directory / f"batchq-worker_{number:02d}.log").read_text()
    assert list((place.directory / "run").iterdir()) == []


def test_the_shipped_file_leaves_time_for_the_drain_and_gives_up_what_a_restart_would_repeat():
    program = shipped()[PROGRAM]
    options = worker_options()
    assert program.getint("stopwaitsecs") >= options["drain_timeout"] + 30
    assert program["stopsignal"] == "TERM"
    assert program.getboolean("killasgroup") and not program.getboolean("stopasgroup")
    assert program.getint("numprocs") == WORKERS
    assert "%(process_num)" in program["process_name"]
    assert program["autorestart"] == "unexpected"
    assert {int(code) for code in program["exitcodes"].split(",")} == {0, 2, 5, 75, 78}
    assert program.getboolean("redirect_stderr")
    assert program["stdout_logfile_maxbytes"] and program.getint("stdout_logfile_backups")
