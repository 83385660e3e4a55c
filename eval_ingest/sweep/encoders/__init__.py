"""Frozen encoders: what one is (base.py), by name (registry.py), and the two that come along."""

from eval_ingest.sweep.encoders.base import Embeddings, Encoder

__all__ = ["Embeddings", "Encoder"]
