"""Decisions, without trio, clocks, randomness or files: `now` and `rng` are arguments."""
