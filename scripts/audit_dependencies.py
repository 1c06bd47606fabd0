#!/usr/bin/env python3
"""Looks at what batchq depends on: that each dependency is bounded, and that none has a known vulnerability.

    scripts/audit_dependencies.py    # run by scripts/check; takes some seconds, a minute at most

Ends with 1 where a dependency of pyproject.toml has no lower or no upper bound, or where pip-audit knows of a
vulnerability in what is installed. Where nobody can be asked, which is so offline, it says that and ends with 0.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, NamedTuple

from packaging.requirements import Requirement

PROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"
LOWER, UPPER = {">=", ">", "==", "~="}, {"<", "<=", "==", "~="}
SECONDS = 60
SECONDS_PER_ANSWER = 5


class Audit(NamedTuple):
    """What came of an audit: `unknown` packages could not be looked up; `failure` says why none was."""

    audited: int
    unknown: tuple[str, ...]
    vulnerable: tuple[str, ...]
    failure: str = ""


def requirements(project: Path) -> list[Requirement]:
    """Return what a project needs at run time, its extras included."""
    table = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
    groups = [table["dependencies"], *table.get("optional-dependencies", {}).values()]
    return [Requirement(text) for group in groups for text in group]


def unbounded(needed: list[Requirement]) -> list[str]:
    """Return those that any future or any ancient version would satisfy."""
    operators = [(each, {part.operator for part in each.specifier}) for each in needed]
    return [str(each) for each, found in operators if not (found & LOWER and found & UPPER)]


def installed(needed: list[Requirement]) -> dict[str, str]:
    """Return the versions of the packages that these bring along, as far as they are installed."""
    versions: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    left = [(each, "") for each in needed]
    while left:
        requirement, extra = left.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        try:
            found = distribution(requirement.name)
        except PackageNotFoundError:
            continue
        versions[found.name.lower()] = found.version
        for wanted in ("", *requirement.extras):
            if (found.name, wanted) not in seen:
                seen.add((found.name, wanted))
                left += [(Requirement(text), wanted) for text in found.requires or ()]
    return dict(sorted(versions.items()))


def audit(versions: dict[str, str]) -> Audit:
    """Ask pip-audit what is known of these versions."""
    with tempfile.TemporaryDirectory() as directory:
        pins = Path(directory) / "pins.txt"
        pins.write_text("".join(f"{name}=={version}\n" for name, version in versions.items()))
        command = [sys.executable, "-m", "pip_audit", "--requirement", str(pins), "--no-deps", "--disable-pip"]
        command += ["--format=json", "--progress-spinner=off", f"--timeout={SECONDS_PER_ANSWER}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        except subprocess.TimeoutExpired:
            return Audit(0, (), (), f"no answer within {SECONDS} s")
    return read(done.stdout, done.stderr)


def read(told: str, complaints: str = "") -> Audit:
    """Read what pip-audit has printed."""
    try:
        packages: list[dict[str, Any]] = json.loads(told)["dependencies"]
    except (ValueError, KeyError, TypeError):
        last = (complaints.strip().splitlines() or ["it printed nothing"])[-1]
        return Audit(0, (), (), last[:300])
    unknown = tuple(package["name"] for package in packages if "skip_reason" in package)
    vulnerable = tuple(
        f"{package['name']} {package['version']}: {problem['id']}"
        f" (mended in {', '.join(problem['fix_versions']) or 'no version yet'})"
        for package in packages
        for problem in package.get("vulns", ())
    )
    return Audit(len(packages) - len(unknown), unknown, vulnerable)


def report(found: Audit) -> int:
    """Say what came of it; return the exit code."""
    for problem in found.vulnerable:
        print(f"vulnerable: {problem}")
    if found.vulnerable:
        return 1
    if not found.audited:
        reason = found.failure or f"nothing is known there of any of the {len(found.unknown)} packages"
        print(f"dependencies NOT AUDITED: the service that knows vulnerabilities could not be asked: {reason}")
    elif found.unknown:
        print(f"{found.audited} dependencies have no known vulnerability; NOT AUDITED: {', '.join(found.unknown)}")
    else:
        print(f"{found.audited} dependencies have no known vulnerability")
    return 0


def main() -> int:
    """Look at both."""
    needed = requirements(PROJECT)
    for requirement in (loose := unbounded(needed)):
        print(f"{PROJECT.name}: {requirement} needs a lower and an upper bound")
    return report(audit(installed(needed))) or bool(loose)


if __name__ == "__main__":
    sys.exit(main())
