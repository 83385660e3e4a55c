"""A dataset whose windows are described in a database: rslearn's SQLiteWindowStorage.

windows.sqlite3 holds what else metadata.json, items.json and the `completed` markers say. It is
shown as these files, so that everything after this module meets windows in files, and the copy is
one. Rasters and features lie in their folders as ever, wherever: of a bucket, the database alone is
brought to this disk. It is only read, by plain queries, and trusted no more than other files: its
values are stored, not computed, and what it may cost grows with its size alone.
"""

import contextlib
import hashlib
import itertools
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval_ingest.core.plain_yaml import PARSE_FAULTS, class_path_of, load_json
from eval_ingest.errors import EvalIngestError, SourceError, lacking
from eval_ingest.sources.base import (
    ANYBODY,
    CONFIG_FILES,
    WINDOW_FILES,
    Had,
    Key,
    Listed,
    Source,
    SourceFile,
    WindowFiles,
    WindowReader,
    cannot,
    is_read,
    plain,
)

DATABASE = "windows.sqlite3"
_LOG, _JOURNAL = f"{DATABASE}-wal", f"{DATABASE}-journal"
"""Beside it: what was committed and isn't in it yet, and what a stopped writer has overwritten."""
_SCHEMA_VERSION = 1
"""That rslearn 0.1.19 writes."""
_TABLES = {"windows", "layer_datas", "completed_layers"}
_ALONE = "unix-none"
"""What SQLite calls a file system whose files nobody locks."""
_LOG_UNUSABLE = {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR,
                 sqlite3.SQLITE_PROTOCOL}  # fmt: skip
"""What comes of a log whose index can't be beside it, or of files that can't be locked."""
_BUSY_S = 10.0
"""How long a writer is waited for."""

_MOST_VALUE_BYTES = 32 << 20
"""Of one value; more than items.json may have."""
_STEPS_BETWEEN = 100_000
_STEPS, _STEPS_PER_BYTE = 2_000_000, 20
"""Of SQLite's machine, for one connection: to read all of a database takes a hundredth of it."""

_METADATA = """
    SELECT crs, x_resolution, y_resolution, bounds_x1, bounds_y1, bounds_x2, bounds_y2,
           time_start, time_end, options_json
    FROM windows WHERE group_name = CAST(? AS TEXT) AND name = CAST(? AS TEXT)
"""
_ITEMS = """
    SELECT data_json FROM layer_datas
    WHERE group_name = CAST(? AS TEXT) AND window_name = CAST(? AS TEXT)
"""
_COMPLETED = """
    SELECT layer_name, group_idx FROM completed_layers
    WHERE group_name = CAST(? AS TEXT) AND window_name = CAST(? AS TEXT)
    ORDER BY layer_name, group_idx
"""
_NAMES = "SELECT name FROM windows WHERE group_name = CAST(? AS TEXT) ORDER BY name"


