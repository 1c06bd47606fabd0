"""Metrics of a queue for Prometheus: read from the database when they are asked for, whichever workers are at work.

Workers come and go, and write nothing for this. What can be read as it stands is a gauge; counters and histograms count
from the start of the exporter on, by what has ended since its last look.
"""

from batchq.exporter.serving import print_metrics, serve_metrics

__all__ = ["print_metrics", "serve_metrics"]
