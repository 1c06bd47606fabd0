"""The image beside a prompt: a URL as it is, or a file's content as a `data:` URL."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path

from batchq.formats.rows import RowError, kind_name
from batchq.jobs import Json

MAX_IMAGE_MB = 20
_MAX_BYTES = MAX_IMAGE_MB << 20
_URLS = ("http://", "https://", "data:")
_SHOWN_CELL = 80
_BY_EXTENSION = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".gif": "image/gif",
}


def with_image(prompt: str, url: str | None) -> Json:
    """Return the payload of a prompt about an image, or the prompt alone where there is none."""
    if url is None:
        return prompt
    parts: list[Json] = [{"type": "text", "text": prompt}, {"type": "image_url", "image_url": {"url": url}}]
    return {"messages": [{"role": "user", "content": parts}]}


def image_url(value: object, field: str, root: Path) -> str | None:
    """Return the URL of what a cell holds: a URL, a path below `root`, or an image's bytes; None for an empty one.

    Parquet may hold bytes, or the `{"bytes", "path"}` in which Hugging Face's datasets keep images. Raises RowError
    for what is no image.
    """
    if isinstance(value, Mapping) and {"bytes", "path"} >= value.keys():
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return _embedded(value, field, "") if value else None
    if value is None:
        return None
    if not isinstance(value, str):
        raise RowError(f"`{field}` is {kind_name(value)}, not the path or URL of an image")
    cell = value.strip()
    if not cell or cell.lower().startswith(_URLS):
        return cell or None
    if "://" in cell:
        raise RowError(f"`{field}` is {_shown(cell)}; an image is a path, or a URL of http, https or data")
    return _embedded(_content(cell, field, root), field, cell)


def _content(cell: str, field: str, root: Path) -> bytes:
    path = root / cell
    try:
        if not path.exists():
            raise RowError(f"the image {_shown(cell)} of `{field}` does not exist in {root.absolute()}")
        if not path.is_file():  # a pipe would be waited for
            raise RowError(f"the image {_shown(cell)} of `{field}` is not a file")
        with path.open("rb") as file:
            return file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise RowError(f"the image {_shown(cell)} of `{field}` can't be read: {error.strerror or error}") from None


def _embedded(content: bytes, field: str, cell: str) -> str:
    shown = f"the image {_shown(cell)} of `{field}`" if cell else f"the image in `{field}`"
    if not content:
        raise RowError(f"{shown} is empty")
    if len(content) > _MAX_BYTES:
        raise RowError(f"{shown} is larger than {MAX_IMAGE_MB} MB: make it smaller, or give a URL")
    mime = _mime_of(content) or _BY_EXTENSION.get(Path(cell).suffix.lower())
    if mime is None:
        raise RowError(f"{shown} is none that models take: PNG, JPEG, WebP or GIF")
    return f"data:{mime};base64,{b64encode(content).decode()}"


def _mime_of(content: bytes) -> str | None:
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if content.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if content.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    return "image/webp" if content[:4] == b"RIFF" and content[8:12] == b"WEBP" else None


def _shown(cell: str) -> str:
    return repr(cell if len(cell) <= _SHOWN_CELL else cell[:_SHOWN_CELL] + "…")