@dataclass(frozen=True)
class SqliteSource(Source):
    """A dataset with its windows in windows.sqlite3."""

    inner: Source
    """Where their rasters and features lie, and the database beside them."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "waiting", self.inner.waiting)

    @property
    def url(self) -> str:
        return self.inner.url

    @property
    def origin(self) -> str:
        return self.inner.origin

    @property
    def notes(self) -> tuple[str, ...]:
        return self.inner.notes

    def read_text(self, name: str) -> str | None:
        return self.inner.read_text(name)

    # -------------------------------------------------------------------------------- listing

    def groups(self) -> list[str]:
        with closing(self._connect()) as database:
            found = _rows(database, "SELECT DISTINCT group_name FROM windows ORDER BY 1")
        return [self._plain(name) for (name,) in found]

    def names(self, groups: list[str]) -> Iterator[Listed] | None:
        return None if self.inner.names([]) is None else self._names(groups)

    def _names(self, groups: list[str]) -> Iterator[Listed]:
        with closing(self._connect()) as database:
            for group in sorted(groups):
                for (name,) in _rows(database, _NAMES, self._plain(group)):
                    yield Listed(group, self._plain(name))

    def listing(self, groups: list[str], layers: frozenset[str]) -> Iterator[Listed]:
        if self.inner.names([]) is None:
            for _ in self.inner.listing(groups, layers):  # which keeps the files for `window`
                pass
        return super().listing(groups, layers)

    def ensure_listed(
        self, groups: list[str], layers: frozenset[str], windows: Iterable[Key] | None = None
    ) -> None:
        self.inner.ensure_listed(groups, layers, windows)

    def windows(self, groups: list[str], layers: frozenset[str]) -> Iterator[WindowFiles]:
        with closing(self._connect()) as database:
            for listed in list(self._names(groups)):
                yield self._window(database, listed.group, listed.name, layers)

    def window(self, group: str, name: str, layers: frozenset[str]) -> WindowFiles:
        with closing(self._connect()) as database:
            return self._window(database, group, name, layers)

    def _window(
        self, database: sqlite3.Connection, group: str, name: str, layers: frozenset[str]
    ) -> WindowFiles:
        found = self.inner.window(self._plain(group), self._plain(name), layers)
        files = [file for file in found.files if not _is_described(file.path)]
        for path, data in _described(database, group, name).items():
            if is_read(path, layers):
                files.append(_file(path, data))
        return WindowFiles(group, name, tuple(sorted(files)))

    # -------------------------------------------------------------------------------- reading

    def fetch(self, files: WindowFiles, wanted: Sequence[SourceFile]) -> dict[str, Had]:
        found = self.inner.fetch(files, [file for file in wanted if not _is_described(file.path)])
        with closing(self._connect()) as database:
            described = _described(database, files.group, files.name)
        permissions = self._database.stat().st_mode & ANYBODY
        for file in wanted:
            data = described.get(file.path) if _is_described(file.path) else None
            if data is not None and _file(file.path, data) == file:
                found[file.path] = Had(data, permissions)
        return found

    def have(self, group: str, name: str, file: SourceFile) -> Had:
        if not _is_described(file.path):
            return self.inner.have(group, name, file)
        found = self.fetch(WindowFiles(group, name, (file,)), [file])
        if file.path not in found:
            raise SourceError(
                f"{self.url}/{DATABASE} says otherwise of {group}/{name} than when it was listed; "
                "the source changes while it is read: run again when it is still"
            )
        return found[file.path]

    def keep(self, window: WindowReader) -> None:
        self.inner.keep(window)

    def drop(self, files: WindowFiles) -> None:
        self.inner.drop(files)

    def forget(self) -> None:
        self.inner.forget()

    # ------------------------------------------------------------------------------- the database

    @property
    def _database(self) -> Path:
        return self.inner.on_disk(DATABASE, _LOG, _JOURNAL) / DATABASE

    def _plain(self, name: object) -> str:
        return plain(name, f"{self.url}/{DATABASE}")

    def _connect(self) -> sqlite3.Connection:
        path = self._database
        log, journal = path.with_name(_LOG), path.with_name(_JOURNAL)
        # Without a log there is no writer, and nothing is put beside the database. With one, but
        # where its index can't be, the log is read without it, and nothing is locked.
        ways = ["mode=ro", f"mode=ro&vfs={_ALONE}"] if _size(log) else ["mode=ro&immutable=1"]
        if _size(journal):
            ways = ["mode=ro"]
        failed: sqlite3.Error | None = None
        for way in ways:
            try:
                return self._opened(path, way)
            except sqlite3.Error as error:
                failed = error
                if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _LOG_UNUSABLE:
                    break
        raise self._unreadable(path, failed)

    def _opened(self, path: Path, way: str) -> sqlite3.Connection:
        database = sqlite3.connect(f"{path.as_uri()}?{way}", _BUSY_S, uri=True)
        try:
            if way.endswith(_ALONE):
                database.execute("PRAGMA locking_mode = EXCLUSIVE")  # the index is in memory then
            _bound(database, _size(path) + _size(path.with_name(_LOG)))
            _check(f"{self.url}/{DATABASE}", database)
        except BaseException:
            database.close()
            raise
        return database

    def _unreadable(self, path: Path, error: sqlite3.Error | None) -> EvalIngestError:
        """What to say of a database that SQLite can't open: it doesn't say why."""
        if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_READONLY_ROLLBACK:
            return SourceError(
                f"{self.url}/{_JOURNAL} is of a writer that was stopped, and what it had begun "
                f"has to be undone first: open {DATABASE} with rslearn or sqlite3 there, once"
            )
        with contextlib.ExitStack() as opened:
            for name in (DATABASE, _LOG, _JOURNAL, DATABASE):  # as many as SQLite has open
                try:
                    with contextlib.suppress(FileNotFoundError):
                        opened.enter_context(open(path.with_name(name), "rb"))
                except OSError as why:
                    return cannot("read", f"{self.url}/{name}", why)
            lack = None if error is None else lacking(error)
        return lack or SourceError(f"{self.url}/{DATABASE} can't be read: {error}")


def with_database(source: Source, storage: str = "") -> Source:
    """The source, with its windows as the database has them if its configuration says so.

    Args:
        source: where the database may be.
        storage: `file` or `sqlite`, once it is known how its windows are stored: the source's own
            config.json may say it with a variable, or isn't the one that counts.
    """
    inner = source.inner if isinstance(source, SqliteSource) else source
    if (storage or _storage(inner)) != "sqlite":
        return inner
    inner.complete()
    return SqliteSource(inner) if inner.has(DATABASE) else inner


def _storage(source: Source) -> str:
    texts = map(source.read_text, CONFIG_FILES)
    text = next((text for text in texts if text is not None), "")
    try:
        named = class_path_of(load_json(text)["storage"])
    except PARSE_FAULTS:
        return ""  # whoever needs the configuration says what is wrong
    return "sqlite" if named.rpartition(".")[2] == "SQLiteWindowStorageFactory" else ""


def _size(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):  # a log goes with the last who has it open
        return path.stat().st_size
    return 0


def _bound(database: sqlite3.Connection, n_bytes: int) -> None:
    """Let queries take what a database of that size can need: damaged pages may lead in circles."""
    left = (_STEPS + _STEPS_PER_BYTE * n_bytes) // _STEPS_BETWEEN
    steps = itertools.count(1)
    database.execute("PRAGMA trusted_schema = OFF")
    database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MOST_VALUE_BYTES)
    database.set_progress_handler(lambda: next(steps) > left, _STEPS_BETWEEN)
    database.text_factory = os.fsdecode  # names are those of folders, in any encoding


def _check(path: str, database: sqlite3.Connection) -> None:
    """Refuse what isn't of the form that we know: tables whose columns are all stored."""
    # Whoever opens it makes of an error what it means there.
    ((version,),) = database.execute("PRAGMA user_version")
    made = dict(_rows(database, "SELECT name, sql FROM sqlite_master WHERE type = 'table'"))
    stored = all(
        str(made.get(table)).upper().startswith("CREATE TABLE")
        and not any(_rows(database, f"SELECT 1 FROM pragma_table_xinfo('{table}') WHERE hidden"))
        for table in _TABLES
    )
    if version != _SCHEMA_VERSION or not stored:
        raise SourceError(
            f"{path} is no database of windows of version {_SCHEMA_VERSION}, which rslearn 0.1.19 "
            "writes; convert it with that: rslearn dataset migrate"
        )


