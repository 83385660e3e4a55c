"""Files of ours that carry a checksum of all their bytes, so that damage is never read as a value.

JSON and Parquet files are sealed in the same way: a text of a known length stands at their end,
and takes the CRC-32 of the file as it was with zeros there. They stay plain JSON and Parquet to
everybody else. A file is checked before anything of it is parsed.
"""

import contextlib
import functools
import logging
import mmap
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from eval_ingest.core.entry import Metadata
from eval_ingest.core.registry_text import CHECKSUM
from eval_ingest.errors import IntegrityError
from eval_ingest.store.atomic import json_bytes, read_bytes, store_errors, write_bytes

Value = TypeVar("Value")

_MARK = b"crc32:"
_SEAL = re.compile(rb'"checksum"|crc32:[0-9a-f]{8}"\s*\}\s*\Z')
_CHECKSUM = b'"checksum"'
_LAST = re.compile(rb'\s*:\s*"crc32:[0-9a-f]{8}"\s*\}\s*')
_PART = 4 << 20
"""Bytes of a file that are in memory at a time."""
UNSEALED = "crc32:00000000"
"""Stands for the checksum until a file is sealed; nothing after it may begin with `crc32:`."""


def seal_file(path: Path) -> None:
    """Put the checksum into a file that has UNSEALED in it.

    Raises:
        OSError: it can't be written.
    """
    with open(path, "r+b") as stream, mmap.mmap(stream.fileno(), 0) as content:
        place = content.rfind(_MARK)
        checksum = _checksum(content, place)
        stream.seek(place)
        stream.write(checksum)


def sealed_json(value: dict[str, Any]) -> bytes:
    """A JSON object as a file's content, with its checksum."""
    return sealed_bytes(json_bytes({**value, CHECKSUM: UNSEALED}))


def sealed_bytes(content: bytes) -> bytes:
    """A file's content, in which UNSEALED stands at the end, with its checksum."""
    place = content.rfind(_MARK)
    return content[:place] + _checksum(content, place) + content[place + len(UNSEALED) :]


def is_sealed(content: bytes) -> bool:
    """True if a checksum of ours stands at the end of a JSON file, be it right or not."""
    return _SEAL.search(content) is not None


def write_sealed_json(path: Path, value: dict[str, Any]) -> None:
    """Replace a sealed JSON file at once.

    Raises:
        StoreError: it can't be written.
    """
    write_bytes(path, sealed_json(value))


def read_sealed(path: Path, cure: str) -> bytes | None:
    """A sealed file's bytes, which are as they were written; None if it isn't there.

    Args:
        path: the file.
        cure: what to do about damage, for the message.

    Raises:
        IntegrityError: it is damaged.
        StoreError: it can't be read.
    """
    content = read_bytes(path)
    wrong = "" if content is None else wrong_seal(content)
    if wrong:
        raise IntegrityError(f"{path} {wrong}", cure)
    return content


def check_sealed(path: Path, cure: str) -> bool:
    """Compare a sealed file's bytes with its checksum, without holding them; False if it is gone.

    Raises:
        IntegrityError: it is damaged.
        StoreError: it can't be read.
    """
    with store_errors("reading", path), contextlib.suppress(FileNotFoundError, NotADirectoryError):
        if not path.stat().st_size:
            raise IntegrityError(f"{path} is empty", cure)
        with open(path, "rb") as stream, mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ) as all_:
            wrong = wrong_seal(all_)
        if wrong:
            raise IntegrityError(f"{path} {wrong}", cure)
        return True
    return False


def wrong_seal(content: bytes | mmap.mmap) -> str:
    """What is wrong with a sealed file's bytes; "" if they are as they were written."""
    place = content.rfind(_MARK)
    if place < 0:
        return "is damaged, or of another version of eval_ingest"
    found, expected = content[place : place + len(UNSEALED)], _checksum(content, place)
    if found == expected:
        return ""
    return (
        f"is damaged or was edited: it has {expected.decode()} and says "
        f"{found.decode(errors='replace')}"
    )


def unsealed(content: bytes, path: Path, cure: str) -> bytes:
    """The JSON object in a sealed file, without its checksum.

    Raises:
        IntegrityError: the checksum isn't its last member.
    """
    before, key, after = content.rpartition(_CHECKSUM)
    if not key or not _LAST.fullmatch(after):
        raise IntegrityError(f"{path} is damaged at {CHECKSUM}", cure)
    return before.rstrip().removesuffix(b",") + b"}"


_AGAIN = "pull or copy it again: it was published elsewhere, and no ingest can repair it"


def cure_for(name: str, published: Metadata | None = None) -> str:
    """The cure for damage of a dataset: an ingest makes it anew, if it was ingested here."""
    untold = published is not None and published.is_untold
    return _AGAIN if untold else f"run: eval-ingest ingest {name}"


@contextlib.contextmanager
def cured(published: Metadata) -> Iterator[None]:
    """Damage of a dataset that is read in the block is told with the cure that it has."""
    try:
        yield
    except IntegrityError as error:
        if not published.is_untold:
            raise
        raise IntegrityError(error.what, _AGAIN) from error


def unless_damaged(read: Callable[[], Value | None]) -> Value | None:
    """What is read, or None where it is damaged, and that is told: it is made anew."""
    try:
        return read()
    except IntegrityError as error:
        _tell(error.what)
        return None


@functools.lru_cache(maxsize=64)
def _tell(what: str) -> None:
    """Say it once, on the terminal or in a run's log."""
    logging.getLogger("eval_ingest").warning("%s: it is made anew", what)


def _checksum(content: bytes | mmap.mmap, place: int) -> bytes:
    """The checksum of a content that has a checksum, or room for one, at a place."""
    crc = 0
    with memoryview(content) as view:
        parts = (0, place, UNSEALED.encode()), (place + len(UNSEALED), len(view), b"")
        for begin, end, then in parts:
            for start in range(begin, end, _PART):
                crc = zlib.crc32(view[start : min(start + _PART, end)], crc)
                if isinstance(content, mmap.mmap):  # or all of it counts as our memory
                    content.madvise(mmap.MADV_DONTNEED)
            crc = zlib.crc32(then, crc)
    return b"%s%08x" % (_MARK, crc)
