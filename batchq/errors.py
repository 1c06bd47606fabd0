"""The exceptions of batchq, each with the exit code that the command line ends with.

    BatchqError                 1   something failed
    ├── UsageError              2   the command or call can't be carried out as given
    │   ├── BadInput            2   the input has rows that can't be enqueued
    │   ├── BatchConflict       2   the input or settings contradict what the batch holds
    │   │   └── RowConflict     2   somebody else has put another row into the batch meanwhile
    │   ├── NoDatabase          2   there is no database at that path
    │   ├── UnknownBatch        2   no batch has that name
    │   └── Purged              2   the batch is being deleted
    ├── CopyDiffers             1   a copied queue is not what it was copied from
    ├── OutputFailed            1   the results can't be written: a full disk, a closed stream
    ├── TimedOutWaiting         4   the batch did not finish in the time given
    ├── CannotGoOn              5   what is left can't run until somebody acts
    ├── ConfigurationError      78  a key, URL, right or worker is missing or wrong
    └── StoreError              1   the database refused
        ├── DatabaseBusy        1   another process holds the write lock
        ├── DatabaseUnavailable 1   the disk is full, the server is gone: it may come back
        │   └── NotWritable     1   this user may read it, but not write it
        ├── DataRefused         1   a value can't be stored, whenever it is tried
        ├── DatabaseGone        1   the file was deleted or replaced while it was open
        ├── NotABatchqDatabase  1   the file belongs to something else, or is damaged
        ├── DamagedRow          1   a row holds what batchq never writes
        ├── QueueMoved          1   the queue is in another database now
        └── SchemaMismatch      1   the database was written by another version of batchq

What a worker raises to steer its job (RetryLater, Reject, Throttled, Halt) is in `worker`.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Self

from batchq.exit_codes import ExitCode


class BatchqError(Exception):
    """Something failed; the message says what, where, and what to do."""

    exit_code: int = ExitCode.FAILURE.value


class UsageError(BatchqError):
    """The command or call can't be carried out as given."""

    exit_code = ExitCode.USAGE.value


class BadInput(UsageError):
    """The input has rows that can't be enqueued; nothing was written."""

    def __init__(self, message: str, examples: Sequence[str] = (), count: int = 0) -> None:
        """Keep the first `examples` (file, line, reason) of `count` bad rows."""
        super().__init__(message)
        self.examples = tuple(examples)
        self.count = count


class BatchConflict(UsageError):
    """The input or settings contradict what the batch already holds."""


class RowConflict(BatchConflict):
    """Somebody else has put another row into the batch meanwhile."""


class NoDatabase(UsageError):
    """There is no database at that path."""


class UnknownBatch(UsageError):
    """No batch has that name."""


class Purged(UsageError):
    """The batch is being deleted: what is left of it is no whole."""


class CopyDiffers(BatchqError):
    """A copied queue is not what it was copied from; nobody can use it."""


class OutputFailed(BatchqError):
    """The results can't be written, or not to their end."""

    @classmethod
    def to(cls, target: object, error: OSError) -> Self:
        """Return the error for what the system says about a file or stream."""
        reason = "it is closed" if error.errno == errno.EBADF else error.strerror or error
        return cls(f"can't write {target}: {reason}")


class TimedOutWaiting(BatchqError):
    """The batch did not finish in the time given."""

    exit_code = ExitCode.TIMED_OUT.value


class CannotGoOn(BatchqError):
    """What is left can't run until somebody acts."""

    exit_code = ExitCode.CANNOT_GO_ON.value


class ConfigurationError(BatchqError):
    """A key, URL, right or worker is missing or wrong."""

    exit_code = ExitCode.CONFIGURATION.value


class StoreError(BatchqError):
    """The database refused."""


class DatabaseBusy(StoreError):
    """Another process holds the write lock for longer than we are willing to wait."""


class DatabaseUnavailable(StoreError):
    """The database can't be used at the moment (disk full, I/O error, server gone)."""


class NotWritable(DatabaseUnavailable):
    """The database can be read and not written: a right is missing, or was taken away."""


class DataRefused(StoreError):
    """A value can't be stored, whenever it is tried; nothing of its transaction was."""


class DatabaseGone(StoreError):
    """The file was deleted or replaced while it was open: what is not stored yet can't be."""


class NotABatchqDatabase(StoreError):
    """The file belongs to something else, or is damaged."""


class DamagedRow(StoreError):
    """A row holds what batchq never writes: something else has changed it."""


class QueueMoved(StoreError):
    """The queue is in another database now, or on its way there: this one is only read."""


class SchemaMismatch(StoreError):
    """The database was written by another version of batchq."""
