"""Random histories of producer, runners, operator and coordinator against the real store and a clock of its own.

What a queue is judged by is in `machine`: it must hold in every history, and the judges must find each of the
mistakes in `machine.mutants`. BATCHQ_TEST_STEPS asks for so many steps of other histories each time:

    BATCHQ_TEST_STEPS=100000 pytest tests/test_state_machine.py -k every_history
"""

from __future__ import annotations

import os
import time
from contextlib import closing

import pytest
from hypothesis import Phase
from machine.arena import Arena
from machine.histories import FAILED_ONCE, HISTORIES, replay
from machine.mutants import mutated
from machine.queue_machine import explore
from machine.stage import CHUNK_ROWS
from raw_connection import connect

from batchq.store import operate

# Taken now: tests that want a clean environment take every BATCHQ_ variable out of it.
STEPS = int(os.environ.get("BATCHQ_TEST_STEPS", "0"))
STEPS_OF_A_HISTORY = 40


@pytest.fixture
def arena(location, monkeypatch):
    # What goes by chunks goes by several.
    monkeypatch.setattr(operate, "CHUNK_ROWS", CHUNK_ROWS)
    with connect(location) as raw, closing(Arena(location, raw)) as opened:
        yield opened


def test_every_history_keeps_the_invariants(arena):
    # A history takes longer on a server.
    examples = STEPS // STEPS_OF_A_HISTORY or (24 if arena.is_sqlite else 6)
    began = time.monotonic()
    explore(arena, examples=examples, steps=STEPS_OF_A_HISTORY, derandomize=not STEPS)
    if STEPS:
        print(f"{arena.steps:,} steps, {60 * arena.steps / (time.monotonic() - began):,.0f} a minute")


@pytest.mark.parametrize("name", FAILED_ONCE)
def test_a_history_that_failed_once_goes_well(arena, name):
    replay(arena, FAILED_ONCE[name])


# Chance finds the others too, in more time; known histories find each of them, on both databases.
@pytest.mark.parametrize("location", ["sqlite"], indirect=True)
@pytest.mark.parametrize("name", ["guard by owner and lease", "budget_is_not_looked_at"])
def test_a_mistake_is_found_by_chance(arena, name):
    with mutated(arena, name), pytest.raises(AssertionError):
        explore(arena, examples=400, steps=40, phases=[Phase.generate])


@pytest.mark.parametrize("name", HISTORIES)
def test_a_known_history_goes_well_unless_the_store_has_a_mistake(arena, name):
    history, told = HISTORIES[name]
    replay(arena, history)
    with mutated(arena, name), pytest.raises(AssertionError, match=told):
        replay(arena, history)
