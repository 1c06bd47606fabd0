"""No-op jobs/s of one worker process of each tool, in turn."""

from __future__ import annotations

from scripts.benchmarks.peers.calling import Installed, Places, call

FIRST_PROBE_JOBS = 300
PROBE_SECONDS = 0.5
SECONDS = 3.0
LEAST_JOBS = 500


def size_for(tool: Installed, places: Places) -> int:
    """Return how many jobs a tool does in about three seconds, by two shorter runs; of the quick ones, the most."""
    jobs = FIRST_PROBE_JOBS
    for seconds in (PROBE_SECONDS, SECONDS):
        rate = jobs / seconds_for(tool, places, jobs)
        jobs = round(min(max(rate * seconds, LEAST_JOBS), tool.peer.most_jobs) / 100) * 100
    return tool.peer.most_jobs if jobs >= tool.peer.most_jobs / 4 else jobs


def seconds_for(tool: Installed, places: Places, jobs: int) -> float:
    """Return how long a tool takes for jobs that were enqueued before, in a fresh database."""
    target = places.new(tool)
    try:
        call(tool, "fill", target, {"task": "nothing", "jobs": jobs})
        places.settle(target)
        return float(call(tool, "drain", target, {"jobs": jobs}))
    finally:
        places.remove(target)
