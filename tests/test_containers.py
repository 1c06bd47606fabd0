"""deploy/Dockerfile and compose.yaml: as far as they can be held to what they promise without a container engine."""

import fnmatch
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import jsonschema
import pytest
import yaml
from fake_provider import running_provider
from processes import bench, wait_for

from batchq.cli.options import DURATION
from batchq.cli.worker import worker as worker_command
from batchq.config.credentials import read_credentials

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
DOCKERFILE = DEPLOY / "Dockerfile"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
BIN = Path(sys.executable).parent

# Of https://github.com/compose-spec/compose-spec, what is used here: nothing else may be in a service.
DURATION_TEXT = {"type": "string", "pattern": r"^\d+(s|m|h)$"}
NAMES = {"type": "array", "items": {"type": "string"}, "uniqueItems": True}
SERVICE = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "build": {
            "type": "object",
            "additionalProperties": False,
            "required": ["context"],
            "properties": {"context": {"type": "string"}, "dockerfile": {"type": "string"}},
        },
        "cap_drop": NAMES,
        "command": {"type": "array", "items": {"type": "string"}},
        "depends_on": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "additionalProperties": False,
                "required": ["condition"],
                "properties": {
                    "condition": {"enum": ["service_started", "service_healthy", "service_completed_successfully"]}
                },
            },
        },
        "environment": {"type": "object", "additionalProperties": {"type": ["string", "number", "null"]}},
        "healthcheck": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "test": {"type": "array", "prefixItems": [{"enum": ["CMD", "CMD-SHELL"]}], "items": {"type": "string"}},
                "interval": DURATION_TEXT,
                "timeout": DURATION_TEXT,
                "start_period": DURATION_TEXT,
                "retries": {"type": "integer"},
            },
        },
        "image": {"type": "string"},
        "init": {"type": "boolean"},
        "read_only": {"type": "boolean"},
        "restart": {"enum": ["no", "always", "on-failure", "unless-stopped"]},
        "secrets": NAMES,
        "security_opt": NAMES,
        "stop_grace_period": DURATION_TEXT,
        "tmpfs": NAMES,
        "volumes": NAMES,
    },
}
COMPOSE_FILE = {
    "type": "object",
    "additionalProperties": False,
    "required": ["services"],
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z0-9][a-z0-9_-]*$"},
        "services": {"type": "object", "additionalProperties": SERVICE},
        "volumes": {"type": "object", "additionalProperties": {"type": ["object", "null"]}},
        "secrets": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "additionalProperties": False,
                "required": ["file"],
                "properties": {"file": {"type": "string"}},
            },
        },
    },
}


