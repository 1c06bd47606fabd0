"""`export_jsonl`: the answers of a batch as JSON Lines, three fields each."""

from __future__ import annotations

from pathlib import Path

from batchq.api.answers import shown_prompt
from batchq.api.call import DB_URL_DEFAULT
from batchq.collecting import whole_results
from batchq.config import load_settings
from batchq.errors import UnknownBatch
from batchq.formats import AtomicFile, refuse_queue
from batchq.jobs import Batch, Json, Result
from batchq.request import encode
from batchq.store import Store, open_store

_LINES_AT_ONCE = 500


async def export_jsonl(db_url: str | None = DB_URL_DEFAULT, *, out: str | Path, batch: str | None = None) -> int:
    """Write `idx`, `prompt` and `result` of each job of a batch, in order; return how many rows there are.

    `batch` is the one that was enqueued or run last where it is not named. `result` is null for what has no
    answer, with the reason in `error`. The file appears whole or not at all. Raises NoDatabase, UnknownBatch, and
    Purged for a batch that is being deleted.
    """
    settings = load_settings(db=None if db_url == DB_URL_DEFAULT else db_url)
    target = Path(out)
    async with await open_store(settings.db) as store:
        if store.file is not None:
            refuse_queue(target, store.file)
        return await _write(store, await _chosen(store, batch), target)


async def _chosen(store: Store, name: str | None) -> Batch:
    if name is not None:
        return await store.batch(name)
    batches = await store.batches()
    if not batches:
        raise UnknownBatch(f"there is no batch in {store.location}: nothing was enqueued, or all of it was purged")
    return max(batches, key=lambda found: (found.enqueue_until, found.id))


async def _write(store: Store, batch: Batch, target: Path) -> int:
    count = 0
    lines: list[str] = []
    with AtomicFile(target) as file:
        async for result in whole_results(store, batch, with_prompt=True):
            count += 1
            lines.append(encode(_row(result)))
            if len(lines) == _LINES_AT_ONCE:
                file.write("\n".join(lines) + "\n")
                lines.clear()
        file.write("".join(line + "\n" for line in lines))
    return count


def _row(result: Result) -> dict[str, Json]:
    row: dict[str, Json] = {
        "idx": result.position,
        "prompt": None if result.payload is None else shown_prompt(result.prompt),
        "result": result.value,
    }
    if result.error_class is not None:
        row["error"] = f"{result.error_class}: {result.error}" if result.error else result.error_class
    return row
