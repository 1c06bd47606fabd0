"""Text for terminals: nothing that came from a prompt, an answer or a name can move the cursor."""

from __future__ import annotations

_KEPT = {"\n", "\t"}


def clean(text: str) -> str:
    """Return text with its control, direction and surrogate characters written out as escapes."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in _KEPT else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
