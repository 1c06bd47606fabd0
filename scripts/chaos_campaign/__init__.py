"""Kills, stops and terminates real workers while they work, and judges what is left: `scripts/chaos`."""
