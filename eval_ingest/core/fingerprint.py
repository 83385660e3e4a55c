"""Fingerprints: equal inputs, equal text."""

import hashlib
import json
from typing import Any

from pydantic import BaseModel


def fingerprint(*parts: Any) -> str:
    """Sixteen hex digits from the canonical JSON of the parts (BLAKE2b, 64 bits)."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=_plain)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} has no canonical JSON")
