"""Workers as services of a systemd that was really booted: `scripts/test --systemd`, as root."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from booted_systemd import booted
from processes import wait_for

pytestmark = pytest.mark.systemd

ROOT = Path(__file__).resolve().parent.parent
# Where all users may read it, as a package of the system would be.
PROGRAM = "/opt/batchq"


@pytest.fixture(scope="module")
def machine():
    assert os.geteuid() == 0, "a systemd is booted by root only"
    with booted(Path("/run/batchq-test-systemd")) as found:
        _install_program(found)
        yield found


def _install_program(machine):
    """Put this environment, and its Python, where the workers' user can read them."""
    site = next(Path(sys.prefix).glob("lib/python*/site-packages"))
    python = Path(sys.base_prefix)
    machine.run(f"""
        mkdir -p {PROGRAM}/python {PROGRAM}/code
        cp -a {python}/. {PROGRAM}/python/ && cp -a {site} {PROGRAM}/site
        cp -a {ROOT}/batchq {ROOT}/workers {ROOT}/deploy {ROOT}/scripts {PROGRAM}/code/
        rm -rf {PROGRAM}/site/_*editable*batchq* {PROGRAM}/site/_batchq.pth
        printf '#!/bin/sh\\nexport PYTHONPATH={PROGRAM}/code:{PROGRAM}/code/workers:{PROGRAM}/site PYTHONDONTWRITEBYTECODE=1 LD_LIBRARY_PATH={PROGRAM}/python/lib\\n' > {PROGRAM}/python/bin/batchq
        printf 'exec {PROGRAM}/python/bin/{Path(sys.executable).resolve().name} -P -m batchq "$@"\\n' >> {PROGRAM}/python/bin/batchq
        chmod -R a+rX {PROGRAM} && chmod 755 {PROGRAM}/python/bin/batchq
    """, timeout=300)  # fmt: skip
    # The provider, on the loopback of the machine, which has no other network.
    machine.run(
        f"systemd-run -q --unit=provider --setenv=PYTHONPATH={PROGRAM}/site --setenv=LD_LIBRARY_PATH={PROGRAM}/python/lib"
        f" {PROGRAM}/python/bin/{Path(sys.executable).resolve().name} {PROGRAM}/code/scripts/fake_llm.py --port 8080"
        " --latency 0.5 --require-key sk-of-the-credential"
    )


@pytest.fixture
def services(machine):
    """Two workers, installed as the README says, with a key in the credential store."""
    machine.run("mkdir -p /etc/credstore && chmod 700 /etc/credstore && mkdir -p /etc/batchq")
    machine.run("printf sk-of-the-credential > /etc/credstore/batchq.openai_api_key")
    machine.run(
        'printf \'base_url = "http://127.0.0.1:8080/v1"\\nconcurrency = 4\\nlease = "5s"\\n\' > /etc/batchq/config.toml'
    )
    _install(machine, 2)
    yield [f"batchq-worker@{number}.service" for number in (1, 2)]
    machine.run("systemctl stop batchq.target 'batchq-worker@*'; rm -rf /var/lib/batchq/*", check=False)


def _install(machine, workers):
    """Write what `service install` writes, with the program of this test in it: the real one runs there."""
    machine.run(
        f"{PROGRAM}/python/bin/batchq service install --workers {workers}"
        " || { journalctl --no-pager -o cat -n 30 -u 'batchq-worker@*'; exit 1; }"
    )


def batchq(machine, words, *, user="batchq", check=True):
    return machine.run(
        f"cd /var/lib/batchq && setpriv --reuid={user} --regid=batchq --clear-groups {PROGRAM}/python/bin/batchq {words}",
        check=check,
    )


def enqueue(machine, count, name):
    lines = "".join(json.dumps({"prompt": f"{name} {number}"}) + "\n" for number in range(count))
    (machine.root / "tmp").mkdir(exist_ok=True)
    machine.run(f"cat > /run/prompts.jsonl <<'END'\n{lines}END")
    batchq(machine, f"enqueue /run/prompts.jsonl --batch {name} --model m")


def counts(machine, name):
    told = json.loads(batchq(machine, f"status {name} --json"))
    (batch,) = told["batches"]
    return batch


