"""What an archive holds, kept beside its unpacked files: each window's files with their checksums.

Belongs here: the table on disk, as it grows while an archive is unpacked and as it is read later.
Does not: unpacking (unpacking.py). A file's version is the CRC32C of its bytes, so an archive that
is written anew changes no window whose bytes are the same, whatever times its members carry.
"""

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from eval_ingest.errors import StoreError
from eval_ingest.sources.listing import parse
from eval_ingest.sources.staging import quoted

VERSION = 1
_TABLE = "contents.sqlite"
_WAITING = 512
"""Windows that are kept in memory before they are written."""
_WINDOWS = b"windows"

File = tuple[str, int, str]
"""Path in the window, bytes, version."""


class Contents:
    """The windows of an archive, on disk: a quarter of a million in 100 MB. For one thread.

    Args:
        folder: where the table is, or will be.
        write: True for whoever unpacks, one at a time; all others read what is whole.

    Raises:
        StoreError: it can't be read or written.
    """

    def __init__(self, folder: Path, write: bool = False) -> None:
        self._path = folder / _TABLE
        self._waiting: dict[bytes, dict[bytes, tuple[int, bytes]]] = {}
        # Without SQLite's own locks, which some shared file systems don't have.
        how = "mode=rwc&nolock=1" if write else "mode=ro&immutable=1"
        with self._explained():
            self._table = sqlite3.connect(
                f"file:{quoted(self._path)}?{how}", uri=True, isolation_level=None
            )
            if not write:
                return
            self._table.execute("PRAGMA journal_mode=TRUNCATE")
            self._table.execute("PRAGMA synchronous=OFF")
            self._table.execute("CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value)")
            self._table.execute(
                "CREATE TABLE IF NOT EXISTS windows (folder BLOB PRIMARY KEY, files BLOB) "
                "WITHOUT ROWID"
            )

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StoreError(
                f"{self._path} can't be used: {error}; free space there or make it writable, "
                f"remove {self._path.parent} if it is damaged, and run again"
            ) from error

    def close(self) -> None:
        """Let go of the file."""
        self._table.close()

    # ---------------------------------------------------------------------------- while it grows

    @property
    def done(self) -> int:
        """Members of the archive that are unpacked and noted."""
        return int(self._fact("done") or 0)

    @property
    def is_whole(self) -> bool:
        """True if all of the archive is."""
        return self._fact("whole") == VERSION

    def add(self, parts: list[bytes], size: int, version: bytes) -> None:
        """Note a file, by the parts of its path in the archive; the last of its name counts."""
        place = _place(parts)
        if place and len(parts) > place:
            files = self._waiting.setdefault(b"/".join(parts[:place]), {})
            files[b"/".join(parts[place:])] = (size, version)

    def add_folder(self, parts: list[bytes]) -> None:
        """Note a folder: a window may have no files."""
        place = _place(parts)
        if place:
            self._waiting.setdefault(b"/".join(parts[:place]), {})

    def flush(self, done: int, force: bool = False) -> None:
        """Write what is waiting, if it is enough, and that so many members are unpacked."""
        if len(self._waiting) < _WAITING and not force:
            return
        with self._explained(), self._transaction():
            for folder, files in self._waiting.items():
                known = self._files(folder)
                merged = {path: (n, v) for path, n, v in known} | files if known else files
                text = b"".join(b"%s\0%d\0%s\0" % (p, n, v) for p, (n, v) in sorted(merged.items()))
                self._table.execute("INSERT OR REPLACE INTO windows VALUES (?, ?)", (folder, text))
            self._set("done", done)
        self._waiting.clear()

    def finish(self, behind: int) -> None:
        """All is unpacked; so many bytes of no use follow the archive's end."""
        with self._explained(), self._transaction():
            self._set("behind", behind)
            self._set("whole", VERSION)

    def forget(self) -> None:
        """Begin anew."""
        with self._explained(), self._transaction():
            self._table.execute("DELETE FROM facts")
            self._table.execute("DELETE FROM windows")

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._table.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._table.execute("ROLLBACK")
            raise
        self._table.execute("COMMIT")

    def _set(self, name: str, value: int) -> None:
        self._table.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    def _fact(self, name: str) -> int | None:
        with self._explained():
            row = self._table.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if row is None else row[0]

    def _files(self, folder: bytes) -> list[tuple[bytes, int, bytes]]:
        wanted = "SELECT files FROM windows WHERE folder = ?"
        row = self._table.execute(wanted, (folder,)).fetchone()
        texts = row[0].split(b"\0") if row else []
        return list(zip(texts[0::3], map(int, texts[1::3]), texts[2::3], strict=False))

    # ----------------------------------------------------------------------------- when it is read

    @property
    def behind(self) -> int:
        """Bytes of no use behind the archive's end."""
        return int(self._fact("behind") or 0)

    def groups(self, dataset: str) -> list[str]:
        """Window groups of the dataset in a folder of the archive, sorted."""
        found: list[str] = []
        start = _folder(dataset)
        while True:
            row = self._next(start, _after(_folder(dataset)))
            if row is None:
                return sorted(found)
            group = row[len(_folder(dataset)) :].partition(b"/")[0]
            if not group.startswith(b"."):
                found.append(os.fsdecode(group))
            start = _after(_folder(dataset) + group + b"/")

    def _next(self, start: bytes, end: bytes) -> bytes | None:
        wanted = "SELECT folder FROM windows WHERE folder >= ? AND folder < ? LIMIT 1"
        with self._explained():
            row = self._table.execute(wanted, (start, end)).fetchone()
        return None if row is None else row[0]

    def windows(self, dataset: str, group: str) -> Iterator[tuple[str, list[File]]]:
        """Windows of a group by name, each with its files sorted by path."""
        start = _folder(dataset) + os.fsencode(group) + b"/"
        wanted = "SELECT folder, files FROM windows WHERE folder >= ? AND folder < ?"
        with self._explained():
            rows = self._table.execute(wanted, (start, _after(start)))
            for folder, files in rows:
                name = os.fsdecode(folder[len(start) :])
                if not name.startswith("."):
                    yield name, parse(files)

    def window(self, dataset: str, group: str, name: str) -> list[File]:
        """One window's files; none if there is no such window."""
        folder = _folder(dataset) + os.fsencode(f"{group}/{name}")
        with self._explained():
            row = self._table.execute("SELECT files FROM windows WHERE folder = ?", (folder,))
            found = row.fetchone()
        return parse(found[0]) if found else []


def _place(parts: list[bytes]) -> int:
    """How many parts of a path name a window's folder; 0 if it is in none."""
    if _WINDOWS not in parts:
        return 0
    place = parts.index(_WINDOWS) + 3
    return place if len(parts) >= place else 0


def _folder(dataset: str) -> bytes:
    """What the paths of a dataset's windows begin with; `.` is the archive's top."""
    return b"windows/" if dataset == "." else os.fsencode(dataset) + b"/windows/"


def _after(start: bytes) -> bytes:
    """The first text behind all that begin with `start`, which ends in a slash."""
    return start[:-1] + b"0"  # what follows a slash in ASCII
