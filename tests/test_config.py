"""Settings: which place wins, what `config show` tells of it, and whose key goes where."""

from __future__ import annotations

import json
import stat

import pytest
from fake_provider import running_provider
from processes import bench

KEY = "plantedkey4-Rw2pT8yLq0Zs"
ENDPOINT = "[endpoints.{name}]\nbase_url = '{url}'\n"


@pytest.fixture
def place(tmp_path):
    """A directory below a project, with a user's and a site's files that tests write."""
    directory = tmp_path / "project" / "below"
    directory.mkdir(parents=True)
    homes = {"XDG_CONFIG_HOME": str(tmp_path / "user"), "XDG_CONFIG_DIRS": str(tmp_path / "site")}
    with bench(directory, CREDENTIALS_DIRECTORY=str(tmp_path / "credentials"), **homes) as opened:
        yield opened


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def shown(place, *options, **environment):
    done = place.run("config", "show", "--json", *options, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_nearer_place_wins_and_the_setting_tells_its_place(place, tmp_path):
    def told():
        return shown(place)["settings"]["model"]

    assert told() == {"value": None, "from": "default"}
    write(tmp_path / "site" / "batchq" / "config.toml", "model = 'of the site'\n")
    assert told() == {"value": "of the site", "from": f"model in {tmp_path}/site/batchq/config.toml"}
    write(tmp_path / "user" / "batchq" / "config.toml", "model = 'of the user'\n")
    assert told() == {"value": "of the user", "from": f"model in {tmp_path}/user/batchq/config.toml"}
    write(tmp_path / "project" / "pyproject.toml", "[tool.batchq]\nmodel = 'of the project'\n")
    assert told() == {"value": "of the project", "from": f"tool.batchq.model in {tmp_path}/project/pyproject.toml"}
    write(place.directory / "batchq.toml", "model = 'of the nearer'\n")
    assert told() == {"value": "of the nearer", "from": f"model in {place.directory}/batchq.toml"}
    write(tmp_path / "credentials" / "batchq_model", "of the service\n")
    assert told() == {"value": "of the service", "from": f"batchq_model in {tmp_path}/credentials"}
    write(tmp_path / "project" / ".env", "MODEL=of-the-dotenv\n")
    assert told() == {"value": "of-the-dotenv", "from": f"MODEL in {tmp_path}/project/.env"}
    place.environment["MODEL"] = "of the environment"
    assert told() == {"value": "of the environment", "from": "MODEL in the environment"}
    place.environment["BATCHQ_MODEL"] = "of its own"
    assert told() == {"value": "of its own", "from": "BATCHQ_MODEL in the environment"}


def test_a_flag_wins_over_all_of_them(place):
    told = shown(place, "--db", "flag.db", BATCHQ_DB="variable.db")["settings"]["db"]
    assert told == {"value": "flag.db", "from": "--db"}


def test_pyproject_files_of_others_are_passed_over_and_two_files_side_by_side_are_a_contradiction(place, tmp_path):
    write(place.directory / "pyproject.toml", "[tool.other]\nname = 'batchq'\n")
    write(tmp_path / "project" / "batchq.toml", "concurrency = 3\n")
    assert shown(place)["settings"]["concurrency"]["value"] == 3
    write(tmp_path / "project" / "pyproject.toml", "[tool.batchq]\nconcurrency = 4\n")
    done = place.run("config", "show")
    assert (done.returncode, "both hold settings: keep one of the two" in done.stderr) == (78, True)


def test_a_relative_path_is_meant_from_the_file_that_names_it(place, tmp_path):
    write(tmp_path / "project" / "batchq.toml", "db = 'queue.db'\n")
    assert shown(place)["settings"]["db"]["value"] == str(tmp_path / "project" / "queue.db")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("insecure = 'yes'\n", "insecure in {file}: it should be true or false, without quotes"),
        ("concurrency = 0\n", "concurrency in {file}: Input should be greater than or equal to 1"),
        ("lease = 'soon'\n", "lease in {file}: "),
        ("log_level = 'loud'\n", "log_level in {file}: Input should be 'debug', 'info', 'warning' or 'error'"),
        ("concurency = 3\n", "{file}: there is no setting 'concurency'; known: "),
    ],
)
def test_a_value_that_is_none_is_told_by_its_file_and_key(place, text, message):
    write(place.directory / "batchq.toml", text)
    done = place.run("status")
    assert done.returncode == 78
    assert message.format(file=place.directory / "batchq.toml") in done.stderr


