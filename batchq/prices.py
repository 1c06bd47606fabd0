"""What tokens cost where the provider does not say: an estimate from the price lists of genai-prices.

genai-prices is an extra, `batchq[prices]`; without it, and for a model or a server that it does not know,
a cost is unknown, which is never zero. OpenRouter tells the cost with every answer.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from functools import lru_cache
from importlib.util import find_spec

from batchq.jobs import Usage

_Price = Callable[[str, int, int, int], Decimal]


class Prices:
    """The price list of one server."""

    def __init__(self, base_url: str, provider: str | None = None) -> None:
        """Look prices up by the server's URL, or by the name that genai-prices has for its provider."""
        self._base_url = base_url
        self._provider = provider
        self._unknown: set[str] = set()

    def of(self, model: str, usage: Usage) -> Decimal | None:
        """Return the price of one answer in US dollars; None where it is not known."""
        if usage.input_tokens is None and usage.output_tokens is None:
            return None
        price = _price_list(self._base_url, self._provider)
        if price is None or model in self._unknown:
            return None
        try:
            return price(model, usage.input_tokens or 0, usage.output_tokens or 0, usage.cached_tokens or 0)
        except (LookupError, ValueError):
            self._unknown.add(model)
            return None


def can_estimate() -> bool:
    """Whether the price lists are installed."""
    return find_spec("genai_prices") is not None


@lru_cache(maxsize=64)
def _price_list(base_url: str, provider: str | None) -> _Price | None:
    if not can_estimate():
        return None
    import genai_prices

    def price(model: str, input_tokens: int, output_tokens: int, cached_tokens: int) -> Decimal:
        usage = genai_prices.Usage(
            input_tokens=input_tokens, output_tokens=output_tokens, cache_read_tokens=min(cached_tokens, input_tokens)
        )
        if provider is not None:
            return genai_prices.calc_price(usage, model, provider_id=provider).total_price
        return genai_prices.calc_price(usage, model, provider_api_url=base_url).total_price

    return price
