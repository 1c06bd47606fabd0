"""All checks in their order, each run whatever became of those before it, as far as there is something to look at."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from batchq.concealing import without_keys
from batchq.doctor.counts import check_tallies, check_whole
from batchq.doctor.file import check_file, judge_facts
from batchq.doctor.finding import Finding, Level, error, ok, warning
from batchq.doctor.guarding import CHECK_SECONDS, guarded, guarded_plain
from batchq.doctor.installation import check_batchq, check_python, check_sqlite
from batchq.doctor.log_file import check_log
from batchq.doctor.place import check_permissions, check_place
from batchq.doctor.provider import Wanted, check_endpoint
from batchq.doctor.told_settings import check_settings
from batchq.doctor.work import check_batches, check_clock, check_leases, check_moved, check_workers
from batchq.errors import BatchqError, ConfigurationError, DatabaseUnavailable, NoDatabase, SchemaMismatch
from batchq.jobs import BatchState, LiveBatch

if TYPE_CHECKING:
    from batchq.config import Settings
    from batchq.store.examining import Examined

_HOURS = 24 * 3600.0
_OPEN_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be looked at; `flags` are settings from the command line. `seconds` None asks no provider."""

    flags: Mapping[str, object] = field(default_factory=dict)
    seconds: float | None = 5.0
    full: bool = False


async def examine(asked: Asked) -> AsyncIterator[Finding]:
    """Yield what each check comes to. Raises nothing."""
    for name, plain in (("python", check_python), ("batchq", check_batchq), ("sqlite", check_sqlite)):
        for finding in guarded_plain(name, plain):
            yield finding
    settings, findings = _read_settings(asked.flags)
    for finding in findings:
        yield finding
    wanted: dict[str, Wanted] = {}
    async for finding in _examine_queue(_location(settings, asked.flags), settings, wanted, full=asked.full):
        yield finding
    if settings is None:
        return
    if settings.model and settings.model not in wanted.get("default", Wanted()).models:
        before = wanted.get("default", Wanted())
        wanted["default"] = Wanted(before.batches, (*before.models, settings.model))
    for endpoint in sorted({*settings.known_endpoints(), *wanted}):
        check = partial(check_endpoint, settings, endpoint, wanted.get(endpoint, Wanted()), seconds=asked.seconds)
        for finding in await guarded("endpoint", check):
            yield finding


def _read_settings(flags: Mapping[str, object]) -> tuple[Settings | None, list[Finding]]:
    from batchq.config import load_settings

    try:
        settings = load_settings(**flags)
    except BatchqError as failure:
        told = without_keys(str(failure))
        return None, [error("settings", told, "until that is mended, no command reads any setting")]
    return settings, guarded_plain("settings", partial(check_settings, settings))


def _location(settings: Settings | None, flags: Mapping[str, object]) -> str:
    """Return which queue is meant: where the settings can't be read, by what stands above them."""
    from batchq.config import DEFAULT_DB

    if settings is not None:
        return settings.db
    given = flags.get("db")
    return str(given) if given is not None else os.environ.get("BATCHQ_DB") or DEFAULT_DB


async def _examine_queue(
    location: str, settings: Settings | None, wanted: dict[str, Wanted], *, full: bool
) -> AsyncIterator[Finding]:
    from batchq.database import database_file

    try:
        path = database_file(location)
    except ConfigurationError as failure:
        yield error("database", str(failure))
        return
    if path is not None:
        chosen = settings is None or settings.layers.layer("db") is not None
        blocked = False
        for finding in _look_at_place(path, settings, chosen=chosen):
            blocked = blocked or _keeps_us_out(finding)
            yield finding
        if blocked:
            return
        for finding in await guarded("log", partial(check_log, path)):
            yield finding
    queue, findings = await _open(location)
    for finding in findings:
        yield finding
    if queue is None:
        return
    async with queue:
        async for finding in _examine_open(queue, wanted, full=full):
            yield finding


def _look_at_place(path: Path, settings: Settings | None, *, chosen: bool) -> Iterator[Finding]:
    found = guarded_plain("database", partial(check_file, path, chosen=chosen))
    allowed = settings is not None and settings.allow_network_fs
    if not path.is_dir():
        yield from guarded_plain("place", partial(check_place, path, network_allowed=allowed))
    yield from found
    if not found:
        yield from guarded_plain("permissions", partial(check_permissions, path))


