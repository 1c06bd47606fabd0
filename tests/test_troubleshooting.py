"""The README's table of messages quotes what batchq really says, and its table of classes what jobs really fail with."""

import ast
import re
from pathlib import Path

import pytest

from batchq.settlement import REFUSED_CLASSES

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
SECTION = README.partition("\n## Troubleshooting\n")[2].partition("\n## ")[0]
PARTS = dict(re.findall(r"^### (.+)\n\n(?:.+\n)*?\n?((?:\|.+\n)+)", SECTION, re.MULTILINE))
CODE = [*(ROOT / "batchq").rglob("*.py"), *(ROOT / "workers").rglob("*.py")]


def first_cells(part: str) -> list[str]:
    rows = [line for line in PARTS[part].splitlines() if line.startswith("| ")]
    return [row.split(" | ")[0].removeprefix("| ") for row in rows[1:]]


def texts() -> str:
    """All string literals of the package; what is put into an f-string is left out."""
    found: list[str] = []
    for path in CODE:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(part.value if isinstance(part, ast.Constant) else "\0" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


SAID = texts()
QUOTED = [
    quoted
    for part in ("Nothing moves", "It ends with an error")
    for cell in first_cells(part)
    for quoted in re.findall(r"`([^`]+)`", cell)
]


def test_there_are_such_tables():
    assert len(QUOTED) > 20
    assert len(first_cells("Jobs fail")) > 5


@pytest.mark.parametrize("quoted", QUOTED)
def test_a_message_that_is_explained_is_one_that_batchq_says(quoted):
    assert quoted in SAID


@pytest.mark.parametrize("name", [name for cell in first_cells("Jobs fail") for name in re.findall(r"`(\w+)`", cell)])
def test_a_class_that_is_explained_is_one_that_jobs_fail_with(name):
    assert name in REFUSED_CLASSES or f"\n{name}\n" in f"\n{SAID}\n"
