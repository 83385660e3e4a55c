"""Values and rules: no I/O, no Dagster, no torch, no rslearn."""