def test_what_commands_take_without_a_flag_is_what_the_settings_say(place):
    write(
        place.directory / "batchq.toml",
        "model = 'm'\nconcurrency = 3\nlease = '7s'\nmax_attempts = 2\ncall_timeout = '90s'\n",
    )
    place.write_prompts(2)
    assert place.run("enqueue", "prompts.jsonl").returncode == 0
    assert place.query("SELECT max_attempts, call_timeout_ms FROM batches") == [(2, 90_000)]
    with running_provider() as provider:
        worker = place.start("worker", "--base-url", provider.base_url, "--until-empty")
        assert worker.wait(60) == 0
    started = next(json.loads(line) for line in place.errors(worker).splitlines() if "worker.started" in line)
    assert started["concurrency"] == 3


def test_no_key_is_shown_wherever_it_stands(place, tmp_path):
    write(tmp_path / "credentials" / "OPENAI_API_KEY", KEY)
    write(
        place.directory / "batchq.toml",
        ENDPOINT.format(name="own", url="https://h.example/v1") + f"api_key = '{KEY}'\n",
    )
    for options in ((), ("--json",)):
        done = place.run("config", "show", *options, env={"OPENROUTER_API_KEY": KEY})
        assert (done.returncode, KEY in done.stdout + done.stderr) == (0, False)
    told = shown(place, OPENROUTER_API_KEY=KEY)["settings"]
    assert told["openai_api_key"] == {"value": "set, not shown", "from": f"OPENAI_API_KEY in {tmp_path}/credentials"}
    assert told["endpoints.own.api_key"]["value"] == "set, not shown"


@pytest.mark.parametrize("name", ["batchq.toml", ".env"])
def test_a_file_that_came_with_a_directory_gets_no_key_from_elsewhere(place, name):
    """Somebody's repository may name a server: the user's key does not go there."""
    url = "https://collector.example/v1"
    write(place.directory / name, f"base_url = '{url}'\n" if name == "batchq.toml" else f"BATCHQ_BASE_URL={url}\n")
    place.write_prompts(1)
    place.environment["OPENAI_API_KEY"] = KEY
    done = place.run("run", "prompts.jsonl", "-o", "out.jsonl", "--model", "m", timeout=60)
    assert done.returncode == 78
    assert f"names the server {url}, and the key from OPENAI_API_KEY in the environment would go there" in done.stderr
    assert KEY not in done.stderr
    (server,) = shown(place)["servers"]
    assert (server["base_url"], server["key_withheld"]) == (url, True)


def test_who_names_the_server_himself_or_puts_the_key_beside_the_file_means_it(place):
    url = "https://server.example/v1"
    write(place.directory / "batchq.toml", f"base_url = '{url}'\n")
    place.environment["OPENAI_API_KEY"] = KEY
    assert [server["key_withheld"] for server in shown(place, BATCHQ_BASE_URL=url)["servers"]] == [False]
    del place.environment["OPENAI_API_KEY"]
    write(place.directory / ".env", f"OPENAI_API_KEY={KEY}\n")
    assert [server["key_withheld"] for server in shown(place)["servers"]] == [False]


def test_a_dotenv_file_reads_nothing_from_the_environment(place):
    write(place.directory / ".env", "BATCHQ_BASE_URL=https://collector.example/${OPENAI_API_KEY}\n")
    assert shown(place, OPENAI_API_KEY=KEY)["settings"]["base_url"]["value"] == "https://collector.example/"


def test_a_credential_is_the_key_of_a_worker(place, tmp_path):
    write(tmp_path / "credentials" / "openai_api_key", f"{KEY}\n")
    (tmp_path / "credentials" / "openai_api_key").chmod(stat.S_IRUSR)
    place.write_prompts(2)
    place.run("enqueue", "prompts.jsonl", "--model", "m")
    with running_provider(require_key=KEY) as provider:
        done = place.run("worker", "--base-url", provider.base_url, "--until-empty")
        assert done.returncode == 0, done.stderr
        assert provider.ledger()["answered"] == 2


def test_the_default_endpoint_is_what_base_url_says_and_nothing_else(place):
    write(place.directory / "batchq.toml", ENDPOINT.format(name="default", url="https://collector.example/v1"))
    done = place.run("config", "show", "--base-url", "http://127.0.0.1:1/v1")
    assert (done.returncode, "the endpoint default is what base_url says" in done.stderr) == (78, True)


def test_a_relative_path_in_a_dotenv_file_is_meant_from_it(place, tmp_path):
    write(tmp_path / "project" / ".env", "BATCHQ_DB=queue.db\n")
    assert shown(place)["settings"]["db"]["value"] == str(tmp_path / "project" / "queue.db")


def test_a_switch_may_be_a_credential(place, tmp_path):
    write(tmp_path / "credentials" / "batchq_insecure", "1\n")
    assert shown(place)["settings"]["insecure"] == {
        "value": True,
        "from": f"batchq_insecure in {tmp_path}/credentials",
    }


def test_a_pyproject_of_somebody_else_may_be_anything(place):
    (place.directory / "pyproject.toml").write_bytes(b"\xef\xbb\xbfname = 'caf\xe9'\n")
    assert shown(place)["settings"]["db"]["from"] == "default"