def _rows(database: sqlite3.Connection, query: str, *values: str) -> list[tuple[Any, ...]]:
    try:
        return database.execute(query, [os.fsencode(value) for value in values]).fetchall()
    except sqlite3.OperationalError as error:
        raise lacking(error) or SourceError(f"{DATABASE} can't be read: {error}") from error
    except (sqlite3.Error, ValueError, OverflowError) as error:
        too_large = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_TOOBIG
        kind = _TooLargeError if too_large else SourceError
        raise kind(f"{DATABASE} is damaged: {error}") from error


class _TooLargeError(SourceError):
    """A value is larger than any may be."""


_TOO_LARGE = f"a value of more than {_MOST_VALUE_BYTES >> 20} MiB in {DATABASE}".encode()
"""What stands for the file of such a value: no JSON."""


def _is_described(path: str) -> bool:
    """True for a file that the database stands for, whatever lies there."""
    return path in WINDOW_FILES or (path.endswith("/completed") and path.count("/") == 2)


def _described(database: sqlite3.Connection, group: str, name: str) -> dict[str, bytes]:
    """The files that the database stands for, as rslearn's FileWindowStorage would write them."""
    files: dict[str, bytes] = {}
    for file, query in (("metadata.json", _METADATA), ("items.json", _ITEMS)):
        try:
            for row in _rows(database, query, group, name):
                text = _metadata(group, name, *row) if query == _METADATA else str(row[0])
                files[file] = os.fsencode(text)
        except _TooLargeError:  # this window is broken, and no other
            files[file] = _TOO_LARGE
    for layer, item_group in _rows(database, _COMPLETED, group, name):
        if isinstance(item_group, int) and isinstance(layer, str) and "/" not in layer:
            folder = f"{layer}.{item_group}" if item_group else layer
            files[f"layers/{folder}/completed"] = b""
    return files


def _metadata(group: str, name: str, *row: Any) -> str:
    """metadata.json, from a row of what _METADATA asks for."""
    crs, x_resolution, y_resolution, *bounds, start, end, options = row
    known = {
        "group": group,
        "name": name,
        "projection": {"crs": crs, "x_resolution": x_resolution, "y_resolution": y_resolution},
        "bounds": bounds,
        "time_range": [start, end] if start and end else None,
    }
    # Whatever stands there for the options: if it is no JSON, nor is the file.
    return f'{json.dumps(known, default=str)[:-1]}, "options": {options}}}'


def _file(path: str, data: bytes) -> SourceFile:
    return SourceFile(path, len(data), hashlib.blake2b(data, digest_size=16).hexdigest())
