"""The members of a tar stream, read to its last block: nothing that is damaged passes for the end.

Belongs here: tar's format, of ustar, pax and GNU tar, as a stream of bytes. Does not: compression
(decompress.py), and what becomes of a member (unpacking.py). Python's tarfile takes a header with
a wrong checksum for the end of the archive, and GNU tar a header of zeros.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from eval_ingest.sources.sparse import (
    SPARSE_RECORDS,
    SparseError,
    filled,
    gnu_parts,
    is_sparse,
    pax_parts,
    too_large,
)

BLOCK = 512
_MAX_EXTENDED = 1 << 20
"""Bytes of a pax header or a long name; real ones have hundreds."""
_ZERO = bytes(BLOCK)

_USUAL_NUMBERS = re.compile(rb"(?:[0-7]{7}[ \0]){3}([0-7]{11})[ \0][0-7]{11}[ \0]")
"""Mode, owner, group, size and time as nearly everybody writes them."""
_OCTAL = re.compile(rb"\0?[ \t-\r]*([0-7]*)(?:[\0 \t-\r]|$)")
_RECORDS = frozenset({b"path", b"size", *SPARSE_RECORDS})
"""What is kept of pax headers: a global one stays, and an archive may hold any number of them."""
_TIME, _OWNER = re.compile(rb"-?[0-9]+(?:\.[0-9]*)?"), re.compile(rb"[0-9]{1,10}")
_CHECKED = {**dict.fromkeys((b"mtime", b"atime", b"ctime"), _TIME),
            **dict.fromkeys((b"uid", b"gid"), _OWNER)}  # fmt: skip
"""Records that no dataset needs, and what GNU tar takes for one: others are damage to it."""
_RECORD_LENGTH = re.compile(rb"[ \t]*([0-9]{1,9})[ \t]+")

_LINK = "is a link or a device; write the archive with tar --dereference --hard-dereference"
_WHAT = {
    **dict.fromkeys((b"1", b"2", b"3", b"4", b"6"), _LINK),
    b"M": "goes on from another volume; write the archive in one piece",
    b"N": "is of a format of the last century; write the archive with a newer tar",
}


class TarError(ValueError):
    """The stream is no whole tar archive, or holds what a dataset has no use for."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file or folder of an archive."""

    path: bytes
    """As written, which is not to be trusted; without a slash at its end."""
    size: int
    """Bytes of a file; 0 of a folder."""
    is_folder: bool
    problem: str = ""
    """What it is, if it is neither a file nor a folder, and the cure."""


