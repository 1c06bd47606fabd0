"""Why a call got no answer, in words that name the server and the cause."""

from __future__ import annotations

import os
import ssl
from typing import TYPE_CHECKING

from batchq.worker import RetryLater

if TYPE_CHECKING:
    import aiohttp
    import httpx2


def unreached(error: httpx2.TransportError | aiohttp.ClientError) -> RetryLater:
    """Say why no answer came: the aiohttp transport calls every failed connection a ConnectTimeout."""
    # Of a failed connection aiohttp's own error knows more than the transport's, which it is the cause of.
    cause = error if hasattr(error, "host") else error.__cause__ or error.__context__
    # Of aiohttp's ClientConnectorError and ClientConnectorCertificateError.
    failure = getattr(cause, "os_error", None) or getattr(cause, "certificate_error", None)
    if isinstance(failure, OSError) and not isinstance(failure, TimeoutError):
        host, port = getattr(cause, "host", ""), getattr(cause, "port", "")
        return RetryLater(f"can't connect to {host}:{port}: {_words(failure)}", error_class="connection")
    text = str(error)
    if "Timeout" in type(error).__name__ and "disconnected" not in text:
        what = "connecting" if "Connect" in type(error).__name__ else "the call"
        return RetryLater(f"{what} timed out", error_class="timeout")
    return RetryLater(f"the connection broke: {text or type(error).__name__}", error_class="connection")


def not_http(error: Exception) -> RetryLater:
    """Say that what came is no HTTP: of aiohttp's errors, those that its transport does not translate."""
    return RetryLater(f"the answer is not HTTP ({type(error).__name__})", error_class="broken_answer")


def _words(error: OSError) -> str:
    """Return what the system says, also where asyncio has put its own words around it."""
    if isinstance(error, ssl.SSLError):
        return getattr(error, "verify_message", "") or error.reason or str(error)
    if error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return error.strerror or str(error)
