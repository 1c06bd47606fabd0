"""Starts a `batchq exporter` and reads what it tells, as Prometheus does."""

from __future__ import annotations

import re
import urllib.request
from contextlib import contextmanager

from processes import wait_for
from prometheus_client.parser import text_string_to_metric_families

# A label has to be quoted.
BATCH = 'a "b" \\n'


def get(url):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=20) as answer:
        return answer.status, answer.read().decode()


class Exporter:
    """One that runs, and what it tells."""

    def __init__(self, place, *options):
        self.process = place.start("exporter", "--listen", "127.0.0.1:0", "--cache", "0s", *options)
        url = r"http://\S+/metrics"
        self.url = wait_for(lambda: re.search(url, place.errors(self.process)), "it to listen")[0]

    def samples(self):
        found = {}
        for family in text_string_to_metric_families(get(self.url)[1]):
            for sample in family.samples:
                found[sample.name, *sorted(sample.labels.items())] = sample.value
        return found

    def value(self, name, **labels):
        """The sum of all samples that have these labels."""
        wanted = set(labels.items())
        values = [value for (told, *others), value in self.samples().items() if told == name and wanted <= set(others)]
        return sum(values) if values else None


@contextmanager
def enqueued(place, provider, count=20, *options):
    place.write_prompts(count)
    place.environment["BATCHQ_BASE_URL"] = provider.base_url
    done = place.run("enqueue", "prompts.jsonl", "--model", "m", "--batch", BATCH, *options)
    assert done.returncode == 0, done.stderr
    yield
