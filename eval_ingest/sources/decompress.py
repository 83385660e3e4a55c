"""The bytes of a compressed stream, on a thread of their own, all of its members to the last one.

Belongs here: gzip by ISA-L, bzip2 and xz by Python's own modules. Does not: what the bytes are.
Every checksum and length is verified, and what `gzip -t` refuses is refused.
"""

import bz2
import lzma
import queue
import threading
from collections.abc import Callable, Generator
from typing import Any

from isal import igzip_lib, isal_zlib

_CHUNK = 1 << 20
"""Bytes that are handed on at a time, more or less."""
_AHEAD = 8
"""Chunks that are decompressed before somebody takes them."""
_MOST_XZ_BYTES = 1 << 28
_GZIP = b"\x1f\x8b"
_XZ = b"\xfd7zXZ\0"
_RESERVED = b"\x20"
"""The first of the flags of a gzip header that must not be set."""

_IsalError: Any = isal_zlib.error
Chunks = Generator[bytes, None, None]


class StreamError(ValueError):
    """The compressed stream is damaged, cut off, or followed by something else."""


def decompressed(read: Callable[[int], bytes]) -> Chunks:
    """The bytes of a stream, decompressed if they are compressed, which its first bytes say.

    Args:
        read: the stream's `read`; called on another thread, until there is nothing left.

    Raises:
        StreamError: see there; and whatever `read` raises.
    """
    return _on_a_thread(_decompress(_Input(read)))


def _decompress(source: "_Input") -> Chunks:
    start = source.peek(6)
    if start[:2] == _GZIP:
        yield from _members(source, _GZIP, _gunzip, _IsalError)
    elif start[:3] == b"BZh":
        yield from _members(source, b"BZh", bz2.BZ2Decompressor, OSError)
    elif start == _XZ:
        yield from _members(source, start, _unxz, lzma.LZMAError)
    elif start[:4] == b"\x28\xb5\x2f\xfd":
        raise StreamError("it is compressed with zstd, which isn't known here; compress with gzip")
    else:
        while chunk := source.take():
            yield chunk


def _gunzip() -> Any:
    return igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)


def _unxz() -> Any:
    # As much as the header asks for is taken at once, up to 4 GiB; `xz -9` asks for 65 MiB.
    return lzma.LZMADecompressor(memlimit=_MOST_XZ_BYTES)


class _Input:
    """A stream of which some bytes may be looked at before they are taken."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self._here = b""
        self.offset = 0

    def peek(self, size: int) -> bytes:
        """The next bytes, fewer at the end."""
        while len(self._here) < size and (more := self._read(_CHUNK)):
            self._here += more
        return self._here[:size]

    def take(self, size: int | None = None) -> bytes:
        """Exactly so many bytes, fewer at the end; None: what is at hand."""
        if size is None:
            self.peek(1)
            size = len(self._here)
        taken = self.peek(size)
        self._here = self._here[len(taken) :]
        self.offset += len(taken)
        return taken

    def give_back(self, data: bytes) -> None:
        """Have the last bytes that were taken before what comes next."""
        self._here = data + self._here
        self.offset -= len(data)


def _members(
    source: _Input, magic: bytes, decompressor: Callable[[], Any], error: type[Exception]
) -> Chunks:
    """Every member of a compressed file: bgzip and pigz write many, and files may be joined.

    Headers, checksums and lengths are verified by the decompressor, piece by piece: a bomb doesn't
    fill the memory.
    """
    while True:
        unpacking, at = decompressor(), source.offset
        if magic == _GZIP and source.peek(4)[3:] >= _RESERVED:
            raise StreamError(f"the gzip header at byte {at:,} is damaged")
        while not unpacking.eof:
            data = source.take() if unpacking.needs_input else b""
            if not data and unpacking.needs_input:
                raise StreamError(f"it ends at byte {source.offset:,}, before its data does")
            try:
                yield unpacking.decompress(data, _CHUNK)
            except (error, EOFError) as problem:
                raise StreamError(
                    f"the data from byte {at:,} on is damaged ({problem})"
                ) from problem
        source.give_back(unpacking.unused_data)
        if _is_at_end(source, magic):
            return


def _is_at_end(source: _Input, magic: bytes) -> bool:
    """True if nothing but zeros follows a member; False if another member does."""
    if source.peek(len(magic)) == magic:
        return False
    at, zeros = source.offset, 0
    while data := source.take():
        zeros += len(data)
        if data.count(0) != len(data):
            raise StreamError(f"what follows its end at byte {at:,} is neither data nor zeros")
    if magic == _XZ and zeros % 4:
        raise StreamError(f"{zeros} zeros follow its end at byte {at:,}, not whole fours of them")
    return True


def _on_a_thread(chunks: Chunks) -> Chunks:
    """What a generator gives, made on a thread of its own, a little ahead of whoever takes it."""
    ready: queue.Queue[bytes | BaseException | None] = queue.Queue(_AHEAD)
    stopped = threading.Event()

    def hand_on(item: bytes | BaseException | None) -> bool:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.2)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        last: BaseException | None = None
        try:
            for chunk in chunks:
                if not hand_on(chunk):
                    break
        except BaseException as error:  # raised where it is waited for
            last = error
        finally:
            chunks.close()
        hand_on(last)

    thread = threading.Thread(target=work, name="eval_ingest_unpack", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        thread.join()
