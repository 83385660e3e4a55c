"""The rslearn copy of a dataset's windows, checksummed, with `eval_split` in each one's options.

A window appears by a rename when all its files are there and read back right. Which windows were
copied is kept in manifest.py.
"""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import google_crc32c

from eval_ingest.core.spec import SPLIT_OPTION
from eval_ingest.errors import IntegrityError, StoreError
from eval_ingest.store.atomic import store_errors, umask
from eval_ingest.store.manifest import UNFINISHED, CopiedWindow, FilesChecksum
from eval_ingest.store.told_apart import require_told_apart
from eval_ingest.waiting import BYTES_BEHIND, COPIES, WINDOWS_BEHIND, Room, remove_folder

try:
    from eval_ingest.store import _writing
except ImportError:  # an installation without a C compiler
    _writing = None  # type: ignore[assignment]

METADATA = "metadata.json"

FILES_OF_METADATA = 4
"""That are opened to exchange it: it is read and written aside, in its folder, and read back."""

Key = tuple[str, str]
"""A window's (group, name)."""


class Content(NamedTuple):
    """A file of a window."""

    path: str
    """Relative to the window's folder."""
    read: Callable[[], bytes]
    """Gives its bytes."""
    ours: tuple[int, int] | None = None
    """Of a file that lies in the folder that is moved, just so: its bytes and CRC32C."""
    permissions: int = 0o666
    """Mode bits of the source's file: the copy has no others."""


Contents = Sequence[Content]
"""Files of a window, sorted by path."""


class Measured(NamedTuple):
    """A copied window, read back."""

    n_files: int
    n_bytes: int
    checksum: str

    @classmethod
    def of(cls, contents: Mapping[str, bytes]) -> "Measured":
        """A window of these files, by path."""
        checksum = FilesChecksum()
        for path, data in contents.items():
            checksum.add(path, google_crc32c.value(data))
        return cls(len(contents), sum(map(len, contents.values())), str(checksum))


