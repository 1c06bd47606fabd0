"""The table of faults names tests that exist, and sentences of the README that it holds."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

HERE = Path(__file__).parent
README = " ".join((HERE.parent / "README.md").read_text().split())
ROWS = re.findall(r"^\| (I?\d+) \| (.+) \|$", (HERE / "fault_cases.md").read_text(), re.MULTILINE)
SAYS = "README: "


@cache
def names_in(file: str) -> frozenset[str]:
    """The names of the tests of a file; none where there is no such file."""
    path = HERE / file
    return frozenset(
        re.findall(r"^ *(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE) if path.exists() else ()
    )


def what_is_missing(cells: str) -> list[str]:
    """Return what a row names and is not there; all of the last cell where it names nothing."""
    *_, shown = cells.split(" | ")
    if shown.startswith(SAYS):
        sentence = shown.removeprefix(SAYS)
        return [] if sentence in README else [sentence]
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", shown)
    if not named or re.sub(r"`test_\w+\.py::test_\w+`|\s", "", shown):
        return [shown]
    return [f"{file}::{name}" for file, name in named if name not in names_in(file)]


def test_every_invariant_and_every_case_stands_there_once():
    expected = [f"I{number}" for number in range(1, 11)] + [str(number) for number in range(1, 56)]
    assert [number for number, _ in ROWS] == expected


@pytest.mark.parametrize(("number", "cells"), ROWS, ids=[number for number, _ in ROWS])
def test_what_shows_a_case_is_there(number, cells):
    assert what_is_missing(cells) == [], f"fault_cases.md, {number}"


@pytest.mark.parametrize(
    "shown", ["", "`test_store.py::test_of_nothing`", "`test_nothing.py::test_x`", "README: It never fails.", "a hope"]
)
def test_what_is_not_there_would_be_missed(shown):
    assert what_is_missing(f"something | something | {shown}") == [shown.strip("`").removeprefix(SAYS)]
