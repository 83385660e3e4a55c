"""The members of an archive become plain files and folders in a folder of ours.

Belongs here: what of an archive is written, and where. Does not: the formats (tar.py,
decompress.py), and when an archive is unpacked (archive.py). An archive comes from elsewhere, and
a member's name is a path that its author chose: nothing is written but files and folders below the
target, and not more than the limits allow.
"""

import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import google_crc32c

from eval_ingest.errors import StoreError
from eval_ingest.sources.tar import Member, TarError, TarStream
from eval_ingest.sources.window_table import Files, WindowTable

_WINDOWS, _VERSION = b"windows", b"crc32c:%08x"
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


_GATHERED_BYTES = 1 << 26
"""Of a window that is gathered in memory; a larger one is written piece by piece."""


@dataclass
class ArrivedWindow:
    """A window whose files came one after the other, and that isn't written yet."""

    folder: bytes
    """Its path in the archive."""
    last: int = 0
    """The number of the last of its members."""
    files: dict[bytes, bytes] = field(default_factory=dict)
    """By their path in the window."""
    versions: Files = field(default_factory=dict)
    n_bytes: int = 0
    _folders: set[bytes] = field(default_factory=set)

    def add(self, path: bytes, data: bytes) -> None:
        """Add a file; the last of a name counts."""
        above = [path[:k] for k, letter in enumerate(path) if letter == ord("/")]
        self._folders.update(above)
        if path in self._folders or not self.files.keys().isdisjoint(above):
            raise _twice([self.folder, path])
        self.files[path] = data
        self.versions[path] = len(data), _VERSION % google_crc32c.value(data)
        self.n_bytes += len(data)

    def add_folder(self, path: bytes) -> None:
        """Note a folder, which is made where a file needs it."""
        self._folders.add(path)
        if path in self.files:
            raise _twice([self.folder, path])


class _Placed(NamedTuple):
    """A member, and where it belongs."""

    member: Member
    parts: list[bytes]
    """Of its path."""
    folder: bytes
    """The window's that it belongs to, and its path in there; both empty if to none."""
    path: bytes
    is_first: bool
    """True for the first member of a window."""


