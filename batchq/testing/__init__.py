"""For tests of code that uses batchq: a temporary queue, a scripted worker, a clock to set, and `drain`.

Nothing here needs pytest; its fixtures are in `batchq.testing.fixtures`.
"""

from batchq.testing.clock import VirtualClock
from batchq.testing.draining import Drained, drain
from batchq.testing.scripted import Call, ScriptedWorker
from batchq.testing.temporary import TemporaryQueue, open_temporary, temporary_queue

__all__ = [
    "Call",
    "Drained",
    "ScriptedWorker",
    "TemporaryQueue",
    "VirtualClock",
    "drain",
    "open_temporary",
    "temporary_queue",
]
