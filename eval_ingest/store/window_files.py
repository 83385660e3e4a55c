"""The rslearn copy of a dataset's windows, checksummed, with `eval_split` in each one's options.

A window appears by a rename when all its files are there and read back right. Which windows were
copied is kept in manifest.py.
"""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import google_crc32c

from eval_ingest.core.spec import SPLIT_OPTION
from eval_ingest.errors import IntegrityError, StoreError
from eval_ingest.store.atomic import store_error, store_errors, umask
from eval_ingest.store.manifest import UNFINISHED, CopiedWindow, FilesChecksum

Key = tuple[str, str]
"""A window's (group, name)."""


class Content(NamedTuple):
    """A file of a window."""

    path: str
    """Relative to the window's folder."""
    read: Callable[[], bytes]
    """Gives its bytes."""
    ours: tuple[str, int] | None = None
    """A file that we wrote with these bytes, which may be moved with its layer, and its CRC32C."""
    permissions: int = 0o666
    """Mode bits of the source's file: the copy has no others."""


Contents = Iterable[Content]
"""Files of a window, sorted by path."""


class Measured(NamedTuple):
    """A copied window, read back."""

    n_files: int
    n_bytes: int
    checksum: str


@dataclass(frozen=True)
class Windows:
    """The windows of a dataset's copy in a folder; pickled for worker processes."""

    folder: Path

    def has(self, group: str, name: str) -> bool:
        """True if the window is there; a cheap look."""
        return (self.folder / group / name / "metadata.json").is_file()

    def clear(self, keys: Iterable[Key]) -> None:
        """Make way for windows that will be written; where they are replaced at once, nothing."""

    def write(
        self, group: str, name: str, source_digest: str, split: str, files: Contents
    ) -> CopiedWindow:
        """Write one window's files aside, read them back, and move the folder into its place.

        Args:
            group: window group.
            name: window name.
            source_digest: digest of the source files, for the manifest.
            split: goes into the options of metadata.json.
            files: sorted by path.

        Raises:
            IntegrityError: what was read back differs from what was written.
            StoreError: it can't be written.
        """
        final = self.folder / group / name
        total, n_files, checksum = 0, 0, FilesChecksum()
        with store_errors("copying to", final), self._scratch() as aside:
            final.parent.mkdir(parents=True, exist_ok=True)
            os.chmod(aside, 0o777 & ~umask())
            made, moved = {""}, set[str]()
            for file in files:
                n_bytes, crc = _place(aside, file, split, made, moved)
                checksum.add(file.path, crc)
                total += n_bytes
                n_files += 1
            old = f"{aside}.old"
            if final.exists():
                # Moved, not removed, so that no half of it is ever in its place.
                os.rename(final, old)
            os.rename(aside, final)
            shutil.rmtree(old, ignore_errors=True)
        return CopiedWindow(group, name, source_digest, split, n_files, total, str(checksum))

    def _scratch(self) -> tempfile.TemporaryDirectory[str]:
        """A folder for what is on its way into the copy, or out of it."""
        scratch = self.folder.parent / UNFINISHED
        scratch.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(dir=scratch, ignore_cleanup_errors=True)

    def change_splits(self, windows: Iterable[tuple[CopiedWindow, str]]) -> list[CopiedWindow]:
        """Give copied windows other splits: only their metadata.json is rewritten.

        Raises:
            StoreError: one can't be written.
        """
        return [self._change_split(copied, split) for copied, split in windows]

    def _change_split(self, copied: CopiedWindow, split: str) -> CopiedWindow:
        path = self.folder / copied.group / copied.name / "metadata.json"
        aside = path.with_name(".metadata.json.tmp")
        with store_errors("rewriting", path):
            old = path.read_bytes()
            new = with_split(old, split)
            _write_checked(str(aside), new, path.stat().st_mode & 0o666)
            os.replace(aside, path)
        return with_metadata(copied, split, old, new)

    def measured(self, keys: Iterable[Key]) -> Iterator[tuple[Key, Measured | StoreError]]:
        """Each window read back: files, bytes and checksum, or why it can't be read."""
        for group, name in keys:
            try:
                yield (group, name), _measure(self.folder / group / name)
            except OSError as error:
                folder = self.folder / group / name
                yield (group, name), store_error(folder, "reading", error)

    def keep_only(self, keys: Container[Key]) -> None:
        """Remove all other windows: forgotten ones, and what stopped runs left.

        Raises:
            StoreError: one can't be removed.
        """
        with store_errors("removing windows from", self.folder):
            for group in os.listdir(self.folder) if self.folder.is_dir() else []:
                for name in os.listdir(self.folder / group):
                    if (group, name) not in keys:
                        # Moved first, so that a stop doesn't leave half of it in its place.
                        with self._scratch() as scratch:
                            os.rename(self.folder / group / name, f"{scratch}/old")

    def paths(self) -> Iterator[str]:
        """Every file, as group/name/path."""
        for folder, folders, names in os.walk(self.folder):
            folders[:] = sorted(f for f in folders if not f.startswith("."))
            inside = Path(folder).relative_to(self.folder).as_posix()
            yield from (f"{inside}/{name}" for name in sorted(names))


