"""What an endpoint may be: a URL that nothing is hidden in, encrypted on its way, and a key that is one."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from batchq.concealing import remember
from batchq.errors import ConfigurationError
from batchq.worker import is_loopback


def check_url(url: str, origin: str) -> None:
    """Raise ConfigurationError if `url` is none that can be called; `origin` says where it was read."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if "@" in url or "?" in url or "#" in url:  # not shown: it may well be a password or a key
        raise ConfigurationError(
            f"{origin}: a base URL can't hold a user, a password, `?` or `#`, since it is stored and shown; write"
            " https://host/path, and give the key by itself"
        )
    if not good or not url.isprintable() or " " in url:
        raise ConfigurationError(f"{origin}: {url!r} is not the URL of a server; write https://host/path")


def refuse_insecure(base_url: str) -> None:
    """Raise ConfigurationError for a server that may not be called without leave: others could read along."""
    if urlsplit(base_url).scheme == "https" or is_loopback(base_url):
        return
    raise ConfigurationError(
        f"{base_url} is not encrypted: keys, prompts and answers could be read on their way. Write https://, or allow"
        " it with --insecure, BATCHQ_INSECURE=1 or `insecure = true` in batchq.toml"
    )


def usable_key(text: str, origin: str) -> str:
    """Return a key, which is kept out of all texts from now on. Raises ConfigurationError for what no header can hold.

    The reason names its `origin`, and not the key.
    """
    key = text.strip()
    remember(key)
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ConfigurationError(f"{origin} should hold a key and nothing else")
    return key


def read_key(path: Path) -> str:
    """Return the key that a file holds. Raises ConfigurationError."""
    try:
        text = path.expanduser().read_text(encoding="utf-8")
    except (OSError, RuntimeError, UnicodeDecodeError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or "it is not UTF-8 text"
        raise ConfigurationError(f"can't read the key from {path}: {reason}") from error
    if not text.strip():
        raise ConfigurationError(f"{path} holds no key")
    return usable_key(text, str(path))
