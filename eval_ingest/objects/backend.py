"""What an object in a bucket is, and what may happen to it.

What doesn't belong here: how a store is spoken to (fsspec_backend.py, s3.py, gcs.py), trying again
(retry.py), and the words for what went wrong (explain.py).
"""

import base64
import hashlib
from dataclasses import dataclass


class Truncated(Exception):
    """What arrived isn't what was listed or sent, though nothing has changed."""


class Conflict(Exception):
    """An object isn't what it was when the writer looked: somebody else has written it."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An object, or a folder of objects, as listed."""

    name: str
    """Relative to the store's folder, with forward slashes."""
    size: int
    """Bytes; 0 for folders."""
    version: str
    """Changes when the content does: `crc32c:...`, `etag:...`, `generation:...` or `time:...`."""
    folder: bool = False
    token: str = ""
    """Changes with every write, also of the same content: what a conditional write names."""
    modified: float = 0.0
    """When it was written, in seconds since 1970; 0 if the server doesn't say."""

    @property
    def last(self) -> str:
        """The last part of its name."""
        return self.name.rpartition("/")[2]

    def is_as(self, seen: "Entry") -> bool | None:
        """Whether it is what was seen; None if that can't be told, as of times and checksums."""
        if self.size != seen.size:
            return False
        one, other = (entry.version.partition(":")[0] for entry in (self, seen))
        return self.version == seen.version if one == other != "" else None


Entries = list[Entry]


def crc32c_text(data: bytes) -> str:
    """CRC32C as Google Cloud Storage writes it.

    >>> crc32c_text(b"windows")
    'yo7OoA=='
    """
    import google_crc32c

    return base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode()


def is_content(data: bytes, version: str) -> bool | None:
    """Whether these are the bytes of which a version is the checksum; None if it is of none.

    >>> is_content(b"windows", "crc32c:yo7OoA=="), is_content(b"windows", "crc32c:ca8ecea0")
    (True, True)
    >>> is_content(b"window", "crc32c:yo7OoA=="), is_content(b"windows", "generation:1")
    (False, None)
    """
    kind, _, value = version.partition(":")
    if kind == "crc32c":  # in hex where we have counted it ourselves
        text = crc32c_text(data)
        return value in (text, base64.b64decode(text).hex())
    if kind == "etag" and len(value) == 32:  # the MD5, unless the server encrypts
        return hashlib.md5(data, usedforsecurity=False).hexdigest() == value
    return None
