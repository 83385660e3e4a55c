"""Small objects of a remote eval root as local files, and back.

Beside each file lies a note, `.<name>.version`, of the object that it is a copy of. So an object
that hasn't changed isn't fetched, a file that hasn't changed isn't sent, what a stopped run has
not yet sent stays, and an object that somebody else has written meanwhile is not overwritten.

What doesn't belong here: who may write (holding.py), and packed samples (cache.py).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from eval_ingest.errors import StoreError
from eval_ingest.objects.backend import Entry
from eval_ingest.objects.writing import WritableObjects
from eval_ingest.redaction import redacted
from eval_ingest.store.atomic import read_json, remove_path, store_errors, write_bytes, write_json
from eval_ingest.store.roots.holding import Holding


@dataclass(frozen=True)
class _Note:
    """What a local file is a copy of."""

    token: str
    """Of the object; "" where the server has none, and then the object is always fetched."""
    size: int
    mtime_ns: int
    """Of the file when it was fetched or sent."""


@dataclass(frozen=True)
class Mirror:
    """A folder in a bucket, and the local folder whose files are copies of its objects."""

    url: str
    path: Path
    endpoint: str | None = None
    """Of Weka's S3."""

    def __getstate__(self) -> dict[str, Any]:
        # Each process opens its own connections.
        return {name: self.__dict__[name] for name in ("url", "path", "endpoint")}

    @cached_property
    def objects(self) -> WritableObjects:
        """The bucket's objects, by names relative to the folder."""
        return WritableObjects(self.url, endpoint=self.endpoint)

    def name(self, path: Path) -> str:
        """The object of a local path."""
        return path.relative_to(self.path).as_posix()

    def shown(self, path: Path) -> str:
        """What a local path stands for, for people."""
        inside = self.name(path)
        return redacted(self.url if inside == "." else f"{self.url}/{inside}")

    def reach(self) -> None:
        """Look at the bucket once: a server that is out of reach is told soon.

        Raises:
            StoreError: it can't be reached.
        """
        _ = self._reached

    @cached_property
    def _reached(self) -> bool:
        self.objects.greet()
        self.objects.run(self.objects.stat("registry.json"))
        return True

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
        self.reach()
        self.objects.run_all([self._pull(path, listed) for path in paths])

    async def _pull(self, path: Path, listed: Mapping[str, Entry] | None) -> None:
        name = self.name(path)
        entry = await self.objects.stat(name) if listed is None else listed.get(name)
        note = _read_note(path)
        if entry is None:
            if note is not None:
                self.drop(path)
            return
        if note is not None and note.token == entry.token != "" and path.is_file():
            return
        try:
            entry, data = await self.objects.read_current(name, entry)
        except FileNotFoundError:
            return await self._pull(path, None)
        self.keep(path, entry, data)

    def pull_again(self, path: Path) -> None:
        """Have a file whose copy here is damaged.

        Raises:
            StoreError: it can't be read.
        """
        self.drop(path)
        self.pull([path])

    def pull_folder(self, folder: Path) -> None:
        """Have the files right in a folder as they are now.

        Raises:
            StoreError: they can't be read.
        """
        self.reach()
        below = self.objects.below(self.name(folder))
        listed = {entry.name: entry for entry in below if not entry.folder}
        mirrored = {noted(note) for note in folder.glob(".*.version")}
        self.pull({*mirrored, *(self.path / name for name in listed)}, listed)

    # ---------------------------------------------------------------------------------- sending

    def push(self, paths: Iterable[Path], holding: Holding | None = None) -> None:
        """Make objects what their files are: sent, as they are, or deleted.

        Args:
            paths: files of the folder.
            holding: of the dataset that they belong to; None: whatever is there is replaced.

        Raises:
            StoreError: an object can't be written, or was written by somebody else.
        """
        self.objects.run_all([self._push(path, holding) for path in paths])

    async def _push(self, path: Path, holding: Holding | None) -> None:
        note, name = _read_note(path), self.name(path)
        if not path.exists():
            if note is not None:
                await (holding or self.objects).delete([name])
                remove_path(_note_path(path))
            return
        with store_errors("reading", path):
            stat = path.stat()
            if note and (note.size, note.mtime_ns) == (stat.st_size, stat.st_mtime_ns):
                return
            data = path.read_bytes()
        entry = await (holding or self.objects).put(name, data)
        write_json(_note_path(path), [entry.token, stat.st_size, stat.st_mtime_ns])

    def replace(self, path: Path, data: bytes) -> None:
        """Write an object that must be as its file here, and the file when that has worked.

        Raises:
            Conflict: somebody else has written it.
            StoreError: it can't be written.
        """
        note = _read_note(path)
        seen = Entry(self.name(path), 0, "", token="" if note is None else note.token)
        self.keep(path, self.objects.run(self.objects.replace(seen, data)), data)

    def keep(self, path: Path, entry: Entry, data: bytes) -> None:
        """Have an object's bytes, which are at hand, as its file."""
        write_bytes(path, data)
        stat = path.stat()
        write_json(_note_path(path), [entry.token, stat.st_size, stat.st_mtime_ns])

    def drop(self, path: Path) -> None:
        """Forget a file, so that it is fetched when it is wanted next."""
        remove_path(path)
        remove_path(_note_path(path))


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
