"""What `scripts/bench` measures: batchq and its baselines side by side, as ratios within one run."""
