"""What is kept of a remote source between listing, indexing and copying, in a folder beside.

    .staging/listing.sqlite          every window's files, as listed
    .staging/windows/{2 hex}/{hash}  one window's bytes, from the time it is indexed until copied

So a window is listed once and fetched once per ingest, though two stages need it, perhaps in two
processes; and memory holds none of it. Nothing here is needed: what is missing or damaged is
listed or fetched again.
"""

import contextlib
import hashlib
import json
import os
import shutil
import sqlite3
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import google_crc32c

from eval_ingest.errors import StoreError
from eval_ingest.sources.base import Listed, SourceFile, WindowFiles

LISTING_VERSION = 1
_LISTING = "listing.sqlite"
_TALLY = "kept"
_TALLY_UNIT = 1 << 14
"""Each byte of the tally stands for so many that are kept: several processes may append to it."""


class Listing:
    """The windows of a source with their files, on disk: a hundred thousand in 100 MB."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / _LISTING
        self._local = threading.local()

    def write(self, windows: Iterable[WindowFiles], layers: frozenset[str]) -> Iterator[Listed]:
        """Keep windows as they come, and hand on what identifies each; whole when it ends.

        Raises:
            StoreError: it can't be written.
        """
        aside = self._path.with_name(f".{_LISTING}.{os.getpid()}.tmp")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            aside.unlink(missing_ok=True)
            # No locks and no journal: it is written by one process, and counts when renamed.
            with contextlib.closing(sqlite3.connect(f"file:{quoted(aside)}?nolock=1", uri=True,
                                                    isolation_level=None)) as table:  # fmt: skip
                table.execute("PRAGMA journal_mode=OFF")
                table.execute("PRAGMA synchronous=OFF")
                table.execute("CREATE TABLE facts (version INTEGER, layers TEXT)")
                table.execute(
                    "CREATE TABLE windows (grp TEXT, name TEXT, files BLOB, "
                    "PRIMARY KEY (grp, name)) WITHOUT ROWID"
                )
                table.execute("BEGIN")
                for window in windows:
                    row = (window.group, window.name, _pack(window.files))
                    table.execute("INSERT OR REPLACE INTO windows VALUES (?, ?, ?)", row)
                    yield window.listed
                facts = (LISTING_VERSION, json.dumps(sorted(layers)))
                table.execute("INSERT INTO facts VALUES (?, ?)", facts)
                table.execute("COMMIT")
            os.replace(aside, self._path)
            self._local = threading.local()
        except (OSError, sqlite3.Error) as error:
            raise _failed(self._path, error) from error
        finally:
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)

    def covers(self, layers: frozenset[str]) -> bool:
        """True if it is there, with at least these layers' files."""
        table = self._table()
        if table is None:
            return False
        version, kept = table.execute("SELECT version, layers FROM facts").fetchone()
        return version == LISTING_VERSION and layers <= set(json.loads(kept))

    def window(self, group: str, name: str) -> WindowFiles | None:
        """One window as listed, or None if it wasn't."""
        table = self._table()
        if table is None:
            return None
        wanted = "SELECT files FROM windows WHERE grp = ? AND name = ?"
        row = table.execute(wanted, (group, name)).fetchone()
        return None if row is None else WindowFiles(group, name, _unpack(row[0]))

    def _table(self) -> sqlite3.Connection | None:
        """The thread's own connection; None if nothing is listed."""
        local = self._local
        if getattr(local, "table", None) is None:
            if not self._path.is_file():
                return None
            # Immutable: read without locks, which some shared file systems don't have.
            url = f"file:{quoted(self._path)}?mode=ro&immutable=1"
            local.table = sqlite3.connect(url, uri=True)
        table: sqlite3.Connection = local.table
        return table

    def close(self) -> None:
        """Let go of the file, before it is removed."""
        self._local = threading.local()


def quoted(path: Path) -> str:
    """A path for SQLite's URIs."""
    return str(path).replace("%", "%25").replace("?", "%3f").replace("#", "%23")


def _pack(files: tuple[SourceFile, ...]) -> bytes:
    rows = [(file.path, file.size, file.version) for file in files]
    return zlib.compress(json.dumps(rows).encode(), 1)


def _unpack(data: bytes) -> tuple[SourceFile, ...]:
    return tuple(SourceFile(*row) for row in json.loads(zlib.decompress(data)))


class StagedWindows:
    """The bytes of windows that are fetched and not yet copied: one file for each.

    Args:
        folder: the staging folder.
        limit: bytes that an ingest may keep; what comes after that is fetched once more.
    """

    def __init__(self, folder: Path, limit: int | None = None) -> None:
        self._folder = folder / "windows"
        self._tally = folder / _TALLY
        self._limit = limit

    def takes(self, files: WindowFiles) -> bool:
        """True if a window may be kept."""
        if self._limit is None:
            return True
        try:
            kept = self._tally.stat().st_size * _TALLY_UNIT
        except FileNotFoundError:
            kept = 0
        return kept + files.n_bytes <= self._limit

    def _path(self, files: WindowFiles) -> Path:
        name = hashlib.blake2b(files.key.encode(), digest_size=16).hexdigest()
        return self._folder / name[:2] / name

    def save(self, files: WindowFiles, contents: Mapping[str, bytes]) -> None:
        """Keep a window's bytes.

        Raises:
            StoreError: they can't be written.
        """
        rows = [(path, len(data), google_crc32c.value(data)) for path, data in contents.items()]
        head = json.dumps({"digest": files.digest, "files": rows}).encode() + b"\n"
        path = self._path(files)
        aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(aside, "wb") as stream:
                stream.write(head)
                stream.writelines(contents.values())
            os.replace(aside, path)
            if self._limit is not None:
                with open(self._tally, "ab") as stream:
                    stream.write(bytes(files.n_bytes // _TALLY_UNIT + 1))
        except OSError as error:
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)
            raise _failed(path, error) from error

    def has(self, files: WindowFiles) -> bool:
        """A cheap look."""
        return self._path(files).is_file()

    def load(self, files: WindowFiles) -> dict[str, bytes] | None:
        """A window's bytes by path, if they are there, whole, and of this version of it."""
        try:
            with open(self._path(files), "rb") as stream:
                head = json.loads(stream.readline())
                if head["digest"] != files.digest:
                    return None
                contents = {path: stream.read(size) for path, size, _ in head["files"]}
        except (OSError, ValueError, KeyError):
            return None
        whole = all(
            len(contents[path]) == size and google_crc32c.value(contents[path]) == crc
            for path, size, crc in head["files"]
        )
        return contents if whole and contents.keys() == files.by_path.keys() else None

    def drop(self, files: WindowFiles) -> None:
        """Remove a window's bytes: they are where they belong."""
        with contextlib.suppress(OSError):
            self._path(files).unlink(missing_ok=True)


def remove_staging(folder: Path) -> None:
    """Remove all of it."""
    shutil.rmtree(folder, ignore_errors=True)


def _failed(path: Path, error: Exception) -> StoreError:
    text = getattr(error, "strerror", None) or str(error)
    return StoreError(
        f"keeping fetched windows in {path} failed: {text}; free space there or make it writable, "
        "and run again: it goes on where it stopped"
    )
