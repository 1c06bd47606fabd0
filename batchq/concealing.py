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
_SHORTEST = 8  # what is shorter is a placeholder, and may be any word
_LONGEST_WORDS = 24
_WORDS = re.compile(r"(?:[a-z]+|[A-Z][a-z]+|[A-Z]+)(?:[-_](?:[a-z]+|[A-Z][a-z]+|[A-Z]+))*")

# The beginnings of many providers' keys, for those that nobody has told us of. Some begin like words: `key_findings` is
# a field, and what has a digit is a key.
_LIKE_A_KEY = re.compile(
    r"\b(sk|pk|rk|gsk|hf|xai|nvapi|r8|fw|csk|sess|tgp|pplx|ak)[-_][A-Za-z0-9_-]{8,}"
    r"|\b(key|api)[-_](?=[A-Za-z_-]{0,40}[0-9])[A-Za-z0-9_-]{8,}"
    r"|\bAIza[A-Za-z0-9_-]{20,}|(?i:bearer)\s+(?=[A-Za-z._~+/=-]{0,40}[0-9])[A-Za-z0-9._~+/=-]{8,}"
)
# Words that two texts have in common by chance are shorter.
_PIECE = 12
# Of an endless prompt, such as a picture, so much of its beginning and of its end.
_SEARCHED = 100_000

_spellings: list[str] = []
_placeholders: list[str] = []


def is_placeholder(key: str) -> bool:
    """Whether a key may be one for servers that want none, such as `none` or `lm-studio`: answers may hold it, too."""
    return len(key) < _SHORTEST or (len(key) < _LONGEST_WORDS and _WORDS.fullmatch(key) is not None)


def remember(key: str) -> None:
    """Keep a key out of all texts from now on, also as JSON and as a part of a URL spell it."""
    if len(key) < _SHORTEST:
        return
    known = _placeholders if is_placeholder(key) else _spellings
    for spelling in (key, json.dumps(key)[1:-1], key.replace("/", "\\/"), quote(key), quote(key, safe="")):
        if spelling not in known:
            known.append(spelling)
    known.sort(key=len, reverse=True)


def conceal(text: str) -> str:
    """Return a text for people without the keys of this process."""
    for spelling in (*_spellings, *_placeholders):
        if spelling in text:
            text = text.replace(spelling, REDACTED)
    return text


def conceal_json(text: str) -> str:
    """Return JSON, such as an answer, without the keys of this process; a placeholder stays: it may be a word there."""
    if not any(spelling in text for spelling in _spellings):
        return text
    # An escape is stepped over: the n of a line end may look like the beginning of a key.
    found = re.compile("|".join(map(re.escape, _spellings)) + r"|(\\(?:u.{4}|.))")
    return found.sub(lambda match: match[1] or REDACTED, text)


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
