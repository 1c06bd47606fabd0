"""Looks an installation and its queue over: each check comes to findings, and says what to do.

Nothing is changed, and nothing is needed: what is missing, damaged, foreign or away is a finding, too. `checkup` reads
the database through and mends its tallies; what both look at is judged there.
"""

from __future__ import annotations

from batchq.doctor.examination import Asked, examine
from batchq.doctor.finding import Finding, Level

__all__ = ["Asked", "Finding", "Level", "examine"]
