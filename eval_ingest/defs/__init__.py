"""The Dagster layer: it wires pipeline.py to assets and reports, and decides nothing itself."""
