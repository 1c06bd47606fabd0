"""Python processes that import nothing anew: one process has imported what batchq needs, and forks for each of them.

A fork is a process as any other, with a pid, signals, a directory, an environment, streams and an exit code of its
own, and runs `-m MODULE`, `-c CODE`, `-` or a script as its `__main__`. What is about imports takes `subprocess`.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn, TextIO

from forked_client import ask

# Commands look at their streams when they are imported, `__main__` runs, and pytest is no part of a command.
NOT_IMPORTED = ("batchq.cli", "batchq.__main__", "batchq.testing.fixtures")
# What batchq and the libraries under it import when they need it.
IMPORTED_LATE = (
    "aiohttp.web",
    "anyio._backends._asyncio",
    "genai_prices",
    "openai.resources.chat",
    "sqlalchemy.dialects.sqlite.aiosqlite",
    "uvloop",
)
MOST_FILES = 1024  # that `select` takes


# In the process of the tests


class Popen(subprocess.Popen):
    """`subprocess.Popen`, for commands that begin with the Python that runs the tests."""

    def _execute_child(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *others) -> None:
        """Ask for a fork where a process would be started."""
        pipes, new_session = others[3:9], others[-2]
        interpreter, *arguments = map(str, args)
        assert interpreter == sys.executable
        streams = [number if file == -1 else file for number, file in enumerate((pipes[0], pipes[3], pipes[5]))]
        request = {
            "arguments": arguments,
            "directory": str(cwd or Path.cwd()),
            "environment": dict(os.environ if env is None else env),
            "new_session": new_session,
        }
        with ask(forking_process().address, request, streams) as told:
            self._told = told.makefile()
        self.pid = int(self._told.readline())
        self._child_created = True
        self._close_pipe_fds(*pipes)

    def _internal_poll(self, _deadstate: int | None = None) -> int | None:
        """Look whether the exit code has been told."""
        return self._exit_code_within(0)

    def _wait(self, timeout: float | None) -> int:
        """Wait until the exit code is told."""
        code = self._exit_code_within(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return code

    def _exit_code_within(self, seconds: float | None) -> int | None:
        if self.returncode is None and select.select([self._told], [], [], seconds)[0]:
            self.returncode = int(self._told.readline())
            self._told.close()
        return self.returncode


def run(args: list[object], *, input: str | None = None, timeout: float | None = None, **options: Any):  # noqa: A002
    """`subprocess.run` with captured output."""
    pipe = subprocess.PIPE
    stdin = options.pop("stdin", None) if input is None else pipe
    with Popen(args, stdin=stdin, stdout=pipe, stderr=pipe, **options) as process:
        try:
            out, err = process.communicate(input, timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


class ForkingProcess:
    """The process that forks, as the tests see it; it ends when its standard input does."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="forks-")
        self.address = str(Path(self._directory.name) / "s")
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(self.address)
            listening.listen(100)
            number = listening.fileno()
            command = [sys.executable, __file__, str(number)]
            # A fork has the PYTHONPATH of its own environment.
            clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
            self._process = subprocess.Popen(command, env=clean, pass_fds=[number], stdin=subprocess.PIPE)

    def end(self) -> None:
        """End it."""
        self._process.communicate()
        self._directory.cleanup()


@cache
def forking_process() -> ForkingProcess:
    """Start it when the first process is asked for."""
    started = ForkingProcess()
    atexit.register(started.end)
    return started


# In the process that forks


@dataclass(frozen=True)
class Fork:
    """A fork, and who has asked for it."""

    pid: int
    caller: socket.socket

    def tell(self, number: int) -> None:
        """Tell its pid or its exit code."""
        with suppress(BrokenPipeError):
            self.caller.sendall(f"{number}\n".encode())


def serve(listening: socket.socket) -> dict[str, Any] | None:
    """Fork for each request until there are no more; return in each fork, with the request, and at the end."""
    ended = hear_of_the_ended()
    forks: list[Fork] = []
    while True:
        ready, _, _ = select.select([sys.stdin, listening, ended, *(fork.caller for fork in forks)], [], [])
        if ended in ready:
            os.read(ended, 4096)
            tell_the_ended(forks)
        for fork in forks:
            if {fork.caller, sys.stdin} & {*ready}:
                os.kill(fork.pid, signal.SIGKILL)
        if sys.stdin in ready:
            return None
        if listening in ready:
            caller, _ = listening.accept()
            _, streams, _, _ = socket.recv_fds(caller, 1, 3)
            with caller.makefile() as line:
                request = json.loads(line.readline())
            if not (pid := os.fork()):
                for each in (listening, caller, *(fork.caller for fork in forks)):
                    each.detach()
                take_streams(streams)
                return request
            for stream in streams:
                os.close(stream)
            forks.append(Fork(pid, caller))
            forks[-1].tell(pid)


