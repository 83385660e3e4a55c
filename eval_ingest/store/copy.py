"""The rslearn copy of a dataset's windows, checksummed, with `eval_split` in each one's options.

A window appears by a rename when all its files are there and read back right. What was copied is
kept in a manifest, so that a stopped copy goes on, and `verify` can check it later.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import google_crc32c
import pyarrow as pa

from eval_ingest.errors import IntegrityError
from eval_ingest.store.atomic import store_error
from eval_ingest.store.index_file import read_table, write_table
from eval_ingest.store.layout import DatasetLayout

SPLIT_OPTION = "eval_split"
"""The window option that says which split a window belongs to."""

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
    aside = windows / group / f".{name}.{os.getpid()}.tmp"
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
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
            shutil.rmtree(final)
        os.rename(aside, final)
    except OSError as error:
        raise store_error(final, "copying to", error) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
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
    """Which windows are in the copy; a journal keeps it true while copying goes on."""

    def __init__(self, layout: DatasetLayout) -> None:
        self._layout = layout
        self._journal = layout.path / _JOURNAL
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
            lines = self._journal.read_text().splitlines()
        except FileNotFoundError:
            return
        for line in lines:
            try:
                self._put(CopiedWindow(**json.loads(line)))
            except (ValueError, TypeError):
                break  # the line at which an earlier run was stopped

    def add(self, copied: Iterable[CopiedWindow]) -> None:
        """Note windows as copied, at once and on disk."""
        found = list(copied)
        for window in found:
            self._put(window)
        try:
            self._layout.path.mkdir(parents=True, exist_ok=True)
            with open(self._journal, "a", encoding="utf-8") as stream:
                stream.writelines(json.dumps(asdict(window)) + "\n" for window in found)
        except OSError as error:
            raise store_error(self._journal, "writing", error) from error

    def drop(self, key: tuple[str, str]) -> None:
        """Remove a window from the copy."""
        window = self.windows.pop(key)
        shutil.rmtree(self._layout.windows / window.group / window.name, ignore_errors=True)

    def close(self) -> None:
        """Write the manifest and drop the journal."""
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
