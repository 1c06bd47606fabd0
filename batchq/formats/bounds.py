"""What keeps a template from making much of little: passes through loops, and the size of texts.

A template that a row makes run for hours, or fill the memory, is a bad row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any, Final

from jinja2 import nodes
from jinja2.exceptions import SecurityError

MAX_PASSES: Final = 1_000_000  # through all loops of one prompt
MAX_REPEATED: Final = 10_000_000

# No template can call them by these names.
LOOP, JOIN = "passes of a loop", "parts of a text"
_WIDENING: Final = frozenset({"center", "ljust", "rjust", "zfill", "expandtabs"})
WIDENING_FILTERS: Final = ("center", "indent", "wordwrap", "slice", "batch", "truncate")


class Passes:
    """Counts passes through loops, of each prompt anew."""

    def __init__(self) -> None:
        """Start with none."""
        self._left = MAX_PASSES

    def start(self) -> None:
        """Begin a prompt."""
        self._left = MAX_PASSES

    def take(self, count: int = 1) -> None:
        """Raise SecurityError where a prompt has had its passes."""
        self._left -= count
        if self._left < 0:
            raise SecurityError(f"more than {MAX_PASSES:,} passes through loops")

    def over(self, items: Iterable[object]) -> Iterator[object]:
        """Yield what a loop goes through."""
        for item in items:
            self.take()
            yield item


def count_loops(tree: nodes.Template) -> nodes.Template:
    """Put what counts, and what adds up lengths, around loops and `~`."""
    for loop in tree.find_all(nodes.For):
        loop.iter = nodes.Filter(loop.iter, LOOP, [], [], None, None, lineno=loop.lineno)
    _bound_joins(tree)
    return tree


def _bound_joins(node: nodes.Node) -> None:
    for name, value in node.iter_fields():
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, nodes.Node):
                _bound_joins(child)
        if isinstance(value, nodes.Concat):
            setattr(node, name, _bounded(value))
        elif isinstance(value, list):
            value[:] = [_bounded(item) if isinstance(item, nodes.Concat) else item for item in value]


def _bounded(concat: nodes.Concat) -> nodes.Filter:
    parts = nodes.List(concat.nodes, lineno=concat.lineno)
    return nodes.Filter(parts, JOIN, [], [], None, None, lineno=concat.lineno)


def joined(parts: Iterable[object]) -> str:
    """Return what `~` makes of its operands."""
    texts = [str(part) for part in parts]
    refuse_long(sum(map(len, texts)))
    return "".join(texts)


def refuse_long(length: int) -> None:
    """Raise SecurityError for a text, or a list, that would be too long."""
    if length > MAX_REPEATED:
        raise SecurityError(f"a text of more than {MAX_REPEATED:,} characters")


def refuse_wide(values: Iterable[object]) -> None:
    """Raise SecurityError for a number that makes an endless text, or endless parts."""
    if any(isinstance(value, int) and abs(value) > MAX_REPEATED for value in values):
        raise SecurityError(f"a text of more than {MAX_REPEATED:,} characters")


def refuse_growth(method: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    """Raise SecurityError for a call of a text's own method that would make an endless one."""
    text, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
    if not isinstance(text, str):
        return
    if name in _WIDENING:
        refuse_wide(arguments)
    elif name == "replace" and all(isinstance(part, str) for part in arguments[:2]) and len(arguments) > 1:
        refuse_replaced(text, arguments[0], arguments[1])
    elif name == "join" and arguments and isinstance(arguments[0], list | tuple):
        refuse_joined(text, arguments[0])


def refuse_replaced(text: str, old: str, new: str) -> None:
    """Raise SecurityError where so many `new` in the place of `old` make an endless text."""
    refuse_long(len(text) + text.count(old) * (len(new) - len(old)))


def refuse_joined(separator: str, parts: list[object] | tuple[object, ...]) -> None:
    """Raise SecurityError where parts are too many, or too long, to be one text."""
    refuse_long(sum(len(part) for part in parts if isinstance(part, Sized)) + len(separator) * len(parts))
