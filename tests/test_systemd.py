"""The units of deploy/systemd, by systemd's own judgement; what a worker tells its service manager; what is installed."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from fake_provider import running_provider
from processes import bench, wait_for

ROOT = Path(__file__).resolve().parent.parent
UNITS = ROOT / "deploy" / "systemd"
# Of systemd 254 and newer; older ones pass over them.
NEWER = ("RestartSteps", "RestartMaxDelaySec")


@pytest.fixture
def place(tmp_path):
    with bench(tmp_path) as opened:
        yield opened


def analyze(*arguments, **environment):
    program = shutil.which("systemd-analyze")
    assert program, "systemd-analyze is missing: it comes with Debian's package systemd"
    return subprocess.run(
        [program, *map(str, arguments)], env={**os.environ, **environment}, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip


def copied(directory, source):
    """Copy units with a program that there is: else nothing can be said of them."""
    directory.mkdir()
    for unit in source.glob("batchq*"):
        text = (
            unit.read_text().replace("/usr/local/bin/batchq", "/bin/true").replace("%h/.local/bin/batchq", "/bin/true")
        )
        (directory / unit.name.replace("@.", "@1.")).write_text(text)
        (directory / unit.name).write_text(text)
    return [str(directory / name) for name in ("batchq-worker@1.service", "batchq.target")]


@pytest.mark.parametrize("kind", ["system", "user"])
def test_systemd_finds_nothing_wrong_with_the_units(tmp_path, kind):
    units = copied(tmp_path / "units", UNITS if kind == "system" else UNITS / "user")
    done = analyze(f"--{kind}", "verify", "--man=no", *units, XDG_RUNTIME_DIR=str(tmp_path), HOME=str(tmp_path))
    complaints = [line for line in done.stderr.splitlines() if not any(name in line for name in NEWER)]
    assert (done.returncode, complaints) == (0, [])


def test_a_worker_is_let_do_little(tmp_path):
    unit, _ = copied(tmp_path / "units", UNITS)
    done = analyze("security", "--offline=yes", "--threshold=20", unit)
    assert done.returncode == 0, done.stdout


def test_both_kinds_of_unit_differ_only_where_they_have_to():
    lines = [
        set(path.read_text().splitlines())
        for path in (UNITS / "batchq-worker@.service", UNITS / "user" / "batchq-worker@.service")
    ]
    settings = [{line for line in each if "=" in line and not line.startswith("#")} for each in lines]
    of_users = {line.partition("=")[0] for line in settings[1] - settings[0]}
    assert of_users == {"After", "ExecStart", "RuntimeDirectoryMode", "UMask", "WorkingDirectory"}


class ServiceManager:
    """Hears what a service says, by the protocol of man 3 sd_notify."""

    def __init__(self, directory):
        self.path = directory / "notify"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self.path))
        self._socket.setblocking(False)
        self.heard = []

    def lines(self):
        try:
            while True:
                self.heard += self._socket.recv(65536).decode().splitlines()
        except BlockingIOError:
            return self.heard

    def close(self):
        self._socket.close()

    def wait_for(self, text):
        return wait_for(lambda: [line for line in self.lines() if text in line], repr(text))


@pytest.fixture
def manager(tmp_path):
    heard = ServiceManager(tmp_path)
    yield heard
    heard.close()


def test_a_worker_tells_its_manager_how_it_stands(place, manager):
    place.write_prompts(40)
    place.run("enqueue", "prompts.jsonl", "--model", "m")
    with running_provider(latency=0.7) as provider:
        worker = place.start(
            "worker", "-c", "4", "--base-url", provider.base_url,
            env={"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "3000000"},
        )  # fmt: skip
        manager.wait_for("READY=1")
        manager.wait_for(" done, 0 failed")
        manager.wait_for("WATCHDOG=1")
        assert manager.lines().count("READY=1") == 1

        os.kill(worker.pid, signal.SIGSTOP)  # a loop that stands still
        wait_for(
            lambda: "T" in Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()[0], "it to stop"
        )
        manager.lines()
        manager.heard.clear()
        with pytest.raises(AssertionError, match="in vain"):
            wait_for(manager.lines, "a word", deadline=2.5)
        os.kill(worker.pid, signal.SIGCONT)
        manager.wait_for("WATCHDOG=1")

        worker.send_signal(signal.SIGTERM)
        assert worker.wait(30) == 0
        manager.wait_for("STATUS=draining, 1")
        manager.wait_for("STATUS=stopped; 0 in flight")
        assert manager.lines().count("STOPPING=1") == 1
        assert [line for line in manager.lines() if line.startswith("EXTEND_TIMEOUT_USEC=")]


def test_a_manager_that_does_not_listen_costs_nothing(place, tmp_path):
    place.write_prompts(2)
    place.run("enqueue", "prompts.jsonl", "--worker", "echo")
    done = place.run("worker", "--until-empty", env={"NOTIFY_SOCKET": str(tmp_path / "nobody"), "WATCHDOG_USEC": "1"})
    assert (done.returncode, place.count("done")) == (0, 2)


# What `service` writes.


def planned(place, *arguments):
    done = place.run(
        "service", "install", "--dry-run", *arguments, env={"XDG_CONFIG_HOME": str(place.directory / "own")}
    )
    assert done.returncode == 0, done.stderr
    files = {}
    for part in done.stdout.split("\n# /")[0:]:
        name, _, text = part.removeprefix("# /").partition("\n")
        files[f"/{name}"] = text
    return files, done.stdout


def test_services_of_ones_own_work_in_this_directory_with_this_batchq(place):
    files, said = planned(place, "--user", "--workers", "3", "--db", "a b%.db", "--", "--concurrency", "64")
    units = place.directory / "own" / "systemd" / "user"
    assert files[f"{units}/batchq-worker@.service"].startswith(
        (UNITS / "user" / "batchq-worker@.service").read_text()[:200]
    )
    drop_in = files[f"{units}/batchq-worker@.service.d/10-installed.conf"]
    assert f"ExecStart={Path(sys.executable).with_name('batchq')} worker --concurrency 64\n" in drop_in
    assert f"WorkingDirectory={place.directory}\n" in drop_in
    assert f'Environment="BATCHQ_DB={place.directory}/a b%%.db"\n' in drop_in
    assert (
        "systemctl --user enable --now batchq.target batchq-worker@1.service batchq-worker@2.service batchq-worker@3.service"
        in said
    )
    assert not (place.directory / "own").exists()


def test_a_unit_file_that_all_may_read_gets_no_password(place):
    url = "postgresql+psycopg://me:hunter2@127.0.0.1:1/queue"
    done = place.run("service", "install", "--dry-run", "--db", url)
    assert (done.returncode, "/etc/credstore/batchq.db" in done.stderr) == (78, True)
    assert "hunter2" not in done.stdout + done.stderr
    assert "hunter2" in planned(place, "--user", "--db", url)[1]


@pytest.mark.skipif(Path("/run/systemd/system").is_dir(), reason="this machine is run by systemd")
@pytest.mark.parametrize("verb", ["install", "uninstall"])
def test_without_systemd_it_says_what_to_do_and_writes_nothing(place, verb):
    done = place.run("service", verb, "--user", env={"XDG_CONFIG_HOME": str(place.directory / "own")})
    assert (done.returncode, "this machine is not run by systemd" in done.stderr) == (2, True)
    assert not (place.directory / "own").exists()


def test_the_wheel_carries_the_files_themselves(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)], cwd=ROOT, check=True,
        capture_output=True, timeout=120,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {name: archive.read(name) for name in archive.namelist() if name.startswith("batchq/service/units/")}
    shipped = {
        f"batchq/service/units/{path.relative_to(UNITS)}": path.read_bytes()
        for path in UNITS.rglob("*")
        if path.is_file()
    }
    assert held == shipped


def test_the_database_is_named_where_it_is_looked_at(place):
    done = place.run("service", "install", "--dry-run", "--", "--db", "postgresql://me:hunter2@h/d")
    assert (done.returncode, "before the --" in done.stderr, "hunter2" in done.stdout + done.stderr) == (2, True, False)


def test_a_queue_that_services_of_the_machine_do_not_see_is_refused(place):
    done = place.run("service", "install", "--dry-run", "--db", "/tmp/queue.db")
    assert (done.returncode, "don't see /tmp/queue.db" in done.stderr) == (78, True)
