"""The members of an archive become plain files and folders in a folder of ours.

Belongs here: what of an archive is written, and where. Does not: the formats (tar.py,
decompress.py), and when an archive is unpacked (archive.py). An archive comes from elsewhere, and
a member's name is a path that its author chose: nothing is written but files and folders below the
target, and not more than the limits allow.
"""

import os
import shutil
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import google_crc32c

from eval_ingest.errors import StoreError
from eval_ingest.sources.tar import Member, TarError, TarStream
from eval_ingest.sources.window_table import WindowTable

_WINDOWS = b"windows"
_ROOM_EVERY = 1 << 28
"""Bytes between two looks at how much room is left on the disk."""
_MADE = 1 << 16
"""Folders that are remembered as made."""
_LEFT_FREE = 1 << 28


@dataclass(frozen=True)
class Limits:
    """What an archive may hold."""

    total_bytes: int = 4 * 2**40
    members: int = 50_000_000
    path_length: int = 1024


LIMITS = Limits()


class RefusedError(ValueError):
    """The archive holds what is not unpacked."""


def unpack(
    chunks: Iterable[bytes],
    target: Path,
    table: WindowTable,
    done: int,
    limits: Limits,
    each: Callable[[], None],
    fill: bool = False,
) -> int:
    """Write the members as they come; those that a stopped run has written are passed over.

    Args:
        chunks: the archive's bytes, uncompressed, in pieces.
        target: the folder that takes them; whatever lies there was written by this function.
        table: takes note of what is written, and of how many members are.
        done: members that a stopped run has written and noted.
        limits: more than this stops it.
        each: called after every member.
        fill: True if files that are there with the right size needn't be written again.

    Returns:
        How many bytes of no use follow the archive's end.

    Raises:
        TarError: the archive is damaged, cut off, or none.
        RefusedError: it is unsafe or larger than the limits.
        StoreError: the disk has no room for it.
        OSError: it can't be written.
    """
    archive = TarStream(chunks)
    files = _Files(target, fill)
    total = number = 0
    for number, member in enumerate(archive, 1):
        total += member.size
        parts = _checked_parts(member, limits)
        if number > limits.members or total > limits.total_bytes:
            raise RefusedError(
                f"holds more than {limits.members:,} members or {limits.total_bytes:,} bytes; "
                "unpack it by hand and give the folder"
            )
        if number > done and parts:
            written = None
            if member.is_folder:
                files.make_folder(parts)
            else:
                written = files.write(parts, member.size, archive.data())
            _note(table, parts, written)
            table.flush(done=number)
        each()
    table.flush(force=True, done=number)
    return archive.behind


def _note(table: WindowTable, parts: list[bytes], written: tuple[int, bytes] | None) -> None:
    """Note a file's size and version, or a folder, if it belongs to a window."""
    if _WINDOWS not in parts:
        return
    place = parts.index(_WINDOWS) + 3
    window, path = b"/".join(parts[:place]), b"/".join(parts[place:])
    if path and written is not None:
        table.add(window, {path: written})
    elif len(parts) >= place and written is None:
        table.add(window, {})  # it may have no files


def _checked_parts(member: Member, limits: Limits) -> list[bytes]:
    """The parts of a member's path; refused is everything but plain files and folders below.

    Links within the target have been a way around such checks more than once, and a dataset
    needs none.
    """
    path = member.path
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    if path.startswith(b"/") or b".." in parts or b"\\" in path or b"\0" in path:
        problem = "leaves the folder that it is unpacked into; write the archive "
        problem += "with relative paths: tar -C FOLDER -czf ARCHIVE ."
    elif member.problem:
        problem = member.problem
    elif len(path) > limits.path_length or any(len(part) > 255 for part in parts):
        problem = f"has a path longer than {limits.path_length}, or a name longer than 255"
    elif not parts and not member.is_folder:
        problem = "has no name"
    else:
        return parts
    raise RefusedError(f"is not unpacked: its member {os.fsdecode(path)[:200]!r} {problem}")


class _Files:
    """Files and folders below a folder."""

    def __init__(self, target: Path, fill: bool) -> None:
        self._target = os.fsencode(target)
        self._fill = fill
        self._made: set[bytes] = set()
        self._unchecked = _ROOM_EVERY

    def make_folder(self, parts: list[bytes]) -> bytes:
        """Make a folder and those above it; its path."""
        path = b"/".join([self._target, *parts])
        if path not in self._made and parts:
            self.make_folder(parts[:-1])
            try:
                os.mkdir(path)
            except (FileExistsError, NotADirectoryError) as error:
                if not os.path.isdir(path):
                    raise _twice(parts) from error
            if len(self._made) > _MADE:
                self._made.clear()
            self._made.add(path)
        return path

    def write(
        self, parts: list[bytes], size: int, pieces: Iterable[memoryview]
    ) -> tuple[int, bytes]:
        """Write a file, in the place of an earlier one of its name; its size and version."""
        self._require_room(size)
        path = self.make_folder(parts[:-1]) + b"/" + parts[-1]
        if self._fill and _size(path) == size:
            return size, _version(pieces, None)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            opened = os.open(path, flags, 0o666)
        except IsADirectoryError as error:
            raise _twice(parts) from error
        try:
            return size, _version(pieces, opened)
        finally:
            os.close(opened)

    def _require_room(self, size: int) -> None:
        self._unchecked += size
        if self._unchecked < _ROOM_EVERY:
            return
        self._unchecked = 0
        free = shutil.disk_usage(self._target).free
        if size + _LEFT_FREE > free:
            raise StoreError(
                f"unpacking into {os.fsdecode(self._target)} needs {size:,} bytes more, and "
                f"{free:,} are free; free space there: it goes on where it stopped"
            )


def _version(pieces: Iterable[memoryview], opened: int | None) -> bytes:
    """The version of what some pieces are together; they are written on the way, if anywhere."""
    crc = 0
    for piece in pieces:
        crc = google_crc32c.extend(crc, bytes(piece))
        while piece and opened is not None:
            piece = piece[os.write(opened, piece) :]
    return b"crc32c:%08x" % crc


def _size(path: bytes) -> int | None:
    """A file's bytes, or None if there is none."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def _twice(parts: list[bytes]) -> TarError:
    return TarError(
        f"{os.fsdecode(b'/'.join(parts))!r} is a file in one place, a folder in another"
    )