@dataclass(frozen=True)
class Windows:
    """The windows of a dataset's copy in a folder; pickled for worker processes."""

    folder: Path
    takes_folders = True
    """True if a window that was written aside is moved into its place."""

    def has(self, group: str, name: str) -> bool:
        """True if the window is there; a cheap look."""
        return (self.folder / group / name / METADATA).is_file()

    def require_told_apart(self, keys: Iterable[Key]) -> None:
        """Check that no window of these takes another one's place: in buckets none does.

        Raises:
            StoreError: one would.
        """
        require_told_apart(self.folder.parent, map("/".join, keys))

    def clear(self, keys: Iterable[Key]) -> None:
        """Make way for windows that will be written; where they are replaced at once, nothing."""

    def write(
        self,
        group: str,
        name: str,
        source_digest: str,
        split: str,
        files: Contents,
        folder: str = "",
        others: Collection[str] = (),
    ) -> CopiedWindow:
        """Write one window's files aside, read them back, and move the folder into its place.

        Args:
            group: window group.
            name: window name.
            source_digest: digest of the source files, for the manifest.
            split: goes into the options of metadata.json.
            files: sorted by path.
            folder: one of ours that holds the window already, and goes; only files that are other
                ones are written.
            others: what else is in that folder.

        Raises:
            IntegrityError: what was read back differs from what was written.
            StoreError: it can't be written.
        """
        final = self.folder / group / name
        known, plain = measured(files, split)
        with store_errors("copying to", final), self._scratch() as aside:
            final.parent.mkdir(parents=True, exist_ok=True)
            if not (folder and _moved(folder, aside, files, others)):
                os.chmod(aside, 0o777 & ~umask())
                plain += [(file.path, file.read(), file.permissions) for file in files if file.ours]
            write_checked(aside, plain)
            self.put(aside, final)
        return CopiedWindow(group, name, source_digest, split, *known)

    @staticmethod
    def put(aside: str | Path, final: Path) -> None:
        """Move a window that is whole into its place, whatever is there.

        Raises:
            OSError: it can't be moved.
        """
        if not final.exists():
            os.rename(aside, final)
            return
        old = f"{aside}.old"
        os.rename(final, old)  # not removed, so that no half of it is ever in its place
        os.rename(aside, final)
        # Not many of its folders at a time: this is one of many threads already.
        shutil.rmtree(old, ignore_errors=True)

    def _scratch(self) -> tempfile.TemporaryDirectory[str]:
        """A folder for what is on its way into the copy, or out of it."""
        scratch = self.folder.parent / UNFINISHED
        scratch.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(dir=scratch, ignore_cleanup_errors=True)

    def change_splits(self, windows: Iterable[tuple[CopiedWindow, str]]) -> list[CopiedWindow]:
        """Give copied windows other splits: only their metadata.json is rewritten.

        What it gives lacks those that have none any more, or a damaged one.

        Raises:
            StoreError: one can't be written.
        """
        found = COPIES.each(self._change_split, windows, WINDOWS_BEHIND, files=FILES_OF_METADATA)
        return [copied for copied in found if copied is not None]

    def _change_split(self, window: tuple[CopiedWindow, str]) -> CopiedWindow | None:
        copied, split = window
        return rewrite_split(copied, split, self.folder / copied.group / copied.name / METADATA)

    def measured(self, keys: Iterable[Key]) -> Iterator[tuple[Key, Measured | StoreError]]:
        """Each window read back: files, bytes and checksum, or why it can't be read."""
        room = Room(BYTES_BEHIND)

        def measure(key: Key) -> tuple[Key, Measured | StoreError]:
            try:
                sizes = self._sizes(key)
                room.wait(sum(sizes.values()))
                try:
                    return key, Measured.of(self.contents(key, sizes))
                finally:
                    room.give_back(sum(sizes.values()))
            except StoreError as error:
                return key, error

        return COPIES.each(measure, keys, WINDOWS_BEHIND, room.close, _FILES)

    def contents(self, key: Key, paths: Collection[str] | None = None) -> dict[str, bytes]:
        """A window's files by path: all, or those of some paths that are there.

        Raises:
            StoreError: one can't be read.
        """
        folder, found = self.folder / key[0] / key[1], dict[str, bytes]()
        for path in self._sizes(key) if paths is None else paths:
            with store_errors("reading", folder), contextlib.suppress(FileNotFoundError):
                found[path] = (folder / path).read_bytes()
        return found

    def _sizes(self, key: Key) -> dict[str, int]:
        """A window's files, by their paths in it, with their bytes."""
        folder, found = self.folder / key[0] / key[1], dict[str, int]()
        with store_errors("reading", folder):
            for base, _, names in os.walk(folder):
                for path in (os.path.join(base, name) for name in names):
                    with contextlib.suppress(FileNotFoundError):
                        found[os.path.relpath(path, folder)] = os.stat(path).st_size
        return found

    def keep_only(self, keys: Container[Key]) -> None:
        """Remove all other windows: forgotten ones, and what stopped runs left.

        Raises:
            StoreError: one can't be removed.
        """
        with store_errors("removing windows from", self.folder):
            groups = _folders_in(self.folder) if self.folder.is_dir() else []
            there = ((group, name) for group in groups for name in _folders_in(self.folder / group))
            unwanted = [key for key in there if key not in keys]
            if unwanted:
                with self._scratch() as scratch:
                    for number, (group, name) in enumerate(unwanted):
                        # Moved first, so that a stop doesn't leave half of it in its place.
                        os.rename(self.folder / group / name, f"{scratch}/{number}")
                    remove_folder(scratch)

    def paths(self) -> Iterator[str]:
        """Every file, as group/name/path."""
        for folder, folders, names in os.walk(self.folder):
            folders[:] = sorted(f for f in folders if not f.startswith("."))
            inside = Path(folder).relative_to(self.folder).as_posix()
            yield from (f"{inside}/{name}" for name in sorted(names))


def _folders_in(folder: Path) -> list[str]:
    """Groups, or windows: not what a desktop or a file system keeps there for itself."""
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries if entry.name[0] != "." and entry.is_dir()]


_FILES = 30
"""That a window has, with its folders, at least where they are many."""

_Plain = tuple[str, bytes, int]
"""A file's path, bytes and permissions."""


def measured(files: Contents, split: str) -> tuple[Measured, list[_Plain]]:
    """What a window's files are together, and those that are to be written."""
    total, checksum, plain = 0, FilesChecksum(), list[_Plain]()
    for file in files:
        found = file.ours
        if found is None:
            data = file.read()
            data = with_split(data, split) if file.path == METADATA else data
            plain.append((file.path, data, file.permissions))
            found = len(data), google_crc32c.value(data)
        total += found[0]
        checksum.add(file.path, found[1])
    return Measured(len(files), total, str(checksum)), plain


