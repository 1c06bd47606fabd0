"""A TCP proxy that can go silent with its connections open, slow down, and reset them."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

HOST = "127.0.0.1"


@dataclass
class Link:
    """A caller's connection and the one to the server; `silent` says which ways are swallowed: "up", "down"."""

    caller: socket.socket
    server: socket.socket
    silent: frozenset[str]
    ended: int = 0


class TcpProxy:
    """Carries bytes between callers and a port of this machine; its attributes may be changed while it does."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._door = socket.create_server((HOST, 0))
        self.port: int = self._door.getsockname()[1]
        self.delay = 0.0
        self.silent_for_new: frozenset[str] = frozenset()
        self.made = 0
        self._links: list[Link] = []
        self._lock = threading.Lock()
        self._closing = False
        self._threads = [threading.Thread(target=self._serve)]
        self._threads[0].start()

    def go_silent(self, *ways: str) -> None:
        """Keep all connections open and carry nothing more that way."""
        for link in list(self._links):
            link.silent = frozenset(ways)

    def reset(self) -> None:
        """Break all connections off, without a farewell."""
        with self._lock:
            for link in self._links:
                for end in (link.caller, link.server):
                    _break(end)

    def close(self) -> None:
        self._closing = True
        # Closing a socket does not wake the thread that waits at it; a caller does.
        socket.create_connection((HOST, self.port)).close()
        self._threads[0].join()
        self.reset()
        for thread in self._threads[1:]:
            thread.join()
        self._door.close()

    def _serve(self) -> None:
        while True:
            caller, _ = self._door.accept()
            if self._closing:
                caller.close()
                return
            try:
                server = socket.create_connection((HOST, self._target))
            except OSError:
                caller.close()
                continue
            self.made += 1
            link = Link(caller, server, self.silent_for_new)
            self._links.append(link)
            for way, source, sink in (("up", caller, server), ("down", server, caller)):
                self._threads.append(threading.Thread(target=self._carry, args=(link, way, source, sink)))
                self._threads[-1].start()

    def _carry(self, link: Link, way: str, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                time.sleep(self.delay)
                if way not in link.silent:
                    sink.sendall(data)
        if way not in link.silent:  # who has gone silent does not say goodbye either
            with suppress(OSError):
                sink.shutdown(socket.SHUT_RDWR)
        with self._lock:
            link.ended += 1
            if link.ended == 2:
                link.caller.close()
                link.server.close()
                self._links.remove(link)


def _break(end: socket.socket) -> None:
    with suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        end.shutdown(socket.SHUT_RDWR)


@contextmanager
def tcp_proxy(target: int) -> Iterator[TcpProxy]:
    proxy = TcpProxy(target)
    try:
        yield proxy
    finally:
        proxy.close()
