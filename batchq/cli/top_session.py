"""A session of `batchq top`: looks, draws, hears keys and signals, and leaves the terminal as it was."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import AsyncIterable
from contextlib import ExitStack

import anyio
from rich.console import Console
from rich.live import Live

from batchq.cli.opening import open_queue
from batchq.display.top import Key, Keyboard, Screen
from batchq.overview import Away, Onlooker
from batchq.process import beside

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


async def show_top(location: str, name: str | None, interval: float) -> int:
    """Show the queue, or one batch of it, until a key or a signal ends that; return the exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a name that the terminal has no letters for
    async with Onlooker(lambda: open_queue(location), name) as onlooker:
        session = _Session(onlooker, interval)
        with anyio.open_signal_receiver(*_ENDING, signal.SIGWINCH, signal.SIGTSTP) as signals, session:
            return await beside(lambda: session.hear(signals), session.look, session.type)


class _Session:
    """The terminal while it is drawn on; a context manager."""

    def __init__(self, onlooker: Onlooker, interval: float) -> None:
        self._onlooker = onlooker
        self._interval = interval
        self._keyboard = Keyboard()
        self._screen = Screen(interval, self._keyboard.is_there)
        self._live = Live(
            self._screen, console=Console(), screen=True, auto_refresh=False, redirect_stdout=False,
            redirect_stderr=False,
        )  # fmt: skip
        self._terminal = ExitStack()
        self._quit = anyio.Event()

    def __enter__(self) -> None:
        self._terminal.enter_context(self._keyboard.listening())
        self._terminal.enter_context(self._live)

    def __exit__(self, *_error: object) -> None:
        self._terminal.close()

    async def look(self) -> None:
        """Look at the queue again and again."""
        while True:
            due = anyio.current_time() + self._interval
            if not self._screen.paused:
                found = await self._onlooker.look()
                if isinstance(found, Away):
                    self._screen.lose(found.reason)
                else:
                    self._screen.show(found, self._onlooker.paces)
                self._live.refresh()
            await anyio.sleep_until(due)

    async def type(self) -> None:
        """Do what the keys ask for."""
        moves = {Key.UP: -1, Key.DOWN: 1, Key.FIRST: -(10**9), Key.LAST: 10**9}
        while True:
            for key in await self._keyboard.pressed():
                page = self._screen.page
                match key:
                    case Key.QUIT:
                        self._quit.set()
                    case Key.PAUSE:
                        self._screen.paused = not self._screen.paused
                    case Key.PAGE_UP | Key.PAGE_DOWN:
                        self._screen.scroll(page if key is Key.PAGE_DOWN else -page)
                    case _:
                        self._screen.scroll(moves[key])
            self._live.refresh()

    async def hear(self, signals: AsyncIterable[signal.Signals]) -> int:
        """Hear signals until one, or a key, ends this; return the exit code."""
        async with anyio.create_task_group() as group:
            code = 0

            async def listen() -> None:
                nonlocal code
                async for number in signals:
                    if number in _ENDING:
                        code = 128 + number
                        self._quit.set()
                    elif number == signal.SIGTSTP:
                        self._stand_still()
                    else:
                        self._live.refresh()

            group.start_soon(listen)
            await self._quit.wait()
            group.cancel_scope.cancel()
        return code

    def _stand_still(self) -> None:
        """Give the terminal back to the shell until it lets this process go on."""
        self._terminal.close()
        os.kill(os.getpid(), signal.SIGSTOP)
        self.__enter__()
        self._live.refresh()
