"""Runs campaigns, and prints what came of them."""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scripts.chaos_campaign.campaign import Plan, run
from scripts.chaos_campaign.faults import Schedule
from scripts.chaos_campaign.ground import CampaignError
from scripts.chaos_campaign.table import table
from scripts.chaos_campaign.verdict import Verdict
from scripts.postgres_server import PostgresUnavailable, postgres_server

SQLITE, POSTGRESQL = "sqlite", "postgresql"


def main() -> int:
    """Return 0 if every promise was kept, else 1."""
    arguments = _parse()
    seed = arguments.seed if arguments.seed is not None else random.randrange(1_000_000)
    schedule = Schedule(seed, arguments.workers, arguments.kills)
    if arguments.schedule:
        print("\n".join(schedule.lines()))
        return 0
    databases = (SQLITE, POSTGRESQL) if arguments.database == "both" else (arguments.database,)
    verdicts: dict[str, Verdict] = {}
    plan = Plan(schedule, arguments.lease, seconds=arguments.minutes * 60)
    for database in databases:
        _say(f"{database}: --seed {seed} --workers {arguments.workers} --kills {arguments.kills}")
        try:
            with _place(database) as (directory, location):
                verdicts[database] = run(plan, directory, location, _say)
        except (CampaignError, PostgresUnavailable) as error:
            _say(f"{database}: {error}")
            return 1
        except KeyboardInterrupt:
            _say(f"{database}: interrupted")
            return 130
        for told in verdicts[database].told_breaches():
            _say(f"{database}: BROKEN: {told}")
    figures = {database: verdict.figures() for database, verdict in verdicts.items()}
    print(json.dumps(figures, indent=2) if arguments.json else table(figures))
    return int(any(verdict.breaches for verdict in verdicts.values()))


@contextmanager
def _place(database: str) -> Iterator[tuple[Path, str]]:
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        directory = Path(name)
        if database == SQLITE:
            yield directory, str(directory / "runs.db")
            return
        with postgres_server(durable=True) as server:
            yield directory, server.url()


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/chaos", description="Kill, stop and terminate workers while they work, and judge what is left."
    )
    parser.add_argument("--database", choices=(SQLITE, POSTGRESQL, "both"), default="both")
    parser.add_argument("--kills", type=int, default=500, help="how many workers to kill on each database")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no more faults after so long")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--lease", type=float, default=1.0, help="seconds, at least 1")
    parser.add_argument("--seed", type=int, help="the number that a run was made by; else a new one")
    parser.add_argument("--schedule", action="store_true", help="print what would be done, and do nothing")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    return parser.parse_args()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