def test_it_starts_says_how_it_stands_and_drains_on_stop(machine, services):
    for unit in services:
        assert machine.shown(unit, "ActiveState") == "active"
        assert machine.shown(unit, "User") == "batchq"
    enqueue(machine, 60, "demo")
    wait_for(lambda: " in flight" in machine.shown(services[0], "StatusText"), "a word of how it stands")
    wait_for(lambda: counts(machine, "demo")["done"] > 0, "answers, by the key of the credential")
    machine.run("systemctl stop batchq.target")
    for unit in services:
        assert (machine.shown(unit, "ActiveState"), machine.shown(unit, "Result")) == ("inactive", "success")
    jobs = counts(machine, "demo")
    assert (jobs["inflight"], jobs["failed"]) == (0, 0)
    machine.run("systemctl start batchq.target " + " ".join(services))
    wait_for(lambda: counts(machine, "demo")["done"] == 60, "the rest")
    assert "sk-of-the-credential" not in machine.log("batchq-worker@*")


def test_a_group_may_use_the_same_file(machine, services):
    enqueue(machine, 1, "of-the-worker")
    machine.run("id other >/dev/null 2>&1 || useradd --system --groups batchq other")
    said = machine.run(
        "cd /var/lib/batchq && setpriv --reuid=other --regid=other --init-groups"
        f" {PROGRAM}/python/bin/batchq enqueue /run/prompts.jsonl --batch of-another --model m"
    )
    assert "added 1 job" in said
    wait_for(lambda: counts(machine, "of-another")["done"] == 1, "the worker to answer it")


def test_a_worker_that_is_killed_is_started_again(machine, services):
    before = machine.shown(services[0], "MainPID")
    machine.run(f"kill -9 {before}")
    wait_for(lambda: machine.shown(services[0], "MainPID") not in {before, "0"}, "another process", 90)
    wait_for(lambda: machine.shown(services[0], "ActiveState") == "active", "it to be ready", 90)
    assert machine.shown(services[0], "NRestarts") == "1"


def test_a_loop_that_stands_still_is_ended_by_the_watchdog_and_started_again(machine, services):
    machine.run("mkdir -p /run/systemd/system/batchq-worker@.service.d")
    machine.run("printf '[Service]\\nWatchdogSec=3\\n' > /run/systemd/system/batchq-worker@.service.d/90-test.conf")
    machine.run(f"systemctl daemon-reload && systemctl restart {services[1]}")
    try:
        before = machine.shown(services[1], "MainPID")
        machine.run(f"kill -STOP {before}")
        wait_for(lambda: "watchdog" in machine.log(services[1]).lower(), "the watchdog", 60)
        wait_for(lambda: machine.shown(services[1], "MainPID") not in {before, "0"}, "another process", 90)
    finally:
        machine.run("rm /run/systemd/system/batchq-worker@.service.d/90-test.conf; systemctl daemon-reload")


def test_a_mistake_in_the_settings_is_not_tried_again(machine, services):
    machine.run("printf 'concurency = 4\\n' > /etc/batchq/config.toml")
    machine.run(f"systemctl restart {services[0]}", check=False)
    wait_for(lambda: machine.shown(services[0], "ActiveState") == "failed", "it to fail")
    assert machine.shown(services[0], "ExecMainStatus") == "78"
    assert machine.shown(services[0], "NRestarts") == "0"
    assert "there is no setting 'concurency'" in machine.log(services[0])


def test_an_installation_is_changed_by_the_next_and_removed_whole(machine, services):
    _install(machine, 3)
    assert machine.shown("batchq-worker@3.service", "ActiveState") == "active"
    _install(machine, 1)
    assert machine.shown("batchq-worker@3.service", "ActiveState") == "inactive"
    assert machine.shown("batchq-worker@1.service", "ActiveState") == "active"
    machine.run(f"{PROGRAM}/python/bin/batchq service uninstall")
    assert machine.shown("batchq-worker@1.service", "ActiveState") == "inactive"
    left = machine.run(
        "ls /etc/systemd/system | grep batchq; ls /etc/sysusers.d /etc/tmpfiles.d | grep batchq", check=False
    )
    assert left.strip() == ""
    assert machine.run("ls /etc/credstore").strip() == "batchq.openai_api_key"