def hear_of_the_ended() -> int:
    """Return a file that can be read when a fork has ended."""
    ended, wakeup = os.pipe()
    os.set_blocking(wakeup, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.set_wakeup_fd(wakeup)
    return ended


def tell_the_ended(forks: list[Fork]) -> None:
    """Tell the exit code of each fork that has ended, and forget it."""
    for fork in [*forks]:
        pid, status = os.waitpid(fork.pid, os.WNOHANG)
        if pid:
            fork.tell(os.waitstatus_to_exitcode(status))
            fork.caller.close()
            forks.remove(fork)


def import_everything() -> None:
    """Import what commands and workers may import, of what is installed."""
    for name in [*modules_of("batchq"), *modules_of("batchq_workers"), *IMPORTED_LATE]:
        if not name.startswith(NOT_IMPORTED):
            with suppress(ImportError):
                import_module(name)


def modules_of(package: str) -> list[str]:
    """Return the names of all modules of a package."""
    path = import_module(package).__path__
    return [module.name for module in pkgutil.walk_packages(path, f"{package}.", onerror=lambda _: None)]


# In a fork


def take_streams(files: list[int]) -> None:
    """Make these the standard streams, and close all else."""
    for number, file in enumerate(files):
        os.dup2(file, number)
    os.closerange(3, MOST_FILES)
    sys.stdin = sys.__stdin__ = opened_anew(sys.stdin)
    sys.stdout = sys.__stdout__ = opened_anew(sys.stdout)
    sys.stderr = sys.__stderr__ = opened_anew(sys.stderr)
    sys.stderr.reconfigure(line_buffering=True)


def opened_anew(stream: TextIO) -> TextIO:
    """Open a standard stream as Python has opened it at its start."""
    return open(
        stream.fileno(), stream.mode, encoding=stream.encoding, errors=stream.errors, newline="\n", closefd=False
    )


def become(request: dict[str, Any]) -> None:
    """Be a process of that directory and environment, with nothing heard of signals."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if request["new_session"]:
        os.setsid()
    os.chdir(request["directory"])
    os.environ.clear()
    os.environ.update(request["environment"])
    time.tzset()
    sys.dont_write_bytecode = bool(os.environ.get("PYTHONDONTWRITEBYTECODE"))
    sys.path[1:1] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))


def run_python(what: str, *arguments: str) -> None:
    """Do what Python does with these arguments."""
    match what:
        case "-m":
            module, *sys.argv = arguments
            sys.argv.insert(0, module)
            sys.path[0] = str(Path.cwd())
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        case "-c":
            code, *rest = arguments
            sys.argv = ["-c", *rest]
            sys.path[0] = ""
            run_main(compile(code, "<string>", "exec"))
        case "-":
            sys.argv = ["-", *arguments]
            sys.path[0] = ""
            run_main(compile(sys.stdin.read(), "<stdin>", "exec"), "<stdin>")
        case script:
            sys.argv = [script, *arguments]
            path = Path(script).resolve()
            sys.path[0] = str(path.parent)
            run_main(compile(path.read_bytes(), path, "exec"), str(path))


def run_main(code: Any, file: str | None = None) -> None:
    """Run code as `__main__`."""
    main = ModuleType("__main__")
    if file:
        main.__file__ = file
    sys.modules["__main__"] = main
    exec(code, vars(main))


def leave(code: int) -> NoReturn:
    """End as Python does, but for clearing its memory, which takes longer than most commands."""
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.modules["__main__"] = ModuleType("__main__")
    gc.collect()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main() -> None:
    """Fork, and be what was asked for in each fork."""
    import_everything()
    gc.collect()
    gc.freeze()
    assert threading.active_count() == 1, "a fork has only one of its parent's threads"
    request = serve(socket.socket(fileno=int(sys.argv[1])))
    if not request:
        return
    become(request)
    code = 0
    try:
        run_python(*request["arguments"])
    except SystemExit as ended:
        code = ended.code or 0
        if not isinstance(code, int):
            raise
    leave(code)


if __name__ == "__main__":
    main()
