"""What an input would cost, before anything is enqueued: rows, tokens, dollars."""

from __future__ import annotations

import json
from dataclasses import dataclass
from decimal import Decimal

from batchq.jobs import Json, NewBatch, Usage
from batchq.prices import Prices
from batchq.request import merge_body, samples_of
from batchq.survey import Survey

# English text has about four characters per token with the common tokenizers
# (help.openai.com, "What are tokens and how to count them?").
CHARACTERS_PER_TOKEN = 4
_CALL_OVERHEAD = 4  # tokens that frame a message
_OUTPUT_LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
_NOT_TEXT = frozenset({"role", "type", "image_url", "input_audio", "file", "id"})


@dataclass(frozen=True, slots=True)
class Estimate:
    """What the good rows of an input come to.

    `rows` counts each as often as it is asked. `output_tokens` is the most that may be generated, None where no
    row limits it. Costs are in US dollars, None where no price is known.
    """

    rows: int
    input_tokens: int
    output_tokens: int | None
    input_cost: Decimal | None
    output_cost: Decimal | None


def estimate(survey: Survey, new: NewBatch, prices: Prices) -> Estimate:
    """Count the rows of an input and guess their tokens; reads all of it, writes nothing."""
    characters = rows = outputs = 0
    limited = True
    for row in survey.good_rows():
        body = merge_body(new.model, new.settings, row.payload)
        rows += 1
        characters += _characters(body.get("messages") or body.get("input") or body.get("prompt"))
        characters += _characters(body.get("instructions"))
        most = next((body[name] for name in _OUTPUT_LIMITS if isinstance(body.get(name), int)), None)
        limited = limited and isinstance(most, int)
        outputs += most if isinstance(most, int) else 0
    schema = new.settings.get("schema")
    characters += rows * (len(json.dumps(schema)) if schema else 0)
    samples = samples_of(new.settings)
    rows, characters, outputs = rows * samples, characters * samples, outputs * samples
    tokens = -(-characters // CHARACTERS_PER_TOKEN) + rows * _CALL_OVERHEAD
    most_output = outputs if limited and rows else None
    return Estimate(
        rows,
        tokens,
        most_output,
        prices.of(new.model, Usage(input_tokens=tokens, output_tokens=0)),
        None if most_output is None else prices.of(new.model, Usage(input_tokens=0, output_tokens=most_output)),
    )


def _characters(value: Json) -> int:
    """Count the characters of all text in a prompt, its messages or their parts."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, list):
        return sum(_characters(item) for item in value)
    if isinstance(value, dict):
        return sum(_characters(item) for name, item in value.items() if name not in _NOT_TEXT)
    return 0
