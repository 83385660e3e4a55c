"""The rslearn copy of a dataset's windows, checksummed, with `eval_split` in each one's options.

A window appears by a rename when all its files are there and read back right. Which windows were
copied is kept in manifest.py.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import google_crc32c

from eval_ingest.core.spec import SPLIT_OPTION
from eval_ingest.errors import IntegrityError
from eval_ingest.store.atomic import store_error, umask
from eval_ingest.store.manifest import UNFINISHED, CopiedWindow, FilesChecksum

try:
    from eval_ingest.store import _writing
except ImportError:  # an installation without a C compiler
    _writing = None  # type: ignore[assignment]


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
        checksum, total, plain = FilesChecksum(), 0, list[_Plain]()
        moved = set[str]()
        n_files = 0
        for file in files:
            found = _moved(str(aside), file, moved)
            if found is None:
                data = file.read()
                data = with_split(data, split) if file.path == "metadata.json" else data
                plain.append((file.path, data, file.permissions))
                found = len(data), google_crc32c.value(data)
            n_bytes, crc = found
            checksum.add(file.path, crc)
            total += n_bytes
            n_files += 1
        _write_checked(str(aside), plain)
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


_Plain = tuple[str, bytes, int]
"""A file's path, bytes and permissions."""


def _moved(aside: str, file: Content, moved: set[str]) -> tuple[int, int] | None:
    """Move a file of ours with the folder of its layer; its bytes and CRC32C, None if it can't."""
    if file.ours is None or file.path == "metadata.json":
        return None
    path, crc = file.ours
    # One rename for all of a layer's files: each made or removed costs a millisecond.
    whole = "/".join(file.path.split("/", 2)[:2])
    if whole not in moved:
        os.makedirs(f"{aside}/{whole}".rpartition("/")[0], exist_ok=True)
        try:
            os.rename(f"{path.removesuffix(file.path)}{whole}", f"{aside}/{whole}")
        except OSError:  # it lies on another disk
            return None
        moved.add(whole)
    return os.stat(f"{aside}/{file.path}").st_size, crc


def _write_checked(folder: str, files: Sequence[_Plain]) -> None:
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
        aside.unlink(missing_ok=True)  # a run was stopped right here
        _write_checked(str(folder), [(aside.name, new, path.stat().st_mode & 0o666)])
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
