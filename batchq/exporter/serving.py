"""Serves metrics over HTTP: each request reads the queue, or what was read a moment ago."""

from __future__ import annotations

import signal
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from socketserver import ThreadingMixIn
from threading import Thread
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import anyio
from anyio.from_thread import BlockingPortal
from prometheus_client import CollectorRegistry, generate_latest, make_wsgi_app
from prometheus_client.core import Metric

from batchq.errors import ConfigurationError
from batchq.exporter.families import families_of
from batchq.exporter.measuring import Measuring
from batchq.store import Store

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

_PAGES = {
    "/": (200, b"batchq: metrics are at /metrics\n"),
    "/healthz": (200, b"ok\n"),
}
_STATUS = {200: "200 OK", 404: "404 Not Found"}


class _Collector:
    """Asks the event loop for a measurement, from whichever thread answers a request."""

    def __init__(self, portal: BlockingPortal, measuring: Measuring) -> None:
        self._portal = portal
        self._measuring = measuring

    def collect(self) -> Iterator[Metric]:
        return iter(self._portal.call(self._measure))

    async def _measure(self) -> list[Metric]:
        """Make the page on the loop, which counts: another look would change it under a thread's hands."""
        measured = await self._measuring.measure()
        return list(families_of(measured, self._measuring.counted))

    def describe(self) -> list[Metric]:
        """Tell nothing before the queue is open: the registry would read it."""
        return []


async def serve_metrics(
    opening: Callable[[], Awaitable[Store]], address: tuple[str, int], cache: float, say: Callable[[str], None]
) -> int:
    """Serve until SIGTERM or SIGINT; return the exit code. Raises ConfigurationError where nobody can listen there."""
    with _bound(address) as server, anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with BlockingPortal() as portal:
            measuring = Measuring(opening, cache, say)
            await measuring.measure()  # counts begin here, not with the first scrape
            server.set_app(_application(portal, measuring))
            with _answering(server):
                say(f"batchq: metrics at http://{_shown_host(address[0])}:{server.server_port}/metrics")
                number = await anext(aiter(signals))
            await measuring.close()
            await portal.stop(cancel_remaining=True)
    return 0 if number is signal.SIGTERM else 128 + number


async def print_metrics(opening: Callable[[], Awaitable[Store]], say: Callable[[str], None]) -> int:
    """Write what can be read at once to stdout, as a file of Prometheus' text format; return the exit code.

    There are no counters: they would be 0 each time.
    """
    measuring = Measuring(opening, 0, say)
    measured = await measuring.measure()
    await measuring.close()

    class Once:
        def collect(self) -> Iterable[Metric]:
            return families_of(measured, None)

    registry = CollectorRegistry()
    registry.register(Once())
    sys.stdout.write(generate_latest(registry).decode())
    return 0


def _application(portal: BlockingPortal, measuring: Measuring) -> WSGIApplication:
    registry = CollectorRegistry()
    registry.register(_Collector(portal, measuring))
    metrics = make_wsgi_app(registry)

    def answer(environment: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        path = environment.get("PATH_INFO", "/")
        if path == "/metrics":
            page: Iterable[bytes] = metrics(environment, start)
            return page
        status, body = _PAGES.get(path, (404, b"metrics are at /metrics\n"))
        start(_STATUS[status], [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))])
        return [body]

    return answer


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    block_on_close = False


class _SilentHandler(WSGIRequestHandler):
    """Logs no request: Prometheus asks again and again. One that says nothing is let go."""

    timeout = 30

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass


@contextmanager
def _bound(address: tuple[str, int]) -> Iterator[_Server]:
    """Bind the address; nobody is answered yet."""
    try:
        server = _server_for(address)
    except (OSError, OverflowError) as error:
        host, port = address
        raise ConfigurationError(
            f"can't listen at {host}:{port}: {getattr(error, 'strerror', None) or error}"
        ) from None
    try:
        yield server
    finally:
        server.server_close()


@contextmanager
def _answering(server: _Server) -> Iterator[None]:
    """Answer requests in threads."""
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()


def _server_for(address: tuple[str, int]) -> _Server:
    import socket

    family = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0][0]
    kind = type("_Server", (_Server,), {"address_family": family, "server_bind": _bind})
    server: _Server = kind(address, _SilentHandler)
    return server


def _bind(server: _Server) -> None:
    """Bind without asking a name server what the address is called, which may take long."""
    from socketserver import TCPServer

    TCPServer.server_bind(server)
    server.server_name, server.server_port = server.server_address[:2]  # type: ignore[assignment]
    server.setup_environ()


def _shown_host(host: str) -> str:
    return f"[{host}]" if ":" in host else host
