"""What `batchq worker` tells: sentences for people, events of the log where that is for machines."""

from __future__ import annotations

import sys

from batchq import log
from batchq.display.messages import is_terminal, say
from batchq.display.text import plural
from batchq.errors import BatchqError
from batchq.jobs import Batch, Counts


def start_logging(level: str, form: str) -> Voice:
    """Set up the log, and return the voice that fits it: every line of stderr is JSON, or none is."""
    for_people = is_terminal(sys.stderr) if form == "auto" else form == "text"
    log.set_up_logging(level, json_lines=not for_people)
    return Voice() if for_people else LogVoice()


class Voice:
    """Speaks in sentences."""

    def say(self, sentence: str) -> None:
        """Tell anything else."""
        say(sentence)

    def serving(self, location: str, concurrency: int, workers: list[str]) -> None:
        """Tell where this process works."""
        say(f"batchq: worker on {location}, {plural(concurrency, 'call')} at once, serving {', '.join(workers)}")

    def served(self, batch: Batch, counts: Counts) -> None:
        """Tell of a batch whose jobs it will run."""
        state = "" if batch.state == "open" else f" ({batch.state})"
        say(f"batchq:   {batch.name}{state}: {counts.pending:,} pending, {counts.inflight:,} in flight")

    def left_alone(self, batch: Batch, why: str) -> None:
        """Tell of a batch whose jobs it can't run."""
        say(f"batchq:   {batch.name} is left alone: {why}")

    def empty(self, *, waiting: bool) -> None:
        """Tell that there is nothing to do."""
        say("batchq:   empty" + (", waiting" if waiting else ""))

    def failed(self, error: BatchqError) -> int:
        """Tell what ended the process; return its exit code, or raise, and the command line tells it."""
        raise error


class LogVoice(Voice):
    """Logs events."""

    def say(self, sentence: str) -> None:
        """Log anything else."""
        log.get_logger().info(log.WORKER_SAYS, message=sentence.removeprefix("batchq:").strip())

    def serving(self, location: str, concurrency: int, workers: list[str]) -> None:
        """Log where this process works."""
        log.get_logger().info(log.WORKER_SERVING, database=location, concurrency=concurrency, workers=workers)

    def served(self, batch: Batch, counts: Counts) -> None:
        """Log a batch whose jobs it will run."""
        log.get_logger().info(
            log.BATCH_SERVED,
            batch=batch.name,
            state=batch.state.value,
            pending=counts.pending,
            inflight=counts.inflight,
        )

    def left_alone(self, batch: Batch, why: str) -> None:
        """Log a batch whose jobs it can't run."""
        log.get_logger().warning(log.BATCH_LEFT_ALONE, batch=batch.name, reason=why)

    def empty(self, *, waiting: bool) -> None:
        """Log that there is nothing to do."""
        log.get_logger().info(log.WORKER_EMPTY, waiting=waiting)

    def failed(self, error: BatchqError) -> int:
        """Log what ended the process; return its exit code."""
        log.get_logger().error(log.WORKER_FAILED, reason=str(error), exit_code=error.exit_code)
        return error.exit_code
