"""The examples of workers/README.md, by the file that their first line names."""

from __future__ import annotations

import re
from pathlib import Path

README = (Path(__file__).resolve().parent.parent / "workers" / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
EXAMPLES = {text.splitlines()[0].removeprefix("# "): text for kind, text in BLOCKS if kind in {"python", "toml"}}


def write_examples(directory: Path) -> None:
    """Write them as their first lines say."""
    for name, text in EXAMPLES.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