def _keeps_us_out(finding: Finding) -> bool:
    """Whether there is nothing to open, or it would not do: a missing file is a warning where it is the default one."""
    return finding.name == "database" or (finding.level is Level.ERROR and finding.name in {"permissions", "place"})


async def _open(location: str) -> tuple[Examined | None, list[Finding]]:
    """Open the queue, and say what it is; None where nothing more can be asked of it."""
    import anyio

    from batchq.store.examining import open_to_look

    try:
        with anyio.fail_after(_OPEN_SECONDS):
            queue = await open_to_look(location)
    except TimeoutError:
        told = f"it could not be opened within {_OPEN_SECONDS:g} s"
        return None, [error("database", told, "see that the server is up, and has connections to give")]
    except SchemaMismatch as failure:
        return None, [error("schema", str(failure))]
    except NoDatabase as failure:
        return None, [error("database", str(failure))]
    except Exception as failure:  # noqa: BLE001 - whatever keeps it from being opened is the finding
        told = str(failure) if isinstance(failure, BatchqError) else f"{type(failure).__name__}: {failure}"
        return None, [error("database", without_keys(told), _advice_on(failure))]
    findings = [] if queue.facts is None or queue.file is None else [*judge_facts(queue.file, queue.facts)]
    if not any(finding.level is Level.ERROR for finding in findings):
        findings += await guarded("schema", partial(_check_schema, queue))
        if findings[-1].level is Level.OK:
            return queue, findings
    await queue.__aexit__(None, None, None)
    return None, findings


def _advice_on(failure: Exception) -> str:
    """Return what to do about a database that can't be opened, where its message does not say it."""
    if type(failure) is DatabaseUnavailable:
        return "see that it is up, that --db or BATCHQ_DB names it rightly, and its log"
    return "" if isinstance(failure, BatchqError) else "see its log"


async def _check_schema(queue: Examined) -> AsyncIterator[Finding]:
    from batchq.schema import SCHEMA_VERSION

    try:
        await queue.moment()
    except SchemaMismatch as failure:
        if "batchq db upgrade" in str(failure):  # the next command that opens the file does so, too
            yield warning("schema", str(failure), "stop older workers first: they can't go on with the upgraded file")
        else:
            yield error("schema", str(failure))
        return
    yield ok("schema", f"version {SCHEMA_VERSION}, as this batchq needs")


async def _examine_open(queue: Examined, wanted: dict[str, Wanted], *, full: bool) -> AsyncIterator[Finding]:
    checks = [
        ("queue", check_moved),
        ("clock", check_clock),
        ("workers", check_workers),
        ("leases", check_leases),
        ("batches", check_batches),
    ]
    if queue.file is None:
        from batchq.doctor.server import check_server, check_transactions, check_vacuum

        of_server = [("server", check_server), ("transactions", check_transactions), ("vacuum", check_vacuum)]
        checks = [*of_server, *checks]
    for name, check in checks:
        for finding in await guarded(name, partial(check, queue)):
            yield finding
    seconds = _HOURS if full else CHECK_SECONDS
    if full:
        for finding in await guarded("integrity", partial(check_whole, queue), seconds):
            yield finding
    for finding in await guarded("tallies", partial(check_tallies, queue, full=full), seconds):
        yield finding
    with suppress(Exception):  # whatever is wrong has been told
        _note_wanted((await queue.unfinished()).live, wanted)


def _note_wanted(live: Collection[LiveBatch], wanted: dict[str, Wanted]) -> None:
    """Note what unfinished batches ask of endpoints, of those whose workers call one."""
    for batch in (found.batch for found in live):
        if batch.state is BatchState.OPEN and batch.worker in _CALLING:
            before = wanted.get(batch.endpoint, Wanted())
            models = before.models if batch.model in before.models else (*before.models, batch.model)
            wanted[batch.endpoint] = Wanted((*before.batches, batch.name), models)


# The shipped workers that call an endpoint: what others do with one is theirs.
_CALLING = {"openrouter", "pydantic_ai"}
