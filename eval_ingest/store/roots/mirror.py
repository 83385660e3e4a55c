"""Small objects of a remote eval root as local files, and back.

Beside each file lies a note, `.<name>.version`, of the object that it is a copy of. So an object
that hasn't changed isn't fetched, a file that hasn't changed isn't sent, what a stopped run has
not yet sent stays, and an object that somebody else has written meanwhile is not overwritten.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from eval_ingest.errors import StoreError
from eval_ingest.objects.backend import Entry
from eval_ingest.objects.retry import gather_or_cancel
from eval_ingest.objects.writing import WritableObjects
from eval_ingest.store.atomic import read_json, store_error, write_bytes, write_json


@dataclass(frozen=True)
class _Note:
    """What a local file is a copy of."""

    token: str
    """Of the object; "" where the server has none, and then the object is always fetched."""
    size: int
    mtime_ns: int
    """Of the file when it was fetched or sent."""


class Writer(Protocol):
    """Who writes objects, under which conditions ever."""

    async def put(self, name: str, data: bytes) -> Entry:
        """Write an object."""
        ...

    async def delete(self, names: Sequence[str]) -> None:
        """Delete objects."""
        ...


class Mirror:
    """A local folder, and the objects that its files are copies of."""

    def __init__(self, folder: Path, objects: WritableObjects) -> None:
        self.folder = folder
        self._objects = objects

    def name(self, path: Path) -> str:
        """The object of a local path."""
        return path.relative_to(self.folder).as_posix()

    # --------------------------------------------------------------------------------- fetching

    def pull(self, paths: Iterable[Path], listed: Mapping[str, Entry] | None = None) -> None:
        """Make files what their objects are: fetched, as they are, or gone.

        A file that was never sent stays, and so does one that was changed since, unless the
        object was changed too.

        Args:
            paths: files of the folder.
            listed: the objects by name, where they have just been listed.

        Raises:
            StoreError: an object can't be read, or a file can't be written.
        """
        self._objects.run(gather_or_cancel([self._pull(path, listed) for path in paths]))

    async def _pull(self, path: Path, listed: Mapping[str, Entry] | None) -> None:
        name = self.name(path)
        entry = await self._objects.stat(name) if listed is None else listed.get(name)
        note = _read_note(path)
        if entry is None:
            if note is not None:
                _remove(path)
                _remove(_note_path(path))
            return
        if note is not None and note.token == entry.token != "" and path.is_file():
            return
        try:
            entry, data = await self._objects.read_current(name, entry)
        except FileNotFoundError:
            return await self._pull(path, None)
        write_bytes(path, data)
        _write_note(path, entry.token)

    # ---------------------------------------------------------------------------------- sending

    def push(self, paths: Iterable[Path], to: Writer | None = None) -> None:
        """Make objects what their files are: sent, as they are, or deleted.

        Args:
            paths: files of the folder.
            to: who writes; default: whatever is there is replaced.

        Raises:
            StoreError: an object can't be written, or was written by somebody else.
        """
        writer = self._objects if to is None else to
        self._objects.run(gather_or_cancel([self._push(path, writer) for path in paths]))

    async def _push(self, path: Path, writer: Writer) -> None:
        note = _read_note(path)
        try:
            stat = path.stat()
            if note and (note.size, note.mtime_ns) == (stat.st_size, stat.st_mtime_ns):
                return
            data = path.read_bytes()
        except FileNotFoundError:
            if note is not None:
                await writer.delete([self.name(path)])
                _remove(_note_path(path))
            return
        except OSError as error:
            raise store_error(path, "reading", error) from error
        entry = await writer.put(self.name(path), data)
        write_json(_note_path(path), [entry.token, stat.st_size, stat.st_mtime_ns])

    def replace(self, path: Path, data: bytes) -> None:
        """Write an object that must be as its file here, and the file when that has worked.

        Raises:
            Conflict: somebody else has written it.
            StoreError: it can't be written.
        """
        note, name = _read_note(path), self.name(path)
        seen = None if note is None else Entry(name, 0, "", token=note.token)
        put = (
            self._objects.create(name, data) if seen is None else self._objects.replace(seen, data)
        )
        self.keep(path, self._objects.run(put), data)

    def keep(self, path: Path, entry: Entry, data: bytes) -> None:
        """Have an object's bytes, which are at hand, as its file."""
        write_bytes(path, data)
        _write_note(path, entry.token)

    def drop(self, path: Path) -> None:
        """Forget a file, so that it is fetched when it is wanted next."""
        _remove(path)
        _remove(_note_path(path))


def is_note(name: str) -> bool:
    """True for the names of notes."""
    return name.startswith(".") and name.endswith(".version")


def noted(path: Path) -> Path:
    """The file that a note is about."""
    return path.with_name(path.name.removeprefix(".").removesuffix(".version"))


def _note_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.version")


def _read_note(path: Path) -> _Note | None:
    try:
        token, size, mtime_ns = read_json(_note_path(path)) or ("", 0, 0)
    except (StoreError, TypeError, ValueError):
        return None  # damaged: as if nothing were known
    return _Note(token, size, mtime_ns) if mtime_ns else None


def _write_note(path: Path, token: str) -> None:
    stat = path.stat()
    write_json(_note_path(path), [token, stat.st_size, stat.st_mtime_ns])


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise store_error(path, "removing", error) from error
