"""Dependencies are bounded, and the audit of `scripts/check` says what it could not find out."""

from __future__ import annotations

import json
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "audit_dependencies.py"


@pytest.fixture(scope="module")
def script():
    spec = spec_from_file_location("audit_dependencies", SCRIPT)
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def told(*packages: dict[str, object]) -> str:
    return json.dumps({"dependencies": [*packages], "fixes": []})


GOOD = {"name": "click", "version": "8.5", "vulns": []}
BAD = {
    "name": "jinja2",
    "version": "3.0",
    "vulns": [{"id": "CVE-1", "fix_versions": ["3.1"]}, {"id": "CVE-2", "fix_versions": []}],
}
UNKNOWN = {"name": "rich", "skip_reason": "not found"}


def test_every_dependency_has_a_lower_and_an_upper_bound(script):
    needed = script.requirements(ROOT / "pyproject.toml")
    assert len(needed) > 12
    assert script.unbounded(needed) == []
    assert script.unbounded([Requirement(text) for text in ("a>=1,<2", "b>=1", "c<2", "d", "e==1.0", "f[x]~=1.2")]) == [
        "b>=1",
        "c<2",
        "d",
    ]


def test_all_that_is_installed_for_them_is_looked_up(script):
    versions = script.installed(script.requirements(ROOT / "pyproject.toml"))
    assert {"click", "aiohttp", "httpx2", "typing-extensions"} <= {name.replace("_", "-") for name in versions}
    assert "pytest" not in versions, "tools of developers are not what users run"


def test_a_vulnerability_ends_the_check(script, capsys):
    assert script.report(script.read(told(GOOD, BAD))) == 1
    assert capsys.readouterr().out.splitlines() == [
        "vulnerable: jinja2 3.0: CVE-1 (mended in 3.1)", "vulnerable: jinja2 3.0: CVE-2 (mended in no version yet)",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("printed", "complaints", "said"),
    [
        (told(GOOD), "", "1 dependencies have no known vulnerability"),
        (told(GOOD, UNKNOWN), "", "1 dependencies have no known vulnerability; NOT AUDITED: rich"),
        (told(UNKNOWN), "", "dependencies NOT AUDITED: the service that knows vulnerabilities could not be asked"),
        ("", "Traceback\nConnectionError: no route", "could not be asked: ConnectionError: no route"),
        ("", "", "could not be asked: it printed nothing"),
    ],
)
def test_what_could_not_be_audited_is_said_and_ends_nothing(script, capsys, printed, complaints, said):
    assert script.report(script.read(printed, complaints)) == 0
    assert said in capsys.readouterr().out


def test_the_check_runs_it():
    assert "scripts/audit_dependencies.py" in (ROOT / "scripts" / "check").read_text()
