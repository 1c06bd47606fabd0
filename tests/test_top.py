"""`batchq top` on a real terminal: what it shows, how it ends, and what it leaves behind."""

from __future__ import annotations

import asyncio
import signal

import psycopg
import pytest
from fake_provider import running_provider
from postgres import plain
from processes import ON_BOTH, bench, bench_for, wait_for
from raw_connection import connect
from terminal import on_terminal

from batchq import open_queue

EVIL = "\x1b[2J\x1b]52;c;ZXZpbA==\x07\u202eevil\x9b31m"
OPENROUTER = {"worker": "openrouter", "model": "m/large"}
ECHO = {"worker": "echo"}


@pytest.fixture
def place(request, tmp_path):
    with bench_for(request, tmp_path, TERM="xterm-256color") as made:
        yield made


def top(place, *arguments, **size):
    return on_terminal(place.directory, place.environment, "top", "--interval", "200ms", *arguments, **size)


def in_queue(place, use):
    async def main():
        async with open_queue(str(place.database)) as queue:
            return await use(queue)

    return asyncio.run(main())


def enqueue(place, *batches):
    async def add(queue):
        for name, count, options in batches:
            await queue.enqueue([f"{name} {i}" for i in range(count)], batch=name, **options)

    in_queue(place, add)


@ON_BOTH
def test_top_shows_batches_lanes_workers_and_errors_as_they_are(place):
    with running_provider(latency=0.1, error_mix="400:0.1", seed=3) as provider:
        enqueue(place, ("demo", 3_000, OPENROUTER | {"budget": 5}), ("later", 2, ECHO))
        in_queue(place, lambda queue: queue.set_limits("m/large", max_inflight=6, base_url=provider.base_url))
        serve = ["worker", "--worker", "openrouter", "--base-url", provider.base_url, "-c", "4", "--lease", "1s"]
        worker, other = place.start(*serve), place.start(*serve)
        with top(place) as (terminal, process):
            shown = terminal.wait_for("running", "/3,000", "bad_request", "$5.0000", "/s", "(", "2 workers, 6 of 8")
            lines = {line.split()[0]: line.split() for line in shown.splitlines() if line.strip()}
            done, total = (int(number.replace(",", "")) for number in lines["demo"][4].split("/"))
            assert 0 < done < total == 3_000
            assert lines["later"][1] == "waiting"
            assert "no live worker serves echo" in shown
            assert lines["m/large"][1:4] == [provider.base_url.removeprefix("https://"), "6", "6"]
            (error,) = [line.split() for line in shown.splitlines() if "bad_request" in line]
            assert error[1:4] == ["bad_request", "demo", "at"]

            other.kill()
            terminal.wait_for("it died")
            terminal.wait_until_gone(f":{other.pid}")
            terminal.wait_for("1 worker, ", f":{worker.pid}")

            terminal.press("q")
            assert process.wait(20) == 0
            wait_for(terminal.is_as_before, "the terminal as it was")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_it_and_leaves_the_terminal_as_it_was(place, number, code):
    enqueue(place, ("demo", 1, ECHO))
    with top(place) as (terminal, process):
        terminal.wait_for("demo")
        assert not terminal.is_as_before()
        process.send_signal(number)
        assert process.wait(20) == code
        wait_for(terminal.is_as_before, "the terminal as it was")
        assert "Traceback" not in terminal.sent.decode()


def test_it_gives_the_terminal_back_while_it_is_stopped(place):
    enqueue(place, ("demo", 1, ECHO))
    with top(place) as (terminal, process):
        terminal.wait_for("demo")
        process.send_signal(signal.SIGTSTP)
        wait_for(terminal.is_as_before, "the terminal to be given back")
        process.send_signal(signal.SIGCONT)
        wait_for(lambda: not terminal.is_as_before(), "the screen again")
        terminal.press("q")
        assert process.wait(20) == 0
        wait_for(terminal.is_as_before, "the terminal as it was")


def test_a_batch_that_is_deleted_ends_it_with_a_sentence_on_the_screen_that_was(place):
    enqueue(place, ("demo", 1, ECHO), ("other", 1, ECHO))
    with top(place, "--batch", "demo") as (terminal, process):
        assert "other" not in terminal.wait_for("demo")
        with connect(place.database) as connection:
            for table, column in (("jobs", "batch_id"), ("tallies", "batch_id"), ("batches", "id")):
                connection.execute(f"DELETE FROM {table} WHERE {column} = 1", [])
        assert process.wait(20) == 2
        wait_for(terminal.is_as_before, "the terminal as it was")
        assert "there is no batch 'demo'" in terminal.sent.decode().rpartition("\x1b[?1049l")[2]


def test_keys_scroll_the_batches_and_pause_the_picture(place):
    enqueue(place, *((f"batch-{number:02}", 1, ECHO) for number in range(30)))
    with top(place, lines=16) as (terminal, process):
        terminal.wait_for("batch-29", "more")
        terminal.press("\x1b[B\x1b[B")
        terminal.wait_until_gone("batch-28")
        terminal.press("\x1b[6~")
        terminal.wait_until_gone("batch-27")
        terminal.press("G")
        terminal.wait_for("batch-00")
        terminal.press("\x1bOH")
        terminal.wait_for("batch-29")

        terminal.press("p")
        terminal.wait_for("PAUSED")
        enqueue(place, ("new", 1, ECHO))
        terminal.press("j")  # drawn again, and not looked again
        terminal.wait_until_gone("batch-29")
        terminal.press("kx\x1b[99Z\xe9")
        assert "new" not in terminal.wait_for("batch-29")
        terminal.press("p")
        terminal.wait_for("new")
        assert process.poll() is None


