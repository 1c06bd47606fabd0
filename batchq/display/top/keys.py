"""Keys of a terminal, as they are pressed; the terminal is left as it was found."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import Enum, auto

import anyio

from batchq.display.messages import is_terminal


class Key(Enum):
    """What a key asks for."""

    QUIT = auto()
    PAUSE = auto()
    UP = auto()
    DOWN = auto()
    PAGE_UP = auto()
    PAGE_DOWN = auto()
    FIRST = auto()
    LAST = auto()


_KEYS = {
    "q": Key.QUIT, "Q": Key.QUIT, "p": Key.PAUSE, " ": Key.PAUSE,
    "k": Key.UP, "j": Key.DOWN, "g": Key.FIRST, "G": Key.LAST,
    "\x1b[A": Key.UP, "\x1bOA": Key.UP, "\x1b[B": Key.DOWN, "\x1bOB": Key.DOWN,
    "\x1b[5~": Key.PAGE_UP, "\x1b[6~": Key.PAGE_DOWN,
    "\x1b[H": Key.FIRST, "\x1b[1~": Key.FIRST, "\x1bOH": Key.FIRST,
    "\x1b[F": Key.LAST, "\x1b[4~": Key.LAST, "\x1bOF": Key.LAST,
}  # fmt: skip
# A key that sends several characters, or one that sends one.
_PRESSED = re.compile(r"\x1b\[[0-9;]*[A-Za-z~]|\x1bO[A-Za-z]|.", re.DOTALL)
_MOST_BYTES = 256


class Keyboard:
    """The keyboard of the terminal on stdin, where there is one."""

    def __init__(self) -> None:
        """Find out whether there is one."""
        self.is_there = is_terminal(sys.stdin) and os.name == "posix"

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hear keys as they are pressed, unseen; Ctrl-C and Ctrl-Z stay signals."""
        if not self.is_there:
            yield
            return
        import termios
        import tty

        terminal = sys.stdin.fileno()
        found = termios.tcgetattr(terminal)
        try:
            tty.setcbreak(terminal, termios.TCSANOW)
            yield
        finally:
            with suppress(termios.error, OSError):  # the terminal is gone
                termios.tcsetattr(terminal, termios.TCSANOW, found)

    async def pressed(self) -> list[Key]:
        """Wait for keys, and return those that mean something. Without a keyboard that takes for ever."""
        if not self.is_there:
            await anyio.sleep_forever()
        terminal = sys.stdin.fileno()
        await anyio.wait_readable(terminal)
        try:
            typed = os.read(terminal, _MOST_BYTES)
        except OSError:
            typed = b""
        if not typed:  # hung up
            self.is_there = False
        return [_KEYS[key] for key in _PRESSED.findall(typed.decode(errors="replace")) if key in _KEYS]
