"""The keys that this process was given, and texts without them.

A key is remembered where it is read, before anybody can use it. What is stored, logged or shown passes through here:
a provider, a library or a worker may put the key that it was given into its words.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from urllib.parse import quote

REDACTED = "[redacted]"
QUOTED = "[…]"
_SHORTEST = 8  # what is shorter is a placeholder, and may be a word

# The beginnings of many providers' keys, for those that nobody has told us of.
_LIKE_A_KEY = re.compile(
    r"\b(sk|pk|rk|gsk|key|hf|xai|nvapi|r8|fw|csk|sess|tgp|pplx|ak|api)[-_][A-Za-z0-9_-]{8,}"
    r"|\bAIza[A-Za-z0-9_-]{20,}|(?i:bearer)\s+[A-Za-z0-9._~+/=-]{8,}"
)
# Words that two texts have in common by chance are shorter.
_PIECE = 12
# Of an endless prompt, such as a picture, so much of its beginning and of its end.
_SEARCHED = 100_000

_spellings: list[str] = []


def remember(key: str) -> None:
    """Keep a key out of all texts from now on, also as JSON and as a part of a URL spell it."""
    if len(key) < _SHORTEST:
        return
    for spelling in (key, json.dumps(key)[1:-1], key.replace("/", "\\/"), quote(key), quote(key, safe="")):
        if spelling not in _spellings:
            _spellings.append(spelling)
    _spellings.sort(key=len, reverse=True)


def conceal(text: str) -> str:
    """Return a text without the keys of this process."""
    for spelling in _spellings:
        if spelling in text:
            text = text.replace(spelling, REDACTED)
    return text


def without_keys(text: str) -> str:
    """Return an error's text without the keys of this process, and without what looks like a key."""
    return _LIKE_A_KEY.sub(REDACTED, conceal(text))


def without_quotes(text: str, sources: Iterable[str]) -> str:
    """Return a text without what it quotes of others: a prompt, or an answer.

    Found is what is quoted whole, and every passage of 23 characters or more.
    """
    for source in sources:
        if len(source) < _SHORTEST:
            continue
        text = text.replace(source, QUOTED)
        if len(source) > 2 * _SEARCHED:
            source = f"{source[:_SEARCHED]}\n{source[-_SEARCHED:]}"  # noqa: PLW2901 - the rest is not looked at
        text = _without_passages(text, source)
    return text


def _without_passages(text: str, source: str) -> str:
    kept: list[str] = []
    begin = place = 0
    while place + _PIECE <= len(text):
        if text[place : place + _PIECE] not in source:
            place += _PIECE
            continue
        first, last = place, place + _PIECE
        while first > begin and text[first - 1 : last] in source:
            first -= 1
        while last < len(text) and text[first : last + 1] in source:
            last += 1
        kept += [text[begin:first], QUOTED]
        begin = place = last
    return "".join(kept) + text[begin:]