def test_it_fits_whatever_window_there_is(place):
    enqueue(place, ("a batch with a name that is long", 5, ECHO), ("wide 日本語の名前がとても長い場合", 5, ECHO))
    place.start("worker", "--worker", "echo", "--lease", "2s")
    with top(place) as (terminal, process):
        terminal.wait_for("finished", "echo", "wide 日本")
        for columns, lines in ((40, 10), (20, 5), (40, 30), (200, 60), (1, 1), (80, 24)):
            terminal.resize(columns, lines, process)
            if columns >= 20:
                wanted = ["a batc", "WORKER"] if lines >= 10 else ["2 more"]
                shown = terminal.wait_for(*wanted, *(["UP"] if columns > 40 else []))
                assert len(shown.splitlines()) <= lines
        assert process.poll() is None


def test_without_colours_the_bar_can_still_be_read(place):
    enqueue(place, ("demo", 4, ECHO))
    assert place.run("worker", "--worker", "echo", "--until-empty").returncode == 0
    place.environment["NO_COLOR"] = "1"
    with top(place) as (terminal, _):
        terminal.wait_for("100%", "━━━━━━")
        assert terminal.styles() == {"default"}


@pytest.mark.parametrize("terminal_name", ["dumb", None])
def test_where_nothing_can_be_drawn_it_names_the_plain_form(place, terminal_name):
    enqueue(place, ("demo", 1, ECHO))
    piped = place.run("top")
    assert (piped.returncode, piped.stdout) == (2, "")
    assert "`batchq status --watch` is the plain form" in piped.stderr
    environment = {name: value for name, value in place.environment.items() if name != "TERM"}
    environment |= {"TERM": terminal_name or ""}
    with on_terminal(place.directory, environment, "top") as (terminal, process):
        assert process.wait(20) == 2
        shown = terminal.wait_for("status --watch").replace("\n", "")
        assert "\x1b[?1049h" not in terminal.sent.decode()
        assert "can't be drawn on" in shown


@pytest.mark.parametrize("arguments", [["--interval", "0s"], ["--batch", "damo"]])
def test_what_can_not_be_watched_is_said_before_anything_is_drawn(place, arguments):
    enqueue(place, ("demo", 1, ECHO))
    with on_terminal(place.directory, place.environment, "top", *arguments) as (terminal, process):
        assert process.wait(20) == 2
        terminal.wait_for("at least 100ms" if "0s" in arguments else "did you mean 'demo'?")
        assert "\x1b[?1049h" not in terminal.sent.decode()


def test_nothing_from_outside_moves_the_cursor(place):
    enqueue(place, ("demo", 1, ECHO), ("halted", 1, OPENROUTER))
    in_queue(place, lambda queue: queue.set_limits("m/large", rpm=5))
    with connect(place.database) as connection:
        connection.execute("UPDATE batches SET name = ? WHERE name = 'demo'", [f"a{EVIL}"])
        connection.execute("UPDATE lanes SET halted_at = 1, probe_at = 1, reason = ?, model = ?", [EVIL, EVIL])
        connection.execute(
            "INSERT INTO runners (id, host, pid, concurrency, in_flight, serves, endpoints, lease_ms, started_at, seen_at,"
            " version) VALUES ('r', ?, 1, 1, 0, ?, '{}', 9000000000000, 1, 1, ?)", [EVIL] * 3,
        )  # fmt: skip
    with top(place, columns=160) as (terminal, _):
        shown = terminal.wait_for("a\\x1b[2J", "halted since", "\\x1b[2J\\x1b]52;c;ZXZpbA==\\x07\\u202eevil")
        assert shown.count("\\u202eevil") >= 3
        raw = terminal.sent.decode()
    # Drawn on a screen of its own: that one is cleared, nothing else.
    for sign in ("\x1b]", "\x07", "\u202e", "\x9b", "\x1b[2J\x1b]"):
        assert sign not in raw, sign


def test_a_file_that_goes_away_is_missed_and_welcomed_back(place):
    enqueue(place, ("demo", 7, ECHO))
    file, elsewhere = place.database, place.database.with_name("elsewhere.db")
    with top(place) as (terminal, process):
        terminal.wait_for("0/7")
        for log in ("-wal", "-shm"):
            file.with_name(file.name + log).unlink()
        file.rename(elsewhere)
        shown = terminal.wait_for("the database is away, asking again; this is of ")
        assert "0/7" in shown
        elsewhere.rename(file)
        terminal.wait_until_gone("the database is away")
        terminal.wait_for("0/7")
        assert process.poll() is None


def test_a_server_that_goes_away_is_waited_for(tmp_path, postgres, postgres_url):
    with bench(tmp_path, TERM="xterm-256color", BATCHQ_DB=postgres_url) as place:
        enqueue(place, ("demo", 7, ECHO))
        name = plain(postgres_url).rpartition("/")[2].partition("?")[0]
        with top(place) as (terminal, process), postgres.connect() as connection:
            terminal.wait_for("0/7")
            connection.execute(f'ALTER DATABASE "{name}" WITH ALLOW_CONNECTIONS false')
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
            terminal.wait_for("the database is away, asking again; this is of ", "0/7")
            connection.execute(f'ALTER DATABASE "{name}" WITH ALLOW_CONNECTIONS true')
            terminal.wait_until_gone("the database is away")
            assert process.poll() is None


assert psycopg
