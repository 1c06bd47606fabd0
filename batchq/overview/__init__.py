"""Looks at a whole queue, once or again and again: what `status` and `top` show."""

from batchq.overview.onlooker import Away, Onlooker
from batchq.overview.paces import Paces
from batchq.overview.standing import look_at, state_of, why_waits

__all__ = ["Away", "Onlooker", "Paces", "look_at", "state_of", "why_waits"]
