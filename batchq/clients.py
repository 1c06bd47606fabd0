"""The clients of a worker process: each opened once, kept in a task of its own, closed at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import anyio
from anyio.abc import TaskGroup

from batchq.concealing import without_keys
from batchq.discovery import FoundWorker
from batchq.errors import BatchqError, ConfigurationError
from batchq.jobs import Serving
from batchq.worker import Endpoint, Handler

_Key = tuple[str, str]


class Clients:
    """Opens workers beside the loop that serves the others meanwhile.

    A client lives in one task from its opening to its closing: many own task groups or cancel scopes,
    which must be left by the task that entered them.
    """

    def __init__(
        self, workers: Mapping[str, FoundWorker], endpoints: Mapping[str, Endpoint], on_change: Callable[[], None]
    ) -> None:
        """Offer every worker at every endpoint; `on_change` is called when one opened or failed."""
        self._workers = workers
        self._endpoints = endpoints
        self._on_change = on_change
        self._opening: set[_Key] = set()
        self._handlers: dict[_Key, Handler] = {}
        self._failures: dict[_Key, BatchqError] = {}
        self._closing = anyio.Event()

    @property
    def serving(self) -> tuple[Serving, ...]:
        """What can be served: all that did not fail to open."""
        return tuple(
            Serving(worker, endpoint.name, endpoint.base_url, opened=(worker, endpoint.name) in self._handlers)
            for worker in self._workers
            for endpoint in self._endpoints.values()
            if (worker, endpoint.name) not in self._failures
        )

    @property
    def busy(self) -> bool:
        """Whether a client is being opened."""
        return len(self._opening) > len(self._handlers) + len(self._failures)

    @property
    def failure(self) -> BatchqError | None:
        """Why a client that was needed could not be opened, if so."""
        return next(iter(self._failures.values()), None)

    def handler(self, worker: str, endpoint: str) -> Handler:
        """Return an open worker."""
        return self._handlers[worker, endpoint]

    def open(self, serving: Serving, group: TaskGroup) -> None:
        """Start opening a client, unless that has begun."""
        key = (serving.worker, serving.endpoint)
        if key not in self._opening:
            self._opening.add(key)
            group.start_soon(self._keep, key)

    def close(self) -> None:
        """Let every client close."""
        self._closing.set()

    async def _keep(self, key: _Key) -> None:
        worker, endpoint = self._workers[key[0]], self._endpoints[key[1]]
        try:
            async with worker.open(endpoint) as handler:
                self._handlers[key] = handler
                self._on_change()
                await self._closing.wait()
        except BatchqError as error:
            self._failures[key] = error
        except Exception as error:  # noqa: BLE001 - a plug-in may raise anything
            if key not in self._handlers:  # what fails while closing has served already
                reason = f"worker {key[0]} can't be opened: {type(error).__name__}: {without_keys(str(error))}"
                self._failures[key] = ConfigurationError(reason)
        self._on_change()
