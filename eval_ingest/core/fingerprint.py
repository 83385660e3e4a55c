"""Fingerprints: equal inputs, equal text."""

import hashlib
import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

from pydantic import BaseModel


def fingerprint(*parts: Any) -> str:
    """Sixteen hex digits from the canonical JSON of the parts (BLAKE2b, 64 bits).

    An iterator counts as the list of what it gives, of which a few are held at a time.

    >>> fingerprint("a", iter([1, 2])) == fingerprint("a", [1, 2])
    True
    """
    digest = hashlib.blake2b(digest_size=8)
    for number, part in enumerate(parts):
        digest.update(b"," if number else b"[")
        if isinstance(part, Iterator):
            start = b"["
            while some := list(islice(part, _FEW)):
                digest.update(start + _json(some)[1:-1])
                start = b","
            digest.update(b"]" if start == b"," else b"[]")
        else:
            digest.update(_json(part))
    digest.update(b"]" if parts else b"[]")
    return digest.hexdigest()


_FEW = 1 << 12


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=_plain).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} has no canonical JSON")