class TarStream:
    """The members of a tar archive, in order, each with its bytes.

    Args:
        chunks: the archive's bytes, uncompressed, in pieces.
    """

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._here = memoryview(b"")
        self._offset = 0
        self._data: Iterator[memoryview] = iter(())
        self._padding = 0
        self._global: dict[bytes, bytes] = {}
        self.behind = 0
        """Bytes behind the end markers that aren't zero; known when all members are read."""

    def __iter__(self) -> Iterator[Member]:
        """Members in turn; what is left unread of one is skipped.

        Raises:
            TarError: the archive is damaged, cut off, or none.
        """
        local: dict[bytes, bytes] = {}
        name: bytes | None = None
        while (block := self._header()) is not None:
            kind, at = block[156:157], self._offset - BLOCK
            if kind in (b"x", b"X", b"g", b"L", b"K"):
                data = self._extended(_number(block[124:136], "size", at), at)
                if kind == b"g":
                    self._global |= _records(data, at)
                elif kind in (b"x", b"X"):
                    local = _records(data, at)
                elif kind == b"L":
                    name = data.partition(b"\0")[0]
                continue
            records = {**self._global, **local}
            member, n_bytes = _member(block, records, name, at)
            local, name = {}, None
            self._padding = -n_bytes % BLOCK
            if kind == b"S" or is_sparse(records):
                member = self._sparse(member, block, records, n_bytes, at)
            else:
                self._data = self._stored(n_bytes)
            if kind != b"V":  # the name of the volume
                yield member
            for _ in self.data():
                pass
            self._take(self._padding, "the end of a member")
        if local or name is not None:
            raise TarError(f"the header at byte {self._offset:,} belongs to a member that is gone")

    def data(self) -> Iterator[memoryview]:
        """The bytes of the member that was given last, in pieces.

        Raises:
            TarError: the archive ends before.
        """
        try:
            yield from self._data
        except SparseError as error:
            raise TarError(f"{error}, before byte {self._offset:,}") from error

    def _stored(self, n_bytes: int) -> Iterator[memoryview]:
        while n_bytes:
            piece = self._piece(n_bytes)
            if not piece:
                raise TarError(
                    f"it ends at byte {self._offset:,}, {n_bytes:,} bytes before its member does"
                )
            n_bytes -= len(piece)
            yield piece

    def _sparse(
        self, member: Member, block: bytes, records: dict[bytes, bytes], n_bytes: int, at: int
    ) -> Member:
        """A member of which only some parts are stored, as the file that it is."""

        def take() -> bytes:
            return bytes(self._take(BLOCK, "the map of a sparse file"))

        try:
            if block[156:157] == b"S":
                used = 0
                size, parts = gnu_parts(block, take, lambda field: _number(field, "part", at))
            else:
                size, parts, used = pax_parts(records, take)
        except SparseError as error:
            raise TarError(f"the header at byte {at:,} is damaged: {error}") from error
        name = records.get(b"GNU.sparse.name", member.path).rstrip(b"/")
        self._data = filled(size, parts, n_bytes - used, self._stored)
        return Member(name, size, False, member.problem or too_large(size))

    def _header(self) -> bytes | None:
        """The next header, its checksum verified; None at the end, when all is read."""
        block = bytes(self._take(BLOCK, "a header"))
        if _checksum_is_right(block):
            return block
        if block == _ZERO:
            self._read_end()
            return None
        if self._offset == BLOCK:
            raise TarError("it doesn't begin as a tar archive does")
        raise TarError(f"the header at byte {self._offset - BLOCK:,} is damaged (wrong checksum)")

    def _read_end(self) -> None:
        """Read to the stream's end, from the first of the two zero blocks that end an archive."""
        at = self._offset - BLOCK
        if self._take(BLOCK, "the second block of zeros at the end") != _ZERO:
            raise TarError(
                f"one block of zeros at byte {at:,} stands where the end has two; "
                "a header may have been overwritten"
            )
        while block := bytes(self._piece(BLOCK)):
            while len(block) < BLOCK and (more := self._piece(BLOCK - len(block))):
                block += more
            if block == _ZERO:
                continue
            if len(block) == BLOCK and _checksum_is_right(block):
                raise TarError(
                    f"another archive begins at byte {self._offset - BLOCK:,}, behind the end of "
                    "the first; unpack both (tar --ignore-zeros) and write them as one"
                )
            self.behind += len(block) - block.count(0)

    def _extended(self, size: int, at: int) -> bytes:
        if size > _MAX_EXTENDED:
            raise TarError(f"the extended header at byte {at:,} has {size:,} bytes")
        data = self._take(size, "an extended header")
        self._take(-size % BLOCK, "the end of an extended header")
        return bytes(data)

    def _take(self, size: int, what: str) -> memoryview:
        """Exactly so many bytes."""
        piece = self._piece(size)
        if len(piece) == size:
            return piece
        parts = [piece]
        while (missing := size - sum(map(len, parts))) and (more := self._piece(missing)):
            parts.append(more)
        if missing:
            empty = "" if self._offset else "it is empty, or "
            raise TarError(f"{empty}it ends at byte {self._offset:,}, where {what} should be")
        return memoryview(b"".join(parts))

    def _piece(self, most: int) -> memoryview:
        """Some bytes, up to `most`; none at the end of the stream."""
        while not self._here and most:
            chunk = next(self._chunks, None)
            if chunk is None:
                break
            self._here = memoryview(chunk)
        piece, self._here = self._here[:most], self._here[most:]
        self._offset += len(piece)
        return piece


