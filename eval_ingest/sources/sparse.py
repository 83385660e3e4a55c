"""Sparse members of a tar archive: which parts of a file are stored; the rest of it is zeros.

Belongs here: the maps of GNU tar's own header (kind S) and of its pax headers, versions 0.0 to 1.0.
Does not: the other members (tar.py).
"""

from collections.abc import Callable, Iterator, Mapping

_MOST_BYTES = 1 << 28
"""Of a file: hardly any of it need be in the archive."""
_MOST_PARTS = 1 << 20
_MOST_DIGITS = 19
_ZEROS = memoryview(bytes(1 << 16))

SPARSE_RECORDS = frozenset(
    b"GNU.sparse." + name
    for name in (b"major", b"minor", b"name", b"realsize", b"size", b"numblocks", b"map")
)
"""Of pax headers, besides a version 0.0's offsets and sizes, which become a map."""

Parts = list[tuple[int, int]]
"""Where each stored part begins in the file, and its bytes."""


class SparseError(ValueError):
    """The map of a sparse file is damaged."""


def is_sparse(records: Mapping[bytes, bytes]) -> bool:
    """True if a member's pax header is that of a sparse file."""
    return not SPARSE_RECORDS.isdisjoint(records)


def too_large(size: int) -> str:
    """What is wrong with a sparse file of that size, if anything is."""
    if size <= _MOST_BYTES:
        return ""
    return f"is a sparse file of {size:,} bytes; write the archive without --sparse"


def gnu_parts(
    block: bytes, take: Callable[[], bytes], number: Callable[[bytes], int]
) -> tuple[int, Parts]:
    """The file's size and the parts that its header lists, and the blocks that follow it.

    Args:
        block: the header.
        take: gives the next block.
        number: reads a field of 12 bytes.
    """
    parts: Parts = []
    size, begin, end, more = number(block[483:495]), 386, 482, block[482]
    while True:
        for place in range(begin, end, 24):
            if not block[place]:
                break
            parts.append(
                (number(block[place : place + 12]), number(block[place + 12 : place + 24]))
            )
        if not more or len(parts) > _MOST_PARTS:
            return size, parts
        block, begin, end = take(), 0, 504
        more = block[504]


def pax_parts(records: Mapping[bytes, bytes], take: Callable[[], bytes]) -> tuple[int, Parts, int]:
    """The file's size, its parts, and the bytes before them that hold their map.

    Args:
        records: of the pax header.
        take: gives the next block.
    """
    if records.get(b"GNU.sparse.major", b"0") != b"0":
        text = _stored_map(take)
        first, *numbers = text.split(b"\n")
        numbers = numbers[: 2 * _whole(first)]
        size, used = records.get(b"GNU.sparse.realsize", b""), len(text)
    else:
        numbers = [n for n in records.get(b"GNU.sparse.map", b"").split(b",") if n]
        size, used = records.get(b"GNU.sparse.size", b""), 0
    values = [_whole(n) for n in numbers]
    return _whole(size), list(zip(values[::2], values[1::2], strict=False)), used


def _stored_map(take: Callable[[], bytes]) -> bytes:
    """Blocks with a number of parts, and two numbers for each, a line each."""
    blocks = [take()]
    lines = 1 + 2 * min(_whole(blocks[0].partition(b"\n")[0]), _MOST_PARTS)
    left = lines - blocks[0].count(b"\n")
    while left > 0 and len(blocks) * len(blocks[0]) <= lines * (_MOST_DIGITS + 1):
        blocks.append(take())
        left -= blocks[-1].count(b"\n")
    if left > 0:
        raise SparseError("the map of a sparse file has no end")
    return b"".join(blocks)


def _whole(text: bytes) -> int:
    if not text.isdigit() or len(text) > _MOST_DIGITS:
        raise SparseError(f"the map of a sparse file holds {text[:40]!r}")
    return int(text)


def filled(
    size: int, parts: Parts, stored: int, take: Callable[[int], Iterator[memoryview]]
) -> Iterator[memoryview]:
    """The file's bytes in pieces, zeros where nothing is stored.

    Args:
        size: of the file.
        parts: of it that are stored.
        stored: bytes of the member.
        take: gives so many of them, in pieces.
    """
    ends = [0, *(start + n_bytes for start, n_bytes in parts)]
    starts = [*(start for start, _ in parts), size]
    # A hole at the end is a part of its own, of no bytes.
    fits = sum(n for _, n in parts) == stored and ends[-1] == size
    if not fits or any(e > s for e, s in zip(ends, starts, strict=True)):
        raise SparseError("the map of a sparse file doesn't fit what is stored of it")
    for end, start, n_bytes in zip(ends, starts, [*(n for _, n in parts), 0], strict=True):
        for place in range(end, start, len(_ZEROS)):
            yield _ZEROS[: start - place]
        yield from take(n_bytes)
