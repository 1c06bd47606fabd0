"""Assembles the ordered output of a batch: whole files at its end, or growing ones while it runs."""

from batchq.collecting.checks import check_not_source, check_output, check_places
from batchq.collecting.following import check_follow, follow
from batchq.collecting.output import Output
from batchq.collecting.whole import whole_results
from batchq.collecting.writing import Collected, collect, write_results

__all__ = [
    "Collected",
    "Output",
    "check_follow",
    "check_not_source",
    "check_output",
    "check_places",
    "collect",
    "follow",
    "whole_results",
    "write_results",
]