def _checksum_is_right(block: bytes) -> bool:
    """A header's sum of bytes; some old tars took them for signed."""
    match = _OCTAL.match(block[148:156])
    if match is None or not match[1]:
        return False
    stored, blank = int(match[1], 8), 8 * ord(" ")
    found = sum(block) - sum(block[148:156]) + blank
    if stored != found:
        found -= 256 * sum(byte > 127 for byte in (*block[:148], *block[156:]))
    return stored == found != blank


def _member(
    block: bytes, extended: dict[bytes, bytes], long_name: bytes | None, at: int
) -> tuple[Member, int]:
    """What a header speaks of, and how many bytes follow it.

    Its name is that of a pax header, of GNU tar's header for long ones, or its own, in this order.
    """
    kind = block[156:157]
    numbers = _USUAL_NUMBERS.match(block[100:148])
    size = int(numbers[1], 8) if numbers else _numbers(block, at)
    if b"size" in extended:
        size = _decimal(extended[b"size"], "size", at)
    path = extended.get(b"path", _name(block) if long_name is None else long_name)
    # Before 1988 a folder was a file whose name ends in a slash.
    is_file = kind in (b"0", b"\0", b"7")
    is_folder = kind in (b"5", b"D") or (is_file and path.endswith(b"/"))
    problem = _WHAT.get(kind, "")
    if is_folder and size and is_file:
        problem = "is a folder with bytes in it; write the archive with a newer tar"
    n_bytes = 0 if kind in b"123456" else size
    return Member(path.rstrip(b"/"), 0 if is_folder else size, is_folder, problem), n_bytes


def _name(block: bytes) -> bytes:
    name = block[:100].partition(b"\0")[0]
    if block[257:263] == b"ustar\0" and block[345]:
        return block[345:500].partition(b"\0")[0] + b"/" + name
    return name


def _numbers(block: bytes, at: int) -> int:
    """The size, of a header whose numbers aren't all written in the usual way."""
    _number(block[100:108], "mode", at, (-(2**63), 2**63))
    _number(block[108:116], "owner", at, (0, 2**32))
    _number(block[116:124], "group", at, (0, 2**32))
    _number(block[136:148], "time", at, (-(2**63), 2**63))
    return _number(block[124:136], "size", at)


def _number(field: bytes, what: str, at: int, within: tuple[int, int] = (0, 2**63)) -> int:
    """A number in octal digits, or in binary after a byte of 0x80 or 0xff."""
    match = _OCTAL.match(field)
    if match is not None and (match[1] or not field[:1].isspace()):
        return int(match[1] or b"0", 8)
    if field[0] in (0x80, 0xFF):
        value = int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
        if field[0] == 0xFF:
            value = int.from_bytes(field, "big", signed=True)
        if within[0] <= value < within[1]:
            return value
    raise TarError(f"the header at byte {at:,} gives no {what}: {field!r}")


def _decimal(text: bytes, what: str, at: int) -> int:
    if not text.isdigit() or len(text) > 19:
        raise TarError(f"the header at byte {at:,} gives no {what}: {text[:40]!r}")
    return int(text)


def _records(data: bytes, at: int) -> dict[bytes, bytes]:
    """The records of a pax header: each `length key=value` and a line's end."""
    found: dict[bytes, bytes] = {}
    parts: list[bytes] = []
    place, end = 0, len(data.rstrip(b"\0"))
    while place < end:
        match = _RECORD_LENGTH.match(data, place)
        stop = place + int(match[1]) if match else 0
        if match is None or not match.end() < stop <= len(data) or data[stop - 1 : stop] != b"\n":
            raise TarError(f"the extended header at byte {at:,} is malformed")
        key, equals, value = data[match.end() : stop - 1].partition(b"=")
        usual = _CHECKED.get(key)
        if not equals or b"\0" in key or (usual and not usual.fullmatch(value)):
            raise TarError(f"the extended header at byte {at:,} is malformed")
        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):  # version 0.0: one each a part
            parts.append(value)
        elif key in _RECORDS:
            found[key] = value
        place = stop
    if parts:
        found[b"GNU.sparse.map"] = b",".join(parts)
    return found
