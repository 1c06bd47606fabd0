"""A terminal of a size of its own, with a program on it: its screen can be read, its keys pressed."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import forked
import pyte
from processes import DEADLINE, wait_for
from pyte.screens import Char


class Terminal:
    """What a person has before them."""

    def __init__(self, columns: int, lines: int) -> None:
        self.ours, self.theirs = pty.openpty()
        self.sent = bytearray()
        self._emulator = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self._emulator)
        self._lock = threading.Lock()
        self._resize(columns, lines)
        self.modes = termios.tcgetattr(self.theirs)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with suppress(OSError):  # the other side is closed
            while data := os.read(self.ours, 65536):
                with self._lock:
                    self.sent.extend(data)
                    self._stream.feed(data)

    def _resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def lines(self) -> list[str]:
        """The screen, line by line."""
        with self._lock:
            return [line.rstrip() for line in self._emulator.display]

    def shown(self) -> str:
        """The screen."""
        return "\n".join(self.lines())

    def cells(self) -> list[list[Char]]:
        """The screen, character by character, with colours."""
        with self._lock:
            rows, columns = range(self._emulator.lines), range(self._emulator.columns)
            return [[self._emulator.buffer[row][column] for column in columns] for row in rows]

    def styles(self) -> set[str]:
        """The colours on the screen."""
        with self._lock:
            return {cell.fg for row in self._emulator.buffer.values() for cell in row.values()}

    def resize(self, columns: int, lines: int, process: subprocess.Popen[bytes]) -> None:
        """Make the window another size, and say so to whom it concerns."""
        with self._lock:
            self._emulator.resize(lines, columns)
        self._resize(columns, lines)
        process.send_signal(signal.SIGWINCH)

    def press(self, keys: str) -> None:
        """Type."""
        os.write(self.ours, keys.encode())

    def wait_for(self, *texts: str, deadline: float = DEADLINE) -> str:
        """Return the screen once it shows all of these."""

        def found() -> str | None:
            shown = self.shown()
            return shown if all(text in shown for text in texts) else None

        try:
            return wait_for(found, repr(texts), deadline)
        except AssertionError as error:
            raise AssertionError(f"{error}; there is\n{self.shown()}") from None

    def wait_until_gone(self, text: str, deadline: float = DEADLINE) -> None:
        """Wait until the screen shows this no more."""
        wait_for(lambda: text not in self.shown(), f"{text!r} to go", deadline)

    def is_as_before(self) -> bool:
        """Whether it takes keys as it did, shows its cursor, and is back from its other screen."""
        raw = self.sent.decode(errors="replace")
        left = raw.rfind("\x1b[?1049l") > raw.rfind("\x1b[?1049h")
        shows_cursor = raw.rfind("\x1b[?25h") >= raw.rfind("\x1b[?25l")
        return left and shows_cursor and termios.tcgetattr(self.theirs) == self.modes

    def close(self) -> None:
        os.close(self.theirs)
        self._reader.join(DEADLINE)
        os.close(self.ours)


@contextmanager
def on_terminal(
    directory: Path, environment: Mapping[str, str], *arguments: str, columns: int = 100, lines: int = 30
) -> Iterator[tuple[Terminal, subprocess.Popen[bytes]]]:
    """Run a batchq command on a terminal; ended, if it still runs, by its id."""
    terminal = Terminal(columns, lines)
    sized = {name: value for name, value in environment.items() if name not in {"COLUMNS", "LINES", "NO_COLOR"}}
    chosen = {name: value for name, value in environment.items() if name == "NO_COLOR"}
    try:
        process = forked.Popen(
            [sys.executable, "-m", "batchq", *arguments],
            cwd=directory,
            env={"TERM": "xterm-256color"} | sized | chosen,
            stdin=terminal.theirs,
            stdout=terminal.theirs,
            stderr=terminal.theirs,
        )
        try:
            yield terminal, process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait(DEADLINE)
    finally:
        terminal.close()
