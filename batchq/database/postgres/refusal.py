"""What PostgreSQL's refusals mean, in batchq's exceptions.

SQLSTATEs: postgresql.org/docs/current/errcodes-appendix.html.
"""

from __future__ import annotations

import re

from sqlalchemy.exc import DBAPIError

from batchq.errors import ConfigurationError, DatabaseUnavailable, DataRefused, NoDatabase, StoreError

# Lost to another transaction; nothing was done, and the same again may well succeed.
_CONFLICTS = {"40001", "40P01"}
_LOCKED = "55P03"
# Whoever stands between has given us another server connection, which knows no statement of ours.
_PREPARED_ELSEWHERE = {"26000", "42P05"}
_READ_ONLY = "25006"
_NO_TABLE = "42P01"
_NO_DATABASE = "3D000"
_NO_PERMISSION = "42501"
_NO_SCHEMA = "3F000"
# A value: of the wrong form, against a constraint, or larger than an index or a row can hold.
_DATA_CLASSES = {"22", "23", "54"}
# A statement of ours is wrong: waiting would not mend it.
_MISTAKE_CLASSES = {"0A", "42", "21", "2F", "34"}
# The server is there, and may take us in a moment; the role or its password is not what it should be.
_BUSY = {"53300", "57P03"}
_NOT_LET_IN = {"28000", "28P01"}
# libpq tells no SQLSTATE of a connection that was refused, only what the server said.
_SAID_AT_THE_DOOR = {
    r'database "[^"]*" does not exist': _NO_DATABASE,
    r"too many (clients|connections)|connection slots are reserved|no more connections allowed": "53300",
    r"the database system is ": "57P03",
    r"permission denied for database": _NO_PERMISSION,
    r"authentication failed|no password supplied|role \"[^\"]*\" does not exist|no pg_hba.conf entry": "28000",
}
# What does not pass by waiting, whenever it is met.
_ADVICE = {
    _NO_PERMISSION: "its role needs rights on it (README, One machine or many)",
    _NO_SCHEMA: (
        "give its role a search_path with a schema that is there (ALTER ROLE … SET search_path = …), or name another"
        " database in the URL"
    ),
}
# What a driver says of a URL before it connects, with what to do about it.
_WRONG_IN_URL = {
    r"^invalid connection option ": "take it out of the URL, or write it as libpq spells it",
    r"^invalid \w+ value: |^bad value for \w+: |^`sslmode` parameter must be ": "give it another value in the URL",
}
# A server may be given a certificate, so that whoever is at work waits for it.
_WITHOUT_SSL = {
    r"server does not support SSL|rejected SSL upgrade": "to do without it, ask for sslmode=prefer in the URL",
}


class ServerBusy(DatabaseUnavailable):
    """The server is there, but has no connection to give: it is starting, or all are taken."""


class NotLetIn(DatabaseUnavailable):
    """The server does not accept the role, or its password, or does not speak as it is asked to."""


def code_of(error: DBAPIError) -> str | None:
    """Return the SQLSTATE; None where it was not the server that refused."""
    origin = error.orig
    code = getattr(origin, "sqlstate", None) or getattr(getattr(origin, "__cause__", None), "sqlstate", None)
    if isinstance(code, str):
        return code
    said = str(origin)
    if "connection failed" not in said:
        return None
    return next((code for words, code in _SAID_AT_THE_DOOR.items() if re.search(words, said)), None)


def is_conflict(error: DBAPIError) -> bool:
    """Whether the transaction was rolled back for another one's sake, and may be repeated at once."""
    return code_of(error) in _CONFLICTS


def is_locked(error: DBAPIError) -> bool:
    """Whether others held a lock for longer than a statement waits for one."""
    return code_of(error) == _LOCKED


def is_prepared_elsewhere(error: DBAPIError) -> bool:
    """Whether prepared statements do not survive here: a pooler hands out connections per transaction."""
    return code_of(error) in _PREPARED_ELSEWHERE


def is_of_a_standby(error: DBAPIError) -> bool:
    """Whether the server only reads: after a failover the same name may lead to another one."""
    return code_of(error) == _READ_ONLY


def is_unsupported_option(error: DBAPIError) -> bool:
    """Whether a pooler refused a parameter of the connection that PostgreSQL itself would take."""
    return "unsupported startup parameter" in str(error.orig)


def translate(error: DBAPIError, location: str) -> Exception:
    """Return the exception to raise instead; the error itself where it is a mistake in this program.

    Whatever is not known to be final (a server that restarts, no memory, a full disk, a standby) may pass.
    """
    code, text = code_of(error), _first_line(error)
    meaning: StoreError
    advice = _ADVICE.get(code or "") or _advice(_WRONG_IN_URL, text, code)
    if advice is not None:
        return ConfigurationError(f"{location}: {text}: {advice}")
    if (advice := _advice(_WITHOUT_SSL, text, code)) is not None:
        return NotLetIn(f"{location} does not let us in: {text}: {advice}")
    match code:
        case _ if code == _NO_TABLE:
            return NoDatabase(f"there is no queue in {location}; enqueue something first, or name another with --db")
        case _ if code == _NO_DATABASE:
            return NoDatabase(f"{location} does not exist; `createdb` makes it, or name another with --db")
        case _ if code in _BUSY:
            return ServerBusy(f"{location} takes no connection right now: {text}")
        case _ if code in _NOT_LET_IN:
            return NotLetIn(f"{location} does not let us in: {text}")
        case str() if code[:2] in _DATA_CLASSES:
            meaning = DataRefused(f"{location} refused a value: {text}")
        case str() if code[:2] in _MISTAKE_CLASSES:
            return error
        case None if not error.connection_invalidated and not _is_about_the_connection(error):
            # The driver itself could not send a value: NUL in a text, a number that is too large.
            meaning = DataRefused(f"{location} can't hold a value: {text}")
        case _:
            meaning = DatabaseUnavailable(f"{location} can't be used right now: {text}")
    return meaning


def unreachable(error: Exception, location: str) -> DatabaseUnavailable:
    """Return the exception for a connection that did not come about, in the words of the system or of the pool."""
    reason = getattr(error, "strerror", None) or str(error) or "no answer"
    if advice := _advice(_WITHOUT_SSL, reason):
        return NotLetIn(f"{location} does not let us in: {reason}: {advice}")
    return DatabaseUnavailable(f"{location} can't be reached: {reason}")


def _advice(known: dict[str, str], said: str, code: str | None = None) -> str | None:
    """Return what to change in the URL, where it asks for what can't be had: no server has a code for that."""
    return None if code else next((advice for words, advice in known.items() if re.search(words, said)), None)


def _is_about_the_connection(error: DBAPIError) -> bool:
    if any(kind.__name__ == "DataError" for kind in type(getattr(error.orig, "__cause__", None)).__mro__):
        return False  # asyncpg's word for a value that it can't send
    return type(error).__name__ in {"OperationalError", "InterfaceError", "InternalError"}


def _first_line(error: DBAPIError) -> str:
    """Return what the server said, or the system, without where that was."""
    said = str(error.orig).strip()
    at_the_door = re.search(r"FATAL: +(.*)", said) or re.search(r"connection failed: .* failed: (.*)", said)
    return at_the_door[1] if at_the_door else said.removeprefix("connection is bad: ").partition("\n")[0]
