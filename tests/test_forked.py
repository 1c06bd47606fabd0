"""A fork is to a command what a process that was started anew is."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import forked
import forked_client
import pytest
from processes import wait_for

PROBE = textwrap.dedent("""
    import atexit, json, locale, os, random, signal, sys, threading

    def name(handler):
        return getattr(handler, "__qualname__", str(handler))

    main = sys.modules["__main__"]
    streams = (sys.stdin, sys.stdout, sys.stderr)
    told = {
        "name": __name__, "file": globals().get("__file__"), "spec": getattr(__spec__, "name", None),
        "main": main.__dict__ is globals(), "argv": sys.argv, "path": sys.path, "cwd": os.getcwd(),
        "environment": dict(os.environ), "input": sys.stdin.read(), "session": os.getsid(0) == os.getpid(),
        "streams": [[s.fileno(), s.encoding, s.errors, s.line_buffering, s.isatty(), s.mode] for s in streams],
        "signals": [name(signal.getsignal(n)) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGPIPE)],
        "files": sorted(os.listdir("/dev/fd"))[:3], "bytecode": sys.dont_write_bytecode, "threads": threading.active_count(),
    }
    atexit.register(print, "the end")
    print(json.dumps(told))
    threading.Timer(0.05, print, ["a thread"]).start()
    print("é", file=sys.stderr)
    sys.exit(7)
""")


@pytest.fixture
def place(tmp_path):
    (tmp_path / "package").mkdir()
    (tmp_path / "sub").mkdir()
    for name in ("package/probe.py", "sub/probe.py", "package/__main__.py"):
        (tmp_path / name).write_text(PROBE)
    return tmp_path


def start_anew(args, **options):
    return subprocess.run(args, capture_output=True, check=False, **options)


@pytest.mark.parametrize(
    "arguments",
    [
        ["-m", "package.probe", "a", "-b"],
        ["-m", "package"],
        ["sub/probe.py", "a"],
        ["-c", PROBE, "a"],
        ["-", "a"],
        ["sub/probe.py"],
    ],
)
@pytest.mark.parametrize(
    "added", [{}, {"PYTHONPATH": f"/nowhere{os.pathsep}/elsewhere", "PYTHONDONTWRITEBYTECODE": "1", "X": "y"}]
)
def test_it_is_what_python_is(place, arguments, added):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    options = {
        "cwd": place,
        "env": clean | added,
        "text": True,
        "input": PROBE if "-" in arguments else "one\r\ntwo",
        "start_new_session": True,
    }
    anew, fork = (run([sys.executable, *arguments], **options) for run in (start_anew, forked.run))
    assert (fork.returncode, fork.stderr) == (anew.returncode, anew.stderr) == (7, "é\n")
    assert fork.stdout.splitlines()[1:] == anew.stdout.splitlines()[1:] == ["a thread", "the end"]
    assert json.loads(fork.stdout.splitlines()[0]) == json.loads(anew.stdout.splitlines()[0])


@pytest.mark.parametrize(
    ("code", "ending"),
    [
        ("pass", 0),
        ("import sys; sys.exit()", 0),
        ("import sys; sys.exit('why')", 1),
        ("raise ValueError('odd')", 1),
        ("import os; os._exit(9)", 9),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
        ("raise KeyboardInterrupt", -signal.SIGINT),
    ],
)
def test_it_ends_as_python_does(code, ending):
    anew, fork = (run([sys.executable, "-c", code], text=True) for run in (start_anew, forked.run))
    assert fork.returncode == anew.returncode == ending
    assert fork.stderr.splitlines()[-1:] == anew.stderr.splitlines()[-1:]


def test_it_has_a_pid_hears_signals_and_is_waited_for(tmp_path):
    code = (
        "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(4)); print('up', flush=True); time.sleep(60)"
    )
    with forked.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "up\n"
        assert process.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.01)
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(20) == 4
        with pytest.raises(ProcessLookupError):
            os.kill(process.pid, 0)


def test_one_that_takes_too_long_is_killed():
    began = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired):
        forked.run([sys.executable, "-c", "import time; time.sleep(60)"], timeout=0.1)
    assert time.monotonic() - began < 20


def test_many_at_once_have_streams_of_their_own():
    command = [sys.executable, "-c", "import random, sys; print(sys.stdin.read(), random.random())"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [forked.Popen(command, **pipes) for _ in range(8)]
    said = [process.communicate(str(number))[0].split() for number, process in enumerate(processes)]
    assert [int(number) for number, _ in said] == [*range(8)]
    assert len({chance for _, chance in said}) == 8


def test_a_shell_script_may_ask_for_one(tmp_path):
    python = f"'{sys.executable}' -I -S '{forked_client.__file__}' '{forked.forking_process().address}'"
    line = f"cd '{tmp_path}' && echo in | {python} -c 'import sys; print(sys.stdin.read(), sys.argv); sys.exit(3)' a b"
    done = start_anew(["sh", "-c", line], text=True)
    assert (done.stdout, done.returncode) == ("in\n ['-c', 'a', 'b']\n", 3)


def test_it_ends_with_who_has_asked_for_it():
    python = [sys.executable, "-I", "-S", forked_client.__file__, forked.forking_process().address]
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    with subprocess.Popen([*python, "-c", code], stdout=subprocess.PIPE, text=True) as shell:
        pid = int(shell.stdout.readline())
        shell.kill()
    wait_for(lambda: not is_there(pid), "the fork to end")


def is_there(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
