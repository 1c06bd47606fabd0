"""The jobs that the rows of an input ask for, with their keys, in chunks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import anyio.lowlevel

from batchq.jobs import Batch, NewBatch, NewJob
from batchq.leaders import Leaders, Name
from batchq.request import RequestKeys, encode, samples_of
from batchq.survey import Survey

CHUNK_ROWS = 2_000
CHUNK_BYTES = 4 << 20
# Rows that are prepared before others have the event loop: what a database waits for meanwhile goes out to it.
_ROWS_IN_A_TURN = 64
_NO_MORE: tuple[int, Name] = (-1, -1)

# The jobs of a chunk, each with the line that it comes from.
Chunk = list[tuple[int, NewJob]]


class Rows:
    """The jobs that a surveyed input asks for, in the terms of one batch; each row as often as it has samples."""

    def __init__(self, survey: Survey, batch: Batch | NewBatch) -> None:
        """Know the batch's part of each request."""
        self.survey = survey
        self.has_ids = survey.has_ids
        self._keys = RequestKeys(batch.worker, batch.endpoint, batch.model, batch.settings)
        self._samples = samples_of(batch.settings)
        self.total = survey.rows * self._samples

    async def chunks(
        self, start: int = 0, leaders: Leaders | None = None, *, size: int = CHUNK_ROWS
    ) -> AsyncIterator[Chunk]:
        """Yield the jobs from position `start` with their lines, up to `size` rows or 4 MB at a time."""
        chunk: Chunk = []
        characters = 0
        for index, (line, job) in enumerate(self._following(leaders) if leaders else self._jobs()):
            if index % _ROWS_IN_A_TURN == 0:
                await anyio.lowlevel.checkpoint()
            if job.position < start:
                continue
            chunk.append((line, job))
            characters += len(job.payload)
            if len(chunk) == size or characters >= CHUNK_BYTES:
                yield chunk
                chunk, characters = [], 0
        if chunk:
            yield chunk

    def first(self) -> NewJob:
        """Return the first job."""
        return next(job for _, job in self._jobs())

    def _jobs(self) -> Iterator[tuple[int, NewJob]]:
        for index, row in enumerate(self.survey.good_rows()):
            payload = encode(row.payload)
            if self._samples == 1:
                yield row.line, NewJob(index, row.custom_id, self._keys.key(row.payload, payload), payload)
                continue
            for sample in range(self._samples):
                custom_id = None if row.custom_id is None else f"{row.custom_id}#{sample + 1}"
                key = self._keys.key(row.payload, payload, sample)
                yield row.line, NewJob(index * self._samples + sample, custom_id, key, payload)

    def _following(self, leaders: Leaders) -> Iterator[tuple[int, NewJob]]:
        followers = leaders.followers()
        row, leader = next(followers, _NO_MORE)
        for line, job in self._jobs():
            if job.position == row:
                yield line, replace(job, leader=leader)
                row, leader = next(followers, _NO_MORE)
            else:
                yield line, job