def instructions():
    """The instructions of the Dockerfile, each a word and the rest, by stage."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    lines = [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]
    starts = [number for number, (word, _) in enumerate(lines) if word == "FROM"]
    return [lines[start:end] for start, end in zip(starts, [*starts[1:], None], strict=True)]


def last(word):
    """What the image is given by its last stage."""
    return [rest for name, rest in instructions()[-1] if name == word][-1]


def exec_form(text):
    words = json.loads(text)
    assert words and all(isinstance(word, str) for word in words)
    return words


def health_command():
    options, _, command = last("HEALTHCHECK").partition("CMD ")
    return dict(word.removeprefix("--").split("=") for word in options.split()), exec_form(command)


def environment_of_image():
    return dict(word.split("=", 1) for word in shlex.split(last("ENV")))


def test_hadolint_is_content():
    linted = subprocess.run([BIN / "hadolint", DOCKERFILE], capture_output=True, text=True, timeout=60, check=False)
    assert (linted.returncode, linted.stdout) == (0, "")


def test_the_image_is_built_in_two_stages_and_runs_as_nobody_in_particular():
    build, final = instructions()
    assert all(re.fullmatch(r"python:\$\{PYTHON_VERSION\}-slim( AS build)?", stage[0][1]) for stage in (build, final))
    words = [word for word, _ in final]
    user, group = last("USER").split(":")
    assert user.isdigit() and group.isdigit() and int(user) > 0
    assert "RUN" not in words[words.index("USER") :]
    assert any("ca-certificates" in rest for word, rest in final if word == "RUN")
    assert any(f"--uid {user} " in rest and "/queue" in rest for word, rest in final if word == "RUN")
    assert last("VOLUME") == last("WORKDIR") == "/queue"
    assert last("STOPSIGNAL") == "SIGTERM"
    assert {*environment_of_image()} == {"PATH", "BATCHQ_RUNTIME_DIR"}
    everything = "\n".join(rest for stage in (build, final) for _, rest in stage)
    assert not re.search(r"https?://|index-url|API_KEY|sk-", everything)


def test_the_healthcheck_allows_for_what_it_takes():
    options, command = health_command()
    assert command == ["batchq", "health"]
    assert DURATION.convert(options["timeout"], None, None) >= 2
    assert DURATION.convert(options["start-period"], None, None) >= 10


def context(target):
    """Copy what .dockerignore leaves: of the patterns that a path or what is above it matches, the last one counts."""
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]

    def leaves_out(path):
        out = False
        for rule in rules:
            pattern = rule.removeprefix("!")
            for each in (path, *path.parents[:-1]):
                if fnmatch.fnmatchcase(str(each), pattern) or fnmatch.fnmatchcase(f"/{each}", pattern[2:]):
                    out = not rule.startswith("!")
        return out

    there = [path for top in ROOT.glob("[!.]*") for path in (top, *top.rglob("*")) if path.is_file()]
    names = [path.relative_to(ROOT) for path in there]
    invented = map(Path, (".env", "runs.db", "deploy/secrets/batchq_db", "batchq/.env"))
    left = [name for name in (*names, *invented) if not leaves_out(name)]
    for path in left:
        if (ROOT / path).exists():
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, target / path)
    return {str(path) for path in left}


def test_the_context_holds_what_the_wheel_is_built_of_and_no_secret(tmp_path):
    left = context(tmp_path / "source")
    assert {"pyproject.toml", "README.md", "LICENSE", "batchq/__init__.py"} <= left
    assert not {name for name in left if name.startswith((".", "tests/", "deploy/secrets", "runs.db"))}
    assert not {name for name in left if "__pycache__" in name}
    built = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", tmp_path],
        cwd=tmp_path / "source", capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        assert {"batchq/cli/health.py", "batchq_workers/openrouter.py"} <= {*opened.namelist()}


def test_as_the_first_process_it_hears_the_signal_and_drains(tmp_path):
    command = [*exec_form(last("ENTRYPOINT")), *exec_form(last("CMD"))]
    namespace = ["unshare", "--pid", "--fork", *(["--user", "--map-root-user"] if os.geteuid() else [])]
    settings = {
        "BATCHQ_RUNTIME_DIR": str(tmp_path / "run"),
        "MODEL": "m",
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    }
    with (
        running_provider(latency=2) as provider,
        bench(tmp_path, BATCHQ_BASE_URL=provider.base_url, **settings) as place,
    ):
        assert place.run("enqueue", str(place.write_prompts(4)), "--batch", "b").returncode == 0
        with (tmp_path / "err").open("w") as err:
            outer = subprocess.Popen([*namespace, *command], cwd=tmp_path, env=place.environment, stderr=err)
        inner = int(wait_for(lambda: _children(outer.pid), "the first process"))
        try:
            wait_for(lambda: place.count("inflight") == 4, "calls in flight")
            assert place.query("SELECT pid FROM runners") == [(1,)]
            well = wait_for(lambda: (asked := _health(place)).returncode == 0 and asked, "the container to be healthy")
            assert well.stdout.startswith("worker 1: running, ")

            os.kill(inner, signal.SIGTERM)

            assert outer.wait(30) == 0, (tmp_path / "err").read_text()
        finally:
            if outer.poll() is None:
                os.kill(inner, signal.SIGKILL)
                outer.wait(10)
        assert place.count("done") == 4
        assert _health(place).returncode == 1


def _children(pid):
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().strip()


def _health(place):
    _, command = health_command()
    return subprocess.run(command, env=place.environment, capture_output=True, text=True, timeout=30, check=False)


def test_compose_is_well_formed():
    jsonschema.Draft202012Validator(COMPOSE_FILE).validate(COMPOSE)
    for service in COMPOSE["services"].values():
        assert {*service["secrets"]} <= {*COMPOSE["secrets"]}
        assert {*service.get("depends_on", ())} <= {*COMPOSE["services"]}
        named = {volume.split(":")[0] for volume in service["volumes"] if not volume.startswith("/")}
        assert named <= {*COMPOSE["volumes"]}


def test_compose_scales_workers_and_waits_for_their_drain():
    worker, postgres = COMPOSE["services"]["worker"], COMPOSE["services"]["postgres"]
    command, *arguments = worker["command"]
    assert command == "worker"
    drain = worker_command.make_context("worker", arguments).params["drain_timeout"]
    assert DURATION.convert(worker["stop_grace_period"], None, None) >= drain + 30
    assert worker["init"] is True
    assert worker["depends_on"]["postgres"]["condition"] == "service_healthy"
    assert postgres["healthcheck"]["test"][:2] == ["CMD", "pg_isready"]
    build = (DEPLOY / worker["build"]["context"]).resolve()
    assert build == ROOT and (build / worker["build"]["dockerfile"]) == DOCKERFILE
    user, group = last("USER").split(":")
    directory = environment_of_image()["BATCHQ_RUNTIME_DIR"]
    assert worker["tmpfs"] == [f"{directory}:uid={user},gid={group},mode=0700"]
    for service in (worker, postgres):
        assert not any(
            "password" in str(value).lower() and "/run/secrets/" not in str(value)
            for value in service.get("environment", {}).values()
        )


def test_the_secrets_of_compose_are_made_as_it_says_and_are_settings_of_a_worker(tmp_path):
    comment = [
        line.removeprefix("#").strip()
        for line in (DEPLOY / "compose.yaml").read_text().splitlines()
        if line.startswith("#")
    ]
    steps = [line for line in comment if "secrets" in line and not line.startswith(("docker", "PostgreSQL"))]
    assert len(steps) == 5
    subprocess.run(
        ["bash", "-euc", "umask 077\n" + "\n".join(steps)],
        cwd=tmp_path, env=os.environ | {"OPENROUTER_API_KEY": "sk-or-planted"}, timeout=30, check=True,
    )  # fmt: skip

    made = {f"secrets/{path.name}" for path in (tmp_path / "secrets").iterdir()}
    assert made == {secret["file"] for secret in COMPOSE["secrets"].values()}
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "secrets").iterdir()} == {0o444}
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700
    read = read_credentials(tmp_path / "secrets").values
    assert {*read} == {"db", "openrouter_api_key"}
    assert read["openrouter_api_key"] == "sk-or-planted"
    password = (tmp_path / "secrets" / "postgres_password").read_text().strip()
    assert read["db"] == f"postgresql+psycopg://batchq:{password}@postgres/batchq"
    database = COMPOSE["services"]["postgres"]["environment"]
    assert (database["POSTGRES_USER"], database["POSTGRES_DB"]) == ("batchq", "batchq")
    assert database["POSTGRES_PASSWORD_FILE"] == "/run/secrets/postgres_password"
    assert {*COMPOSE["services"]["worker"]["secrets"]} == {"batchq_db", "openrouter_api_key"}


@pytest.mark.parametrize("name", ["compose.yaml", "Dockerfile", "supervisord.conf"])
def test_deployed_files_name_no_package_registry(name):
    assert not re.search(r"https?://", (DEPLOY / name).read_text())
