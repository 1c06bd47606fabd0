"""The soak: a short one, and whether its verdict would see what it is there for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from scripts.soaking.samples import Sample
from scripts.soaking.verdict import judge

ROOT = Path(__file__).resolve().parent.parent
STEADY = [Sample(10.0 + i, 90, 50, 7, 16, 40, 600 * i) for i in range(50)]
LATE = range(40, 50)


def short(samples: list[Sample]) -> list[str]:
    """Return the rows that are not as they must be, by what they are about."""
    return [row.name.split(":")[1].split(",")[0].strip() for row in judge("x", samples) if not row.ok]


def test_what_stays_as_it_was_passes():
    assert short(STEADY) == []


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"memory_mb": 100.0}, "memory of a worker"),
        ({"descriptors": 51.0}, "its file descriptors"),
        ({"threads": 8.0}, "its threads"),
        ({"log_mb": 65.0}, "write-ahead log"),
        ({"table_mb": 51.0}, "size of the tables"),
    ],
)
def test_what_has_grown_at_the_end_is_seen(change, named):
    grown = [replace(sample, **change) if i in LATE else sample for i, sample in enumerate(STEADY)]
    assert short(grown) == [named]


def test_work_that_slows_down_is_seen():
    slower = [
        replace(sample, answered=24_000 + 560 * (i - 40)) if i in LATE else sample for i, sample in enumerate(STEADY)
    ]
    assert short(slower) == ["answers/s"]


def test_too_short_a_run_says_nothing():
    with pytest.raises(RuntimeError, match="too short"):
        judge("x", STEADY[:9])


def test_a_short_soak_runs_to_its_end(tmp_path):
    command = [sys.executable, "-P", "-m", "scripts.soaking", "--json", f"--dir={tmp_path}", "--database=sqlite"]
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    done = subprocess.run(
        [*command, "--minutes=0.05", "--workers=2", "--concurrency=4"],
        env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    # Its pace is not for a suite to judge, on a machine that does other things; what a process holds is.
    assert done.returncode in {0, 1}, done.stderr
    rows = {row["what"].split(": ")[1].split(",")[0]: row for row in json.loads(done.stdout)}
    assert rows["its threads"]["ok"], done.stdout
    assert rows["its file descriptors"]["ok"], done.stdout
    assert "answers checked" in done.stderr
