"""A dataset in an archive: unpacked once into a folder of ours, and kept until it is copied.

Belongs here: which version of an archive is unpacked where, and the source that reads it. Does
not: the formats (tar.py, decompress.py), and writing members (unpacking.py).

    <folder>/<archive>-<version>/contents.sqlite    each window's files with their checksums
    <folder>/<archive>-<version>/tree/              what was unpacked; windows/ until it is copied
    <folder>/<archive>-<version>/moving             files of windows are being moved into the copy
    <folder>/<archive>-<version>/part.json          which windows are there, if not all: those of
                                                    some groups, or those that were needed

The list of windows and the configuration stay, so that an unchanged archive is not opened again;
and where copies hold its windows, these are taken from them (refill.py).
"""

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import google_crc32c
from filelock import FileLock

from eval_ingest.engine import Progress, no_progress
from eval_ingest.errors import (
    EvalIngestError,
    SourceError,
    SourceNotFoundError,
    StoreError,
    lacking,
)
from eval_ingest.sources.base import (
    ANYBODY,
    CONFIG_FILES,
    Copies,
    Had,
    Key,
    Ours,
    Source,
    SourceFile,
    WindowFiles,
    WindowReader,
    cannot,
    is_read,
)
from eval_ingest.sources.decompress import StreamError, decompressed
from eval_ingest.sources.listing import read_files
from eval_ingest.sources.local import LocalSource
from eval_ingest.sources.refill import fill, take_contents
from eval_ingest.sources.stream import Checked, CutOffError, Version, stream_of
from eval_ingest.sources.tar import TarError
from eval_ingest.sources.unpacking import LIMITS, ArrivedWindow, Limits, RefusedError, Unpacking
from eval_ingest.sources.window_table import WindowTable
from eval_ingest.waiting import remove_folder

CONTENTS_VERSION = 2
_DEEPEST = 3
"""Levels of folders in an archive above config.json that are looked into."""
_TREE, _DROPPED, _MOVING = "tree", "dropped", "moving"
_TABLE, _PART = "contents.sqlite", "part.json"
_NEEDED = "needed"
"""In the place of some groups: windows that were judged as they came are there if need be."""


