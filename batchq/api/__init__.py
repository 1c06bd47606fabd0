"""The library: what scripts, notebooks and applications call."""
