"""Frozen encoders: what one is (base.py), by name (registry.py), and the two that come along."""