@dataclass(frozen=True)
class ArchiveSource(Source):
    """The dataset in an archive."""

    archive: str
    """The archive's path or URL."""
    unpacked: Path
    """The folder of this version of it."""
    dataset: str
    """The dataset's folder in the archive; `.` is its top."""
    limits: Limits = LIMITS
    progress: Progress = field(default=no_progress, compare=False)
    copies: Copies | None = field(default=None, compare=False)
    """What needn't be unpacked."""
    _local: threading.local = field(default_factory=threading.local, compare=False, repr=False)

    moves = True

    def __getstate__(self) -> dict[str, Any]:
        # A worker neither unpacks nor tells.
        return {"archive": self.archive, "unpacked": self.unpacked, "dataset": self.dataset}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @property
    def origin(self) -> str:
        return self.archive

    @property
    def url(self) -> str:
        return str(self.unpacked / _TREE / self.dataset)

    @property
    def notes(self) -> tuple[str, ...]:
        behind = self._table.fact("behind") if self.is_whole else 0
        if not behind:
            return ()
        return (f"{self.archive}: {behind:,} bytes of no use follow the archive's end",)

    @cached_property
    def _table(self) -> WindowTable:
        self.complete()
        return _table(self.unpacked)

    @property
    def is_whole(self) -> bool:
        """False while its windows have yet to be unpacked."""
        return "_table" in vars(self) or _table(self.unpacked).is_whole

    def complete(self) -> bool:
        return self.arrive(lambda _: False, judged=False)

    def arrive(self, first: Callable[[Unpacking], bool], judged: bool = True) -> bool:
        """Unpack what isn't yet; False if all is.

        Args:
            first: is given what comes, and may take windows of it.
            judged: True if it doesn't write those that nobody will read again.

        Raises:
            SourceError: see `open_archive`; nothing of the archive is left then.
        """
        if self.is_whole:
            return False
        with _locked(self.unpacked.parent):
            if not self.is_whole:
                if judged:
                    (self.unpacked / _PART).write_text(_NEEDED)
                _unpack(self.archive, self.unpacked, self.limits, self.progress, first=first)
        found = _dataset_in(self.unpacked / _TREE, self.archive)
        if found != self.dataset:
            raise SourceError(
                f"{self.archive} holds a dataset in {self.dataset} and one in {found}"
            )
        return True

    @property
    def n_bytes(self) -> int:
        """Of the archive."""
        return Version.of(self.archive).size

    def key_of(self, window: ArrivedWindow) -> str:
        """A window's `group/name`."""
        return os.fsdecode(window.folder.removeprefix(self.windows_folder))

    def arrived(self, windows: Sequence[ArrivedWindow]) -> "ArrivedSource":
        """The source as long as only these windows are wanted, which are in memory."""
        return ArrivedSource(self.archive, self.unpacked, self.dataset, in_memory={
            self.key_of(window): window for window in windows
        })  # fmt: skip

    @property
    def windows_folder(self) -> bytes:
        """The archive's path of the dataset's windows; `.` is its top."""
        return b"windows/" if self.dataset == "." else os.fsencode(self.dataset) + b"/windows/"

    def read_text(self, name: str) -> str | None:
        return LocalSource(self.url).read_text(name)

    # -------------------------------------------------------------------------------- listing

    def groups(self) -> list[str]:
        return self._table.groups(self.windows_folder)

    def windows(self, groups: list[str], layers: frozenset[str]) -> Iterator[WindowFiles]:
        for group in sorted(groups):
            for name, files in self._table.windows(self.windows_folder + os.fsencode(f"{group}/")):
                yield _wanted(group, name, files, layers)

    def window(self, group: str, name: str, layers: frozenset[str]) -> WindowFiles:
        files = self._table.window(self.windows_folder + os.fsencode(f"{group}/{name}"))
        return _wanted(group, name, files or [], layers)

    def ensure_listed(
        self, groups: list[str], layers: frozenset[str], windows: Iterable[Key] | None = None
    ) -> None:
        # What a stopped copy has moved away is unpacked once more.
        moving, part = self.unpacked / _MOVING, self.unpacked / _PART
        wanted = json.dumps([sorted(groups), sorted(layers)])
        if Path(self.url, "windows").is_dir() and not moving.exists():
            known = part.read_text() if part.exists() else wanted
            needed = windows if known == _NEEDED else None
            if known == wanted or (needed is not None and all(map(self._is_there, needed))):
                return
        folder = Path(self.url, "windows")
        with _locked(self.unpacked.parent):
            filled = folder.with_name(".windows.filled")
            if self.copies and fill(filled, lambda: self.windows(groups, layers), self.copies):
                _drop(self.unpacked, folder)
                part.write_text(wanted)
                filled.rename(folder)
                moving.unlink(missing_ok=True)
                return
            remove_folder(filled)
            _unpack(self.archive, self.unpacked, self.limits, self.progress, anew=True)

    def _is_there(self, window: Key) -> bool:
        path = f"{self.url}/windows/{'/'.join(window)}"
        files = self._table.window(self.windows_folder + os.fsencode("/".join(window))) or ()
        with contextlib.suppress(OSError):
            return all(os.stat(f"{path}/{file.path}").st_size == file.size for file in files)
        return False

    # -------------------------------------------------------------------------------- reading

    def fetch(self, files: WindowFiles, wanted: Sequence[SourceFile]) -> dict[str, Had]:
        found = read_files(f"{self.url}/windows/{files.key}", wanted, None)
        right = {file.path: file.version for file in wanted}
        return {path: had for path, had in found.items() if _version(had.data) == right[path]}

    def have(self, group: str, name: str, file: SourceFile) -> Had:
        path = self._path(group, name, file)
        try:
            with open(path, "rb", buffering=0) as stream:
                data = stream.read()
        except OSError as error:
            raise cannot("read", path, error) from error
        found = _version(data)
        if found != file.version:
            raise SourceError(
                f"{path}, unpacked from {self.archive}, has {found}, {file.version} when it was "
                f"unpacked: it was damaged on this disk; remove {self.unpacked} and run again"
            )
        return Had(data, ANYBODY)

    def ours(self, files: WindowFiles) -> Ours:
        if not hasattr(self._local, "moving"):
            (self.unpacked / _MOVING).touch()
            self._local.moving = True
        unpacked = self._table.window(self.windows_folder + os.fsencode(files.key)) or ()
        others = tuple(file.path for file in unpacked if file.path not in files.by_path)
        return Ours(f"{self.url}/windows/{files.key}", others)

    def _path(self, group: str, name: str, file: SourceFile) -> str:
        return f"{self.url}/windows/{group}/{name}/{file.path}"

    def forget(self) -> None:
        """Remove the unpacked windows: what is wanted of them has been copied."""
        with _locked(self.unpacked.parent):
            _drop(self.unpacked, Path(self.url, "windows"))
            for note in (_MOVING, _PART):
                (self.unpacked / note).unlink(missing_ok=True)
        vars(self._local).pop("moving", None)