def _measure(folder: Path) -> Measured:
    checksum, total = FilesChecksum(), 0
    paths = []
    for base, _, names in os.walk(folder):
        paths += [os.path.relpath(os.path.join(base, name), folder) for name in names]
    for path in sorted(paths):
        data = (folder / path).read_bytes()
        total += len(data)
        checksum.add(path, google_crc32c.value(data))
    return Measured(len(paths), total, str(checksum))


def _place(
    aside: str, file: Content, split: str, made: set[str], moved: set[str]
) -> tuple[int, int]:
    """Move a file with the folder of its layer, or write it; its bytes and CRC32C."""
    if file.path == "metadata.json":
        data = with_split(file.read(), split)
        return len(data), _write_checked(f"{aside}/{file.path}", data, file.permissions)
    if file.ours is not None:
        path, crc = file.ours
        # One rename for all of a layer's files: each made or removed costs a millisecond.
        whole = "/".join(file.path.split("/", 2)[:2])
        if whole not in moved:
            _make_folders(aside, whole.rpartition("/")[0], made)
            with contextlib.suppress(OSError):  # it lies on another disk
                os.rename(f"{path.removesuffix(file.path)}{whole}", f"{aside}/{whole}")
                moved.add(whole)
        if whole in moved:
            return os.stat(f"{aside}/{file.path}").st_size, crc
    _make_folders(aside, file.path.rpartition("/")[0], made)
    data = file.read()
    return len(data), _write_checked(f"{aside}/{file.path}", data, file.permissions)


def _make_folders(root: str, folder: str, made: set[str]) -> None:
    """Make a folder and its parents below root, each once."""
    if folder not in made:
        _make_folders(root, folder.rpartition("/")[0], made)
        os.mkdir(f"{root}/{folder}")
        made.add(folder)


def _write_checked(path: str, data: bytes, permissions: int = 0o666) -> int:
    """Write a file, read it back, and return its CRC32C."""
    # Its owner can always read it: it is read back just below.
    opener = partial(os.open, mode=permissions | 0o600)
    with open(path, "wb", buffering=0, opener=opener) as stream:
        view = memoryview(data)
        while view:
            view = view[stream.write(view) :]
    expected = google_crc32c.value(data)
    if not data:  # the `completed` markers
        return int(expected)
    with open(path, "rb", buffering=0) as stream:
        found = google_crc32c.value(stream.read())
    if found != expected:
        raise IntegrityError(f"{path} reads back with CRC32C {found:08x}, written {expected:08x}")
    return int(expected)


def with_split(metadata: bytes, split: str) -> bytes:
    """A window's metadata.json with the split in its options."""
    content = json.loads(metadata)
    content["options"] = {**(content.get("options") or {}), SPLIT_OPTION: split}
    return json.dumps(content).encode()


def with_metadata(copied: CopiedWindow, split: str, old: bytes, new: bytes) -> CopiedWindow:
    """A copied window whose metadata.json was exchanged."""
    checksum = FilesChecksum(copied.checksum)
    checksum.exchange("metadata.json", google_crc32c.value(old), google_crc32c.value(new))
    n_bytes = copied.n_bytes - len(old) + len(new)
    return replace(copied, split=split, n_bytes=n_bytes, checksum=str(checksum))
