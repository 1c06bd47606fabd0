"""The names that OpenTelemetry's semantic conventions give to what batchq does: messaging, and generative AI."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import urlsplit

from batchq.jobs import Claim
from batchq.request import CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES, url_of
from batchq.worker import is_openrouter

Attributes = dict[str, str | int]

OPERATIONS = {CHAT: "chat", RESPONSES: "chat", COMPLETIONS: "text_completion", EMBEDDINGS: "embeddings"}

# As the conventions ask for; calls to a model take longer than those that messaging has in mind.
SECONDS_BUCKETS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
TOKEN_BUCKETS = (1, 4, 16, 64, 256, 1_024, 4_096, 16_384, 65_536, 262_144, 1_048_576, 4_194_304, 16_777_216, 67_108_864)


@dataclass(frozen=True, slots=True)
class Labels:
    """What all calls of a batch have in common: `process` of its span, `model` of the call's own, if it names one."""

    process: Attributes
    model: Attributes | None


def labels_of(claim: Claim) -> Labels:
    """Return what the calls of a claim's batch have in common."""
    batch = claim.batch
    try:
        operation = OPERATIONS[url_of(batch.settings)]
    except ValueError:  # its job fails for that
        operation = ""
    return _labels(batch.name, claim.lane, batch.worker, batch.model, operation)


@lru_cache(maxsize=1_000)
def _labels(batch: str, lane: str, worker: str, model: str, operation: str) -> Labels:
    process: Attributes = {
        "messaging.system": "batchq",
        "messaging.operation.name": "process",
        "messaging.destination.name": batch,
    }
    if not (model and operation):
        return Labels(process, None)
    base_url = lane[len(worker) + 1 : len(lane) - len(model) - 1]
    called: Attributes = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "openrouter" if is_openrouter(base_url) else "openai",
        "gen_ai.request.model": model,
        **_server(base_url),
    }
    return Labels(process, called)


def _server(base_url: str) -> Attributes:
    try:
        parts = urlsplit(base_url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return {}
    if not host:
        return {}
    return {"server.address": host, "server.port": port or (80 if parts.scheme == "http" else 443)}
