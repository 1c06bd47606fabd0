"""The failures of batches by class, for who looks again and again."""

from __future__ import annotations

import time
from collections.abc import Mapping

from batchq.jobs import ErrorGroup, Overview, Progress
from batchq.overview.standing import failing
from batchq.store import Store

# Counting failures reads an entry of an index for each. It takes at most one part in so many of the time.
_ONE_PART_IN = 20


class Failures:
    """Counts anew where more have failed, whoever was counted longest ago first, and not all the time."""

    def __init__(self) -> None:
        """Start with nothing counted."""
        self._counted: dict[int, tuple[tuple[int, int], tuple[ErrorGroup, ...]]] = {}
        self._due = 0.0

    async def of(self, found: Overview, store: Store) -> Mapping[str, tuple[ErrorGroup, ...]]:
        """Return the failures by name of the batch, as far as they were counted."""
        shown = {progress.batch.id: progress for progress in failing(found)}
        self._counted = {batch_id: told for batch_id, told in self._counted.items() if batch_id in shown}
        never = [batch_id for batch_id in shown if batch_id not in self._counted]
        for batch_id in (*never, *self._counted):
            if self._is_stale(shown[batch_id]) and time.monotonic() >= self._due:
                await self._count(shown[batch_id], store)
        return {
            progress.batch.name: self._counted[batch_id][1]
            for batch_id, progress in shown.items()
            if batch_id in self._counted
        }

    def _is_stale(self, progress: Progress) -> bool:
        told = self._counted.get(progress.batch.id)
        return told is None or told[0] != _version(progress)

    async def _count(self, progress: Progress, store: Store) -> None:
        began = time.monotonic()
        groups = tuple(await store.errors(progress.batch))
        ended = time.monotonic()
        self._counted.pop(progress.batch.id, None)  # who was counted last stands last
        self._counted[progress.batch.id] = (_version(progress), groups)
        self._due = ended + (ended - began) * _ONE_PART_IN


def _version(progress: Progress) -> tuple[int, int]:
    """Return what changes whenever the failures may: as many may have failed for another reason since."""
    return progress.counts.failed, progress.attempts
