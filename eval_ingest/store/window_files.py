"""The rslearn copy of a dataset's windows, checksummed, with `eval_split` in each one's options.

A window appears by a rename when all its files are there and read back right. Which windows were
copied is kept in manifest.py.
"""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Container, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import google_crc32c

from eval_ingest.core.spec import SPLIT_OPTION
from eval_ingest.errors import IntegrityError
from eval_ingest.store.atomic import store_error, umask
from eval_ingest.store.manifest import UNFINISHED, CopiedWindow, FilesChecksum


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


def copy_window(
    windows: Path,
    group: str,
    name: str,
    source_digest: str,
    split: str,
    files: Contents,
) -> CopiedWindow:
    """Write one window's files aside, read them back, and move the folder into its place.

    Args:
        windows: the copy's windows folder.
        group: window group.
        name: window name.
        source_digest: digest of the source files, for the manifest.
        split: goes into the options of metadata.json.
        files: sorted by path.

    Raises:
        IntegrityError: what was read back differs from what was written.
        StoreError: it can't be written.
    """
    final = windows / group / name
    scratch = windows.parent / UNFINISHED
    aside: Path | None = None
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        final.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=scratch))
        aside.chmod(0o777 & ~umask())
        made, moved = {""}, set[str]()
        total, n_files, checksum = 0, 0, FilesChecksum()
        for file in files:
            n_bytes, crc = _place(str(aside), file, split, made, moved)
            checksum.add(file.path, crc)
            total += n_bytes
            n_files += 1
        if final.exists():
            # Moved, not removed, so that no half of it is ever in its place.
            os.rename(final, f"{aside}.old")
        os.rename(aside, final)
    except OSError as error:
        raise store_error(final, "copying to", error) from error
    finally:
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)
            shutil.rmtree(f"{aside}.old", ignore_errors=True)
    return CopiedWindow(group, name, source_digest, split, n_files, total, str(checksum))


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


def change_split(windows: Path, copied: CopiedWindow, split: str) -> CopiedWindow:
    """Give an already copied window another split: only its metadata.json is rewritten.

    Raises:
        StoreError: it can't be written.
    """
    folder = windows / copied.group / copied.name
    path = folder / "metadata.json"
    aside = folder / ".metadata.json.tmp"
    try:
        old = path.read_bytes()
        new = with_split(old, split)
        _write_checked(str(aside), new, path.stat().st_mode & 0o666)
        os.replace(aside, path)
    except OSError as error:
        raise store_error(path, "rewriting", error) from error
    return with_metadata(copied, split, old, new)


def with_metadata(copied: CopiedWindow, split: str, old: bytes, new: bytes) -> CopiedWindow:
    """A copied window whose metadata.json was exchanged."""
    checksum = FilesChecksum(copied.checksum)
    checksum.exchange("metadata.json", google_crc32c.value(old), google_crc32c.value(new))
    n_bytes = copied.n_bytes - len(old) + len(new)
    return replace(copied, split=split, n_bytes=n_bytes, checksum=str(checksum))


def measure_copy(folder: Path) -> Measured:
    """Files, bytes and checksum of a copied window as it lies there now.

    Raises:
        StoreError: it can't be read.
    """
    checksum, total = FilesChecksum(), 0
    paths = []
    try:
        for base, _, names in os.walk(folder):
            paths += [os.path.relpath(os.path.join(base, name), folder) for name in names]
        for path in sorted(paths):
            data = (folder / path).read_bytes()
            total += len(data)
            checksum.add(path, google_crc32c.value(data))
    except OSError as error:
        raise store_error(folder, "reading", error) from error
    return Measured(len(paths), total, str(checksum))


def remove_strangers(windows: Path, known: Container[tuple[str, str]]) -> None:
    """Remove windows that nobody vouches for: forgotten ones, and what stopped runs left.

    Args:
        windows: the copy's windows folder.
        known: (group, name) of those that stay.

    Raises:
        StoreError: one can't be removed.
    """
    try:
        for group in os.listdir(windows) if windows.is_dir() else []:
            for name in os.listdir(windows / group):
                if (group, name) not in known:
                    # Moved first, so that a stop doesn't leave half of it in its place.
                    scratch = windows.parent / UNFINISHED
                    scratch.mkdir(exist_ok=True)
                    os.rename(windows / group / name, f"{tempfile.mkdtemp(dir=scratch)}/old")
    except OSError as error:
        raise store_error(windows, "removing windows from", error) from error
