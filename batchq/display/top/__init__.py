"""What `batchq top` draws, and the keys that it hears."""

from batchq.display.top.keys import Key, Keyboard
from batchq.display.top.screen import Screen

__all__ = ["Key", "Keyboard", "Screen"]
