"""The dashboard and the alerts in deploy/ name only what `batchq exporter` tells, and say what to do."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from fake_provider import running_provider
from processes import bench, wait_for
from scraping import Exporter, enqueued

DEPLOY = Path(__file__).resolve().parent.parent / "deploy"


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """The names of all samples of a queue in which everything has happened."""
    with (
        bench(tmp_path_factory.mktemp("told")) as place,
        running_provider() as provider,
        enqueued(place, provider, 2, "--budget", "1"),
    ):
        limit = ("--rpm", "600", "--tpm", "100000", "--max-inflight", "3")
        assert place.run("limit", "m", *limit).returncode == 0
        exporter = Exporter(place)
        before = exporter.samples()
        assert place.run("worker", "--until-empty").returncode == 0
        wait_for(lambda: exporter.value("batchq_jobs_finished_total") == 2, "it to count all", 20)
        place.start("worker")
        wait_for(lambda: exporter.value("batchq_workers", state="live") == 1, "a worker")
        # What 429s teach is told only where there were some.
        yield {name for name, *_labels in before | exporter.samples()} | {"batchq_lane_learned_rpm"}


def expressions_of(value):
    if isinstance(value, dict):
        for key, item in value.items():
            if key in {"expr", "definition"}:
                yield item
            yield from expressions_of(item)
    elif isinstance(value, list):
        for item in value:
            yield from expressions_of(item)


@pytest.mark.parametrize("name", ["grafana/batchq.json", "prometheus/alerts.yaml"])
def test_every_expression_names_a_metric_that_exists(told, name):
    text = (DEPLOY / name).read_text()
    expressions = list(expressions_of(json.loads(text) if name.endswith(".json") else yaml.safe_load(text)))
    assert len(expressions) >= 10
    for expression in expressions:
        named = set(re.findall(r"\bbatchq_\w+", expression))
        assert named, expression
        assert named <= told, expression


def test_the_dashboard_can_be_imported_as_it_is():
    board = json.loads((DEPLOY / "grafana/batchq.json").read_text())
    assert (board["id"], board["uid"]) == (None, "batchq")
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    assert {panel["datasource"]["uid"] for panel in panels} == {"${datasource}"}
    assert {panel["type"] for panel in panels} == {"stat", "timeseries"}


def test_every_alert_says_what_is_wrong_and_what_to_do():
    (group,) = yaml.safe_load((DEPLOY / "prometheus/alerts.yaml").read_text())["groups"]
    for rule in group["rules"]:
        assert set(rule["annotations"]) == {"summary", "action"}, rule["alert"]
        assert rule["labels"]["severity"] in {"warning", "critical"}
