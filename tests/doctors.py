"""What `batchq doctor` found, by the names of its checks."""

from __future__ import annotations

import json
from typing import Any

from batchq.doctor import Asked, Finding, Level, examine

OFFLINE = Asked(seconds=None)


class Findings:
    """Findings that are asked for by name and level."""

    def __init__(self, found: list[Finding]) -> None:
        self.all = found

    def of(self, name: str, level: str | None = None) -> str:
        """All that was found of one name, and of one level, as text: what, and what to do."""
        return "\n".join(
            f"{each.what} -> {each.what_to_do}"
            for each in self.all
            if each.name == name and (level is None or each.level == level)
        )

    def names(self, level: str) -> set[str]:
        """The names of those of a level."""
        return {each.name for each in self.all if each.level == level}


async def look(location: object, **asked: Any) -> Findings:
    """Examine a queue in this process, without asking a provider."""
    return Findings([each async for each in examine(Asked({"db": str(location)}, None, **asked))])


def doctor(place, *options: str, code: int | None = None, **more: Any) -> Findings:
    """Run the command in a bench; it ends with `code`, and with 1 where there is an error, and says nothing else."""
    done = place.run("doctor", "--json", *options, **more)
    assert done.stderr == ""
    told = json.loads(done.stdout)
    found = [Finding(each["name"], Level(each["level"]), each["what"], each["what_to_do"]) for each in told["findings"]]
    assert told["summary"] == {
        level: sum(each.level == level for each in found) for level in ("ok", "warning", "error")
    }
    assert told["ok"] == (not told["summary"]["error"])
    assert done.returncode == (0 if told["ok"] else 1)
    assert code is None or done.returncode == code, found
    return Findings(found)
