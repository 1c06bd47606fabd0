"""The soak: workers that run for long, and what must stay flat meanwhile."""
