"""The one door to a bucket: what an object is, and the protocol that every kind of store speaks.

What belongs here: values and the protocol. What doesn't: how a store says it (fsspec_backend.py,
s3.py, gcs.py), trying again (retry.py), and the words for what went wrong (explain.py).
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


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


Entries = list[Entry]


class Backend(Protocol):
    """A folder of objects, each request tried once; names are relative to the folder.

    Every method raises FileNotFoundError where there is no such object or bucket, and otherwise
    whatever the store's library raises: see faults.py for what these errors mean.
    """

    has_conditions: bool
    """True if of two writers at once one is refused."""
    lists_prefixes: bool
    """True if objects can be listed by a prefix that isn't a folder."""
    deleted_at_once: int
    """How many one request deletes."""

    def path(self, name: str) -> str:
        """An object's path in the store: for a bucket, bucket/folder/name."""
        ...

    async def list(self, folder: str) -> Entries:
        """What lies right below a folder."""
        ...

    async def find(self, folder: str, prefix: str = "") -> Entries:
        """Every object at any depth below a folder, whose path in it begins with a prefix."""
        ...

    async def head(self, name: str) -> Entry:
        """An object as it is now."""
        ...

    async def get(self, name: str) -> tuple[Entry | None, bytes]:
        """An object's bytes, and what the same answer says of it: None where it says nothing."""
        ...

    async def range(self, name: str, start: int, end: int) -> bytes:
        """The bytes from `start` to before `end`."""
        ...

    async def put(self, name: str, data: bytes, seen: Entry | None = None) -> Entry:
        """Write an object, whole or not at all.

        Args:
            name: the object.
            data: its bytes.
            seen: what it has to be still, by its token; without a token: not there. None: whatever
                is there.

        Raises:
            Conflict: it is something else.
            Truncated: the server says that it got something else.
        """
        ...

    async def put_file(self, name: str, file: Path) -> Entry:
        """Write an object that isn't there from a file, in parts where it is large.

        Raises:
            Conflict: it is there.
        """
        ...

    async def delete(self, names: Sequence[str]) -> None:
        """Delete objects, `deleted_at_once` at the most."""
        ...


def crc32c_text(data: bytes) -> str:
    """CRC32C as Google Cloud Storage writes it.

    >>> crc32c_text(b"windows")
    'yo7OoA=='
    """
    import google_crc32c

    return base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode()