@dataclass(frozen=True)
class ArrivedSource(ArchiveSource):
    """Windows that have come off an archive's stream, and are read in memory."""

    in_memory: dict[str, ArrivedWindow] = field(default_factory=dict, compare=False)
    """By `group/name`."""
    kept: list[ArrivedWindow] = field(default_factory=list, compare=False)
    """Those that a later stage will read again."""

    def window(self, group: str, name: str, layers: frozenset[str]) -> WindowFiles:
        versions = sorted(self.in_memory[f"{group}/{name}"].versions.items())
        files = [SourceFile(os.fsdecode(p), n, v.decode()) for p, (n, v) in versions]
        return _wanted(group, name, files, layers)

    def fetch(self, files: WindowFiles, wanted: Sequence[SourceFile]) -> dict[str, Had]:
        return {file.path: self.have(files.group, files.name, file) for file in wanted}

    def have(self, group: str, name: str, file: SourceFile) -> Had:
        return Had(self.in_memory[f"{group}/{name}"].files[os.fsencode(file.path)], ANYBODY)

    def keep(self, window: WindowReader) -> None:
        self.kept.append(self.in_memory[window.files.key])


def _version(data: bytes) -> str:
    return f"crc32c:{google_crc32c.value(data):08x}"


def _wanted(group: str, name: str, files: list[SourceFile], layers: frozenset[str]) -> WindowFiles:
    return WindowFiles(group, name, tuple(file for file in files if is_read(file.path, layers)))


def _table(unpacked: Path) -> WindowTable:
    return WindowTable(unpacked / _TABLE, CONTENTS_VERSION)


def _drop(unpacked: Path, folder: Path) -> None:
    """Remove a folder of what is unpacked, out of sight first: what is in sight is whole."""
    dropped = unpacked / _DROPPED
    with contextlib.suppress(OSError):
        remove_folder(dropped)
        os.rename(folder, dropped)
    remove_folder(dropped)


def open_archive(
    url: str,
    folder: Path | None,
    limits: Limits = LIMITS,
    progress: Progress = no_progress,
    copies: Copies | None = None,
    later: bool = False,
) -> ArchiveSource:
    """Unpack an archive, unless that is done, and open what is in it.

    Args:
        url: path or URL of a .tar, .tar.gz or .tgz.
        folder: where it is unpacked, in a folder named after its version; earlier ones go.
        limits: more than this stops it.
        progress: told of the bytes of the archive that are read.
        copies: of its windows; and where it was unpacked for these.
        later: True to leave its windows for when they are asked for, or `arrive`, if its
            configuration stands before them.

    Raises:
        SourceNotFoundError: there is no such archive.
        SourceError: it is damaged, unsafe, larger than the limits, or holds no dataset.
        StoreError: it can't be unpacked there.
    """
    version = Version.of(url)
    if folder is None:
        raise SourceError(f"{url} is an archive, and only a dataset's source may be one; unpack it")
    target = folder / version.name(url)
    if not _table(target).is_whole:
        with _locked(folder):
            for other in folder.iterdir():  # earlier versions, or of another archive
                if other != target:
                    remove_folder(other)
            if not _table(target).is_whole and not _taken(url, target, copies):
                _begin(url, target, limits, progress, later)
    dataset = _dataset_in(target / _TREE, url)
    return ArchiveSource(url, target, dataset, limits, progress, copies)