def _moved(folder: str, aside: str, files: Contents, others: Collection[str]) -> bool:
    """Move a folder onto an empty one, without what isn't wanted of it; False if it can't be."""
    try:
        os.rename(folder, aside)  # one call for all of its files
    except OSError:  # it lies on another disk
        return False
    for path in others:
        with contextlib.suppress(FileNotFoundError):  # it was filled with what is wanted alone
            os.unlink(f"{aside}/{path}")
        with contextlib.suppress(OSError):  # there are other files in it
            os.removedirs(os.path.dirname(f"{aside}/{path}"))
    for file in files:
        if file.ours is None:
            os.unlink(f"{aside}/{file.path}")
        elif os.stat(f"{aside}/{file.path}").st_size != file.ours[0]:
            raise IntegrityError(
                f"{folder}/{file.path} hasn't the {file.ours[0]:,} bytes that were written there; "
                "the disk is damaged: have it looked at, and run again"
            )
    return True


def write_checked(folder: str, files: Sequence[_Plain]) -> None:
    """Write files that aren't there yet, with the folders that they need, and read them back.

    Raises:
        IntegrityError: what was read back differs from what was written.
        OSError: one can't be written.
    """
    # Its owner can always read a file: it is read back.
    if _writing is not None:
        found = _writing.write_files(
            folder, [(os.fsencode(path), data, mode | 0o600) for path, data, mode in files]
        )
    else:
        found = _write_by_python(folder, files)
    if found >= 0:
        raise IntegrityError(
            f"{folder}/{files[found][0]} reads back otherwise than it was written; the disk or the "
            "network file system is damaged: have it looked at, and run again"
        )


def _write_by_python(folder: str, files: Sequence[_Plain]) -> int:
    for k, (path, data, mode) in enumerate(files):
        os.makedirs(os.path.dirname(f"{folder}/{path}"), exist_ok=True)
        opener = partial(os.open, mode=mode | 0o600)
        with open(f"{folder}/{path}", "xb+", buffering=0, opener=opener) as stream:
            view = memoryview(data)
            while view:
                view = view[stream.write(view) :]
            stream.seek(0)
            if data and stream.read() != data:
                return k
    return -1


def rewrite_split(copied: CopiedWindow, split: str, path: Path) -> CopiedWindow | None:
    """Give a copied window another split; None if its metadata.json, at `path`, is gone or damaged.

    Raises:
        IntegrityError: what was read back differs from what was written.
        StoreError: it can't be rewritten.
    """
    folder, name = os.path.split(path)
    aside = f".{name}.tmp"
    with store_errors("rewriting", path):
        try:
            with open(path, "rb", buffering=0) as stream:
                old, mode = stream.read(), os.fstat(stream.fileno()).st_mode
            new = with_split(old, split)
        except (FileNotFoundError, IntegrityError):
            return None
        content = [(aside, new, mode & 0o666)]
        try:
            write_checked(folder, content)
        except FileExistsError:  # a run was stopped right here
            os.unlink(f"{folder}/{aside}")
            write_checked(folder, content)
        os.replace(f"{folder}/{aside}", path)
    return with_metadata(copied, split, new)


def with_split(metadata: bytes, split: str) -> bytes:
    """A window's metadata.json with the split in its options.

    Raises:
        IntegrityError: it is none.
    """
    try:
        content = json.loads(metadata)
        content["options"] = {**(content.get("options") or {}), SPLIT_OPTION: split}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise IntegrityError(f"a window's metadata.json is none ({error})", "run again") from error
    return json.dumps(content).encode()


def with_metadata(copied: CopiedWindow, split: str, new: bytes) -> CopiedWindow:
    """A copied window that has another split, by its metadata.json with that.

    What this was with the split before is known by what it is: a run may have been stopped when
    one of the two had been written.
    """
    old, checksum = with_split(new, copied.split), FilesChecksum(copied.checksum)
    checksum.exchange(METADATA, google_crc32c.value(old), google_crc32c.value(new))
    n_bytes = copied.n_bytes - len(old) + len(new)
    return replace(copied, split=split, n_bytes=n_bytes, checksum=str(checksum))
