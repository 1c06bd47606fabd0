"""`batchq exporter`: metrics of the queue, for Prometheus."""

from __future__ import annotations

import click

from batchq.cli.options import DURATION, HELP_NAMES, command_class, database_of, db_option
from batchq.errors import ConfigurationError, UsageError

DEFAULT_PORT = 9464
MOST_PORT = 65_535


@click.command(cls=command_class(), context_settings=HELP_NAMES, short_help="Serve metrics of the queue to Prometheus.")
@click.option(
    "--listen", default=f"127.0.0.1:{DEFAULT_PORT}", metavar="HOST:PORT", show_default=True,
    help="Where to answer; port 0 picks a free one. No password is asked for.",
)  # fmt: skip
@click.option("--cache", type=DURATION, default="5s", show_default=True, help="Read the queue at most so often.")
@click.option("--once", is_flag=True, help="Print what can be read at once, without counters, and end.")
@db_option
def exporter(listen: str, *, cache: float, once: bool, db: str | None) -> int:
    """Serve metrics at /metrics, read from the queue when they are asked for; one exporter is enough for all workers.

    \b
    batchq exporter
    batchq exporter --listen 0.0.0.0:9464 --db postgresql+psycopg://batchq@db/batchq
    batchq exporter --once > /var/lib/node_exporter/batchq.prom

    Counters and histograms begin at 0 when it first sees the queue. A queue that can't be read is `batchq_up 0`.
    """  # fmt: skip
    address = _address(listen)
    try:
        from batchq.exporter import print_metrics, serve_metrics
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "prometheus_client":
            raise
        raise ConfigurationError("prometheus_client is not installed: pip install 'batchq[metrics]'") from None
    from batchq.cli.opening import open_queue
    from batchq.display.messages import say
    from batchq.process import run_event_loop

    location = database_of(db)
    if once:
        return run_event_loop(lambda: print_metrics(lambda: open_queue(location), say))
    return run_event_loop(lambda: serve_metrics(lambda: open_queue(location), address, cache, say))


def _address(listen: str) -> tuple[str, int]:
    host, colon, port = listen.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > MOST_PORT:
        raise UsageError(f"--listen {listen!r} should be HOST:PORT, such as 127.0.0.1:{DEFAULT_PORT}")
    return host.removeprefix("[").removesuffix("]"), int(port)
