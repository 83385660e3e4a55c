"""The rslearn copy of a dataset's windows, checksummed, with `eval_split` in each one's options.

A window appears by a rename when all its files are there and read back right. What was copied is
kept in a manifest, so that a stopped copy goes on, and `verify` can check it later.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import pyarrow as pa

from eval_ingest.core.spec import SPLIT_OPTION
from eval_ingest.errors import IntegrityError
from eval_ingest.store.atomic import store_error, umask
from eval_ingest.store.index_file import read_table, write_table
from eval_ingest.store.layout import DatasetLayout

UNFINISHED = ".copying"
"""Beside the windows folder: windows on their way into it, or out of it."""

MANIFEST_VERSION = 1
_JOURNAL = ".copy_journal.jsonl"


@dataclass(frozen=True, slots=True)
class CopiedWindow:
    """A window in the copy."""

    group: str
    name: str
    source_digest: str
    split: str
    n_files: int
    n_bytes: int
    checksum: str
    """CRC32C over the files' paths and their CRC32Cs, in the order of their paths."""

    @property
    def key(self) -> tuple[str, str]:
        """(group, name)."""
        return self.group, self.name


def copy_window(
    windows: Path,
    group: str,
    name: str,
    source_digest: str,
    split: str,
    files: Iterable[tuple[str, Callable[[], bytes]]],
) -> CopiedWindow:
    """Write one window's files aside, read them back, and move the folder into its place.

    Args:
        windows: the copy's windows folder.
        group: window group.
        name: window name.
        source_digest: digest of the source files, for the manifest.
        split: goes into the options of metadata.json.
        files: relative path and a function that gives the bytes, sorted by path.

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
        made: set[str] = {""}
        total, n_files, checksum = 0, 0, 0
        for path, read in files:
            data = read()
            if path == "metadata.json":
                data = with_split(data, split)
            _make_folders(str(aside), path.rpartition("/")[0], made)
            checksum = _extend(checksum, path, _write_checked(f"{aside}/{path}", data))
            total += len(data)
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
    return CopiedWindow(group, name, source_digest, split, n_files, total, f"{checksum:08x}")


def _make_folders(root: str, folder: str, made: set[str]) -> None:
    """Make a folder and its parents below root, each once."""
    if folder not in made:
        _make_folders(root, folder.rpartition("/")[0], made)
        os.mkdir(f"{root}/{folder}")
        made.add(folder)


def _write_checked(path: str, data: bytes) -> int:
    """Write a file, read it back, and return its CRC32C."""
    with open(path, "wb", buffering=0) as stream:
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


def _extend(checksum: int, path: str, crc: int) -> int:
    return int(google_crc32c.extend(checksum, f"{path}\t{crc:08x}\n".encode()))


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
        data = with_split(path.read_bytes(), split)
        _write_checked(str(aside), data)
        os.replace(aside, path)
    except OSError as error:
        raise store_error(path, "rewriting", error) from error
    n_files, n_bytes, checksum = measure_copy(folder)
    return CopiedWindow(
        copied.group, copied.name, copied.source_digest, split, n_files, n_bytes, checksum
    )


def measure_copy(folder: Path) -> tuple[int, int, str]:
    """Files, bytes and checksum of a copied window as it lies there now.

    Raises:
        StoreError: it can't be read.
    """
    checksum, total = 0, 0
    paths = []
    try:
        for base, _, names in os.walk(folder):
            paths += [os.path.relpath(os.path.join(base, name), folder) for name in names]
        for path in sorted(paths):
            data = (folder / path).read_bytes()
            total += len(data)
            checksum = _extend(checksum, path, int(google_crc32c.value(data)))
    except OSError as error:
        raise store_error(folder, "reading", error) from error
    return len(paths), total, f"{checksum:08x}"


class Manifest:
    """Which windows are in the copy; a journal keeps it true while copying goes on.

    What is about to change is told to the journal first: after a stop, a window is either as the
    manifest says, or the manifest doesn't vouch for it and the next run does it again.
    """

    def __init__(self, layout: DatasetLayout) -> None:
        self._layout = layout
        self._journal = layout.path / _JOURNAL
        self._journal_bytes: int | None = None
        """How much of the journal is whole: the rest is a line at which a run was stopped."""
        self.windows: dict[tuple[str, str], CopiedWindow] = {}
        found = read_table(layout.copy_manifest, "copy_manifest", MANIFEST_VERSION)
        if found is not None:
            for row in found[0].to_pylist():
                self._put(CopiedWindow(**row))
        self._replay()

    def _put(self, copied: CopiedWindow) -> None:
        self.windows[copied.key] = copied

    def _replay(self) -> None:
        try:
            data = self._journal.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise store_error(self._journal, "reading", error) from error
        self._journal_bytes = 0
        for line in data.splitlines(keepends=True):
            try:
                entry = json.loads(line)
                if len(entry) == 2:
                    self.windows.pop((entry["group"], entry["name"]), None)
                else:
                    self._put(CopiedWindow(**entry))
            except (ValueError, TypeError, KeyError):
                break
            self._journal_bytes += len(line)

    def add(self, copied: Iterable[CopiedWindow]) -> None:
        """Note windows as copied, at once and on disk."""
        found = list(copied)
        for window in found:
            self._put(window)
        self._write(asdict(window) for window in found)

    def forget(self, keys: Iterable[tuple[str, str]]) -> None:
        """Note that windows are about to be replaced or removed."""
        known = [key for key in keys if self.windows.pop(key, None) is not None]
        self._write({"group": group, "name": name} for group, name in known)

    def _write(self, entries: Iterable[dict[str, Any]]) -> None:
        text = "".join(json.dumps(entry) + "\n" for entry in entries)
        if not text:
            return
        try:
            self._layout.path.mkdir(parents=True, exist_ok=True)
            with open(self._journal, "ab") as stream:
                if self._journal_bytes is not None:
                    stream.truncate(self._journal_bytes)
                    self._journal_bytes = None
                stream.write(text.encode())
        except OSError as error:
            raise store_error(self._journal, "writing", error) from error

    def close(self) -> None:
        """Remove windows that aren't in the copy any more, write the manifest, drop the journal.

        Raises:
            StoreError: one can't be removed, or the manifest can't be written.
        """
        self._remove_strangers()
        rows = [asdict(self.windows[key]) for key in sorted(self.windows)]
        schema = pa.schema(
            [
                ("group", pa.string()),
                ("name", pa.string()),
                ("source_digest", pa.string()),
                ("split", pa.string()),
                ("n_files", pa.int32()),
                ("n_bytes", pa.int64()),
                ("checksum", pa.string()),
            ]
        )
        table = pa.Table.from_pylist(rows, schema=schema)
        facts = {"kind": "copy_manifest", "version": MANIFEST_VERSION}
        write_table(self._layout.copy_manifest, table, facts)
        self._journal.unlink(missing_ok=True)
        shutil.rmtree(self._layout.path / UNFINISHED, ignore_errors=True)

    def _remove_strangers(self) -> None:
        """Windows that nobody vouches for: forgotten ones, and what stopped runs left."""
        windows = self._layout.windows
        try:
            for group in os.listdir(windows) if windows.is_dir() else []:
                for name in os.listdir(windows / group):
                    if (group, name) not in self.windows:
                        # Moved first, so that a stop doesn't leave half of it in its place.
                        scratch = self._layout.path / UNFINISHED
                        scratch.mkdir(exist_ok=True)
                        os.rename(windows / group / name, f"{tempfile.mkdtemp(dir=scratch)}/old")
        except OSError as error:
            raise store_error(windows, "removing windows from", error) from error
