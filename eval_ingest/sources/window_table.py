"""The windows of a source with their files, kept on disk: of an archive, and of a bucket's listing.

Belongs here: the table as it grows and as it is read later. Does not: what fills it (unpacking.py,
remote.py). It counts when it is whole; a run that was stopped goes on with it, or begins anew.
"""

import contextlib
import os
import sqlite3
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

from eval_ingest.errors import StoreError, lacking
from eval_ingest.sources.base import SourceFile
from eval_ingest.sources.listing import parse

_WAITING = 512
"""Windows that are kept in memory before they are written."""

_MAKE = (
    "PRAGMA journal_mode=TRUNCATE",
    "PRAGMA synchronous=OFF",
    "CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value)",
    "CREATE TABLE IF NOT EXISTS windows (folder BLOB PRIMARY KEY, files BLOB) WITHOUT ROWID",
)

_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR}
"""What comes of a file that is no such table: a full disk or a kill may leave one."""

Files = dict[bytes, tuple[int, bytes]]
"""Size and version of each of a window's files, by path."""


class WindowTable:
    """Windows by the path of their folder: a quarter of a million in 100 MB.

    One process writes at a time; all others, each thread by its own connection, read what is whole.

    Args:
        path: the table's file.
        version: of what is kept in it, and how.

    Raises:
        StoreError: it can't be read or written.
    """

    def __init__(self, path: Path, version: int = 1) -> None:
        self._path, self._version = path, version
        self._journal = path.with_name(f"{path.name}-journal")
        self._waiting: dict[bytes, Files] = {}
        self._writer: sqlite3.Connection | None = None
        self._readers = threading.local()

    # ---------------------------------------------------------------------------- while it grows

    @contextlib.contextmanager
    def writing(self, anew: bool) -> Iterator[int]:
        """Add windows meanwhile; gives the fact `done` of a run that was stopped, or 0."""
        with self._explained():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if anew:
                self._remove()
            try:
                done = self._start()
            except sqlite3.DatabaseError as error:
                if error.sqlite_errorcode & 0xFF not in _DAMAGED:
                    raise
                self._remove()
                done = self._start()
        try:
            yield done
        finally:
            self._stop()

    def _start(self) -> int:
        # Without SQLite's own locks, which some shared file systems don't have.
        self._writer = self._connect("mode=rwc&nolock=1")
        try:
            for statement in _MAKE:
                self._writer.execute(statement)
            return int(self._fact("done") or 0)
        except BaseException:
            self._stop()
            raise

    def _stop(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer = None
        self._waiting.clear()
        self.close()

    def _remove(self) -> None:
        for path in (self._path, self._journal):
            path.unlink(missing_ok=True)

    def add(self, folder: bytes, files: Files) -> None:
        """Note files of a window, or a window without any; the last of a name counts."""
        self._waiting.setdefault(folder, {}).update(files)

    def flush(self, force: bool = False, **facts: int | str) -> None:
        """Write what is waiting, if it is enough, with facts that hold from then on."""
        if len(self._waiting) < _WAITING and not force:
            return
        assert self._writer is not None
        with self._explained(), self._writer as table:
            table.execute("BEGIN IMMEDIATE")
            for folder, files in self._waiting.items():
                known = self._files(folder) or ()
                merged = {os.fsencode(p): (n, v.encode()) for p, n, v in known} | files
                text = b"".join(b"%s\0%d\0%s\0" % (p, n, v) for p, (n, v) in sorted(merged.items()))
                row = folder, zlib.compress(text, 1)
                table.execute("INSERT OR REPLACE INTO windows VALUES (?, ?)", row)
            table.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?)", facts.items())
        self._waiting.clear()

    def finish(self, **facts: int | str) -> None:
        """All is there."""
        self.flush(force=True, whole=self._version, **facts)

    # ----------------------------------------------------------------------------- when it is read

    @property
    def is_whole(self) -> bool:
        """True if it is there, with all of its windows, and of this version."""
        return self._fact_of_a_run("whole") == self._version

    @property
    def is_begun(self) -> bool:
        """True if a run that was stopped has noted how far it came."""
        return bool(self._fact_of_a_run("done"))

    def _fact_of_a_run(self, name: str) -> int | str | None:
        """A fact, if there is a table, and none that a run has left in the middle of a change."""
        with contextlib.suppress(StoreError, FileNotFoundError):
            is_torn = self._journal.exists() and self._journal.stat().st_size
            return self.fact(name) if self._path.is_file() and not is_torn else None
        return None

    def fact(self, name: str) -> int | str | None:
        """A fact that was written with the windows."""
        with self._explained():
            return self._fact(name)

    def _fact(self, name: str) -> int | str | None:
        row = self._table.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if row is None else row[0]

    def groups(self, dataset: bytes) -> list[str]:
        """Window groups below a folder, which ends in a slash; sorted."""
        found: list[str] = []
        start = dataset
        wanted = "SELECT folder FROM windows WHERE folder >= ? AND folder < ? LIMIT 1"
        while True:
            with self._explained():
                row = self._table.execute(wanted, (start, _after(dataset))).fetchone()
            if row is None:
                return sorted(found)
            group = row[0][len(dataset) :].partition(b"/")[0]
            if not group.startswith(b"."):
                found.append(os.fsdecode(group))
            start = _after(dataset + group + b"/")

    def windows(self, group: bytes) -> Iterator[tuple[str, list[SourceFile]]]:
        """Windows in a group's folder, which ends in a slash, by name, with their files by path."""
        wanted = "SELECT folder, files FROM windows WHERE folder >= ? AND folder < ?"
        with self._explained():
            for folder, files in self._table.execute(wanted, (group, _after(group))):
                name = os.fsdecode(folder[len(group) :])
                if not name.startswith("."):
                    yield name, _parsed(files)

    def window(self, folder: bytes) -> list[SourceFile] | None:
        """One window's files; None if there is no such window."""
        with self._explained():
            return self._files(folder)

    def close(self) -> None:
        """Let go of the file, before it is removed."""
        self._readers = threading.local()

    # ------------------------------------------------------------------------------------ SQLite

    def _files(self, folder: bytes) -> list[SourceFile] | None:
        wanted = "SELECT files FROM windows WHERE folder = ?"
        row = self._table.execute(wanted, (folder,)).fetchone()
        return None if row is None else _parsed(row[0])

    @property
    def _table(self) -> sqlite3.Connection:
        if self._writer is not None:
            return self._writer
        if not hasattr(self._readers, "table"):
            self._readers.table = self._connect("mode=ro&immutable=1")
        table: sqlite3.Connection = self._readers.table
        return table

    def _connect(self, how: str) -> sqlite3.Connection:
        path = str(self._path).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
        return sqlite3.connect(f"file:{path}?{how}", uri=True, isolation_level=None)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error, zlib.error) as error:
            raise lacking(error) or StoreError(
                f"{self._path} can't be used: {error}; free space there or make it writable, "
                f"remove {self._path.parent} if it is damaged, and run again"
            ) from error


def _parsed(files: bytes) -> list[SourceFile]:
    return [SourceFile(*file) for file in parse(zlib.decompress(files))]


def _after(start: bytes) -> bytes:
    """The first text behind all that begin with `start`, which ends in a slash."""
    return start[:-1] + b"0"  # what follows a slash in ASCII