class Unpacking:
    """The members of an archive on their way to become files.

    Three steps, of which only the last has to be taken: what stands before the windows, windows
    that somebody else writes, and the rest.

    Args:
        chunks: the archive's bytes, uncompressed, in pieces.
        target: the folder that takes them; whatever lies there was written by this class.
        table: takes note of what is written, and of how many members are.
        done: members that a stopped run has written and noted: they are passed over.
        limits: more than this stops it.
        each: called after every member.
        fill: True if files that are there with the right size needn't be written again.

    Each step raises:
        TarError: the archive is damaged, cut off, or none.
        RefusedError: it is unsafe or larger than the limits.
        StoreError: the disk has no room for it.
        OSError: it can't be written.
    """

    def __init__(
        self,
        chunks: Iterable[bytes],
        target: Path,
        table: WindowTable,
        done: int,
        limits: Limits,
        each: Callable[[], None],
        fill: bool = False,
    ) -> None:
        self._archive = TarStream(chunks)
        self._target, self._table, self._done = target, table, done
        self._files = _Files(target, fill)
        self._number = 0
        self._folders: set[int] = set()
        """Hashes of the windows' folders so far and of those above, be they written or not; ..."""
        self._strays: set[int] = set()
        """... and of the files that are in no window."""
        self._members = self._checked(limits, each)
        self._held: _Placed | None = None
        """A member that the next step begins with."""
        self._large: ArrivedWindow | None = None

    def _checked(self, limits: Limits, each: Callable[[], None]) -> Iterator["_Placed"]:
        """The members that aren't written yet, each with its place."""
        total = 0
        for member in self._archive:
            self._number += 1
            total += member.size
            parts = _checked_parts(member, limits)
            if self._number > limits.members or total > limits.total_bytes:
                raise RefusedError(
                    f"holds more than {limits.members:,} members or {limits.total_bytes:,} bytes; "
                    "unpack it by hand and give the folder"
                )
            if parts:
                placed = self._placed(member, parts)
                if self._number > self._done:
                    yield placed
            each()

    def _placed(self, member: Member, parts: list[bytes]) -> "_Placed":
        """A member with its place, which isn't a file here and a folder there.

        Where a window is written by others, or not at all, the disk doesn't notice.
        """
        folder, path = _window_of(parts)
        if path or (folder and member.is_folder):
            is_first = hash(folder) not in self._folders
            if is_first:
                windows = folder.split(b"/")
                above = {hash(b"/".join(windows[:n])) for n in range(1, len(windows) + 1)}
                if not self._strays.isdisjoint(above):
                    raise _twice(parts)
                self._folders |= above
            return _Placed(member, parts, folder, path, is_first)
        if not member.is_folder:
            if hash(whole := b"/".join(parts)) in self._folders:
                raise _twice(parts)
            self._strays.add(hash(whole))
        return _Placed(member, parts, folder, path, False)

    def begin(self, config_files: Sequence[str]) -> bool:
        """Write what stands before the first window; True if a configuration does."""
        for placed in self._members:
            parts = placed.parts
            if _WINDOWS not in parts:
                self._put(placed)
                continue
            above = self._target / os.fsdecode(b"/".join(parts[: parts.index(_WINDOWS)]))
            self._held = placed
            self._table.flush(force=True, done=self._number - 1)
            return any((above / name).is_file() for name in config_files)
        return False

    def windows(self, group_folders: bytes) -> Iterator[ArrivedWindow]:
        """Windows whose members stand together, up to one that doesn't, or is large.

        They are written by whoever takes them, who notes each when all before it are written.
        Other members are written here.

        Args:
            group_folders: the archive's path of the windows, with a slash at its end.
        """
        window: ArrivedWindow | None = None
        for placed in self._members:
            member, _, folder, path, is_first = placed
            if not folder.startswith(group_folders) or not (path or member.is_folder):
                self._put(placed)
                continue
            if window is None or folder != window.folder:
                if window is not None:
                    yield window
                if not is_first:
                    self._held = placed
                    return
                window = ArrivedWindow(folder)
            if window.n_bytes + member.size > _GATHERED_BYTES:
                self._held, self._large = placed, window
                return
            window.last = self._number
            if member.is_folder:
                window.add_folder(path)
            else:
                self._files.require_room(member.size)
                window.add(path, b"".join(self._archive.data()))
        if window is not None:
            yield window

    def note(self, window: ArrivedWindow, at_once: bool = False) -> None:
        """Note a window that was written, and that all before it are; on the disk by and by."""
        self._table.add(window.folder, window.versions)
        self._table.flush(force=at_once, done=window.last)

    def rest(self) -> int:
        """Write all that is left; gives how many bytes of no use follow the archive's end."""
        if self._large is not None:
            for path, data in self._large.files.items():
                parts = [*self._large.folder.split(b"/"), *path.split(b"/")]
                self._files.write(parts, len(data), (memoryview(data),))
            self._table.add(self._large.folder, self._large.versions)
        if self._held is not None:
            self._put(self._held)
        for placed in self._members:
            self._put(placed)
            self._table.flush(done=self._number)
        self._table.flush(force=True, done=self._number)
        return self._archive.behind

    def _put(self, placed: "_Placed") -> None:
        """Write a member, and note its size and version, or a folder, if it belongs to a window."""
        member, parts, folder, path, _ = placed
        if member.is_folder:
            self._files.make_folder(parts)
            if folder:
                self._table.add(folder, {})  # it may have no files
        else:
            written = self._files.write(parts, member.size, self._archive.data())
            if path:
                self._table.add(folder, {path: written})


def _window_of(parts: list[bytes]) -> tuple[bytes, bytes]:
    """The folder of the window that a member belongs to, and its path in there; empty if none."""
    place = parts.index(_WINDOWS) + 3 if _WINDOWS in parts else len(parts) + 1
    if len(parts) < place:
        return b"", b""
    return b"/".join(parts[:place]), b"/".join(parts[place:])


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
        self.require_room(size)
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

    def require_room(self, size: int) -> None:
        """Look, now and then, whether there is room for so many bytes more."""
        self._unchecked += size
        if self._unchecked < _ROOM_EVERY:
            return
        self._unchecked = 0
        free = shutil.disk_usage(self._target).free
        if size + _LEFT_FREE > free:
            raise StoreError(
                f"unpacking into {os.fsdecode(self._target)} needs {size:,} bytes beside the "
                f"{_LEFT_FREE:,} that are left to others, and {free:,} are free; free space there: "
                "it goes on where it stopped"
            )


def _version(pieces: Iterable[memoryview], opened: int | None) -> bytes:
    """The version of what some pieces are together; they are written on the way, if anywhere."""
    crc = 0
    for piece in pieces:
        crc = google_crc32c.extend(crc, bytes(piece))
        while piece and opened is not None:
            piece = piece[os.write(opened, piece) :]
    return _VERSION % crc


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