def _begin(url: str, target: Path, limits: Limits, progress: Progress, later: bool) -> None:
    """Unpack an archive; but, if the rest is for later, not more than its configuration."""
    if later and _table(target).is_begun:
        with contextlib.suppress(SourceError):
            _dataset_in(target / _TREE, url)
            return  # a run was stopped when its windows arrived
    _unpack(url, target, limits, progress, first=lambda u: later and u.begin(CONFIG_FILES))


def _taken(url: str, target: Path, copies: Copies | None) -> bool:
    """True if another dataset's list of this archive's windows is ours now."""
    for folder in copies.archives if copies else ():
        unpacked = folder / target.name
        with contextlib.suppress(OSError, EvalIngestError):  # it is being removed
            if unpacked != target and _table(unpacked).is_whole:
                dataset = _dataset_in(unpacked / _TREE, url)
                take_contents(unpacked, target, _TABLE, _TREE, dataset)
                return True
    return False


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Two processes don't unpack the same archive at once."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{folder.name}.lock")):
            yield
    except OSError as error:
        raise _cannot_write(folder, error) from error


def _unpack(
    url: str,
    target: Path,
    limits: Limits,
    progress: Progress,
    anew: bool = False,
    first: Callable[[Unpacking], bool] = lambda _: False,
) -> None:
    """Unpack what isn't yet; whoever is stopped goes on. Of a bad archive nothing stays.

    With `anew`, its windows, or some, were moved away or removed when they had been copied. What
    `first` doesn't take is unpacked after it, unless it says that this is enough.
    """
    version = Version.of(url)
    if version.name(url) != target.name:
        raise SourceError(f"{url} has changed since it was opened; run again")
    try:
        tree = target / _TREE
        tree.mkdir(parents=True, exist_ok=True)
        table = _table(target)
        with table.writing(anew) as done, stream_of(url, version) as stream:
            each = _teller(stream, version.size, progress)
            with contextlib.closing(decompressed(stream.read)) as chunks:
                unpacking = Unpacking(chunks, tree, table, done, limits, each, anew)
                if first(unpacking):
                    return
                behind = unpacking.rest()
            stream.compare()
            table.finish(behind=behind)
        for note in (_MOVING, _PART) if anew else ():
            (target / note).unlink(missing_ok=True)
    except (TarError, StreamError) as error:
        remove_folder(target)
        raise SourceError(
            f"{url} can't be unpacked: {error}; it is damaged or no tar archive: write it anew"
        ) from error
    except RefusedError as error:
        remove_folder(target)
        raise SourceError(f"{url} {error}") from error
    except CutOffError:
        raise
    except SourceError:
        remove_folder(target)
        raise
    except OSError as error:
        raise _cannot_write(target, error) from error


def _teller(stream: Checked, size: int, progress: Progress) -> Callable[[], None]:
    """Tells how much of an archive is read, not too often."""
    last = 0.0

    def tell() -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > 0.2:
            last = now
            progress("MiB of the archive unpacked", stream.size >> 20, max(size >> 20, 1))

    return tell


def _cannot_write(target: Path, error: OSError) -> EvalIngestError:
    return lacking(error) or StoreError(
        f"unpacking into {target} failed: {error.strerror or error}; free space there or make it "
        "writable, and run again: it goes on where it stopped"
    )


def _dataset_in(folder: Path, url: str) -> str:
    """The folder with config.json: the unpacked one, or one below it."""
    level = [folder]
    for _ in range(_DEEPEST + 1):
        found = [path for path in level if any((path / name).is_file() for name in CONFIG_FILES)]
        if len(found) == 1:
            return str(found[0].relative_to(folder))
        if found:
            names = ", ".join(str(path.relative_to(folder)) for path in found[:6])
            raise SourceError(f"{url} holds several datasets ({names}); unpack it and give one")
        level = [
            path
            for parent in level
            for path in sorted(parent.iterdir())
            if path.is_dir() and path.name != "windows"
        ]
    raise SourceNotFoundError(f"{url} holds no config.json, so no rslearn dataset")
