"""A dataset in a folder, on a local disk or a mounted Weka."""

import os
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any

from eval_ingest.engine import batched, map_ordered
from eval_ingest.errors import SourceError, SourceNotFoundError
from eval_ingest.sources.base import (
    ANYBODY,
    Had,
    Listed,
    Source,
    SourceFile,
    WindowFiles,
    cannot,
    check_text_size,
    digest_of,
    plain,
)
from eval_ingest.sources.listing import (
    is_folder,
    keeps_inodes,
    list_window,
    parse,
    read_file,
    read_files,
    version_of,
)
from eval_ingest.waiting import SOURCES, SURE, WINDOWS_AHEAD

_QUICK = 16, 32
"""Threads, and windows that each lists in one go, where nobody has to wait."""
_FOLDERS = 8
"""That are opened to list a window."""


@dataclass(frozen=True)
class LocalSource(Source):
    """A dataset in a folder, on a local disk or a mounted Weka."""

    url: str
    at_hand = True

    def __post_init__(self) -> None:
        root = Path(self.url)
        if not root.is_dir():
            what = "is a file, not a folder" if root.exists() else "does not exist"
            raise SourceNotFoundError(
                f"source {self.url} {what}; give the folder that holds config.json and windows/"
            )

    @cached_property
    def _inodes(self) -> bool:
        """True if what tells one state of a file from another holds its inode."""
        return keeps_inodes(self.url)

    def read_text(self, name: str) -> str | None:
        path = os.path.join(self.url, name)
        if os.path.islink(path):
            self._check_link(path)
        try:
            with open(os.path.realpath(path), "rb", opener=_open_no_link) as stream:
                found = os.fstat(stream.fileno())
                if not stat.S_ISREG(found.st_mode):
                    raise SourceError(f"{path} is not a file; remove it, or put a file there")
                check_text_size(path, found.st_size)
                return stream.read().decode()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise cannot("read", path, error) from error
        except UnicodeDecodeError as error:
            raise SourceError(f"{path} can't be read: {error}") from error

    def on_disk(self, *names: str) -> Path:
        for path in (os.path.join(self.url, name) for name in names):
            if os.path.islink(path):
                self._check_link(path)
        return Path(self.url)

    def groups(self) -> list[str]:
        return self._visible_folders()

    def names(self, groups: list[str]) -> Iterator[Listed]:
        for group in sorted(groups):
            for name in self._visible_folders(group):
                yield Listed(group, name)

    def listing(self, groups: list[str], layers: frozenset[str]) -> Iterator[Listed]:
        for found, listed in self._list_all(groups, layers):
            yield Listed(found.group, found.name, digest_of(listed))

    def windows(self, groups: list[str], layers: frozenset[str]) -> Iterator[WindowFiles]:
        for found, listed in self._list_all(groups, layers):
            yield _window_files(found.group, found.name, listed)

    def window(self, group: str, name: str, layers: frozenset[str]) -> WindowFiles:
        return _window_files(group, name, self._list(group, name, layers))

    def _list(self, group: str, name: str, layers: frozenset[str]) -> bytes:
        root = f"{self._folder(plain(group, self.url))}/{plain(name, self.url)}"
        try:
            return list_window(root, layers, self._check_link, self._inodes)
        except OSError as error:
            raise cannot("listed", root, error) from error

    def _list_all(
        self, groups: list[str], layers: frozenset[str]
    ) -> Iterator[tuple[Listed, bytes]]:
        def look_at(some: list[Listed]) -> list[tuple[Listed, bytes]]:
            return [(window, self._list(window.group, window.name, layers)) for window in some]

        names = self.names(groups)
        first = batched(islice(names, SURE), 1)
        yield from chain.from_iterable(SOURCES.each(look_at, first, 1, files=_FOLDERS))
        # More threads than cores: that the first were quick doesn't say that all are.
        threads, together = (WINDOWS_AHEAD, 1) if SOURCES.is_long else _QUICK
        with ThreadPoolExecutor(threads, thread_name_prefix="eval_ingest_list") as pool:
            some = batched(names, together)
            for found in map_ordered(pool, look_at, some, in_flight=2 * threads):
                yield from found

    @cached_property
    def _known(self) -> set[str]:
        """Groups whose folders are in the dataset."""
        return set()

    def __getstate__(self) -> dict[str, Any]:
        # It goes with each task: a worker looks at the groups of its own.
        return {name: value for name, value in self.__dict__.items() if name != "_known"}

    def _folder(self, group: str) -> str:
        """The folder of a group, or, without one, of all; links are followed within the dataset.

        Raises:
            SourceError: one leads out.
        """
        windows = f"{self.url}/windows"
        path = f"{windows}/{group}" if group else windows
        if group not in self._known:
            for folder in (windows, path):
                if os.path.islink(folder):
                    self._check_link(folder)
            if os.path.exists(path):
                self._known.add(group)
        return path

    def _visible_folders(self, group: str = "") -> list[str]:
        """Names of the folders in a group's folder, or in that of all."""
        path = self._folder(group)
        try:
            with os.scandir(path) as entries:
                found = (e.name for e in entries if not e.name.startswith(".") and is_folder(e))
                return sorted(found)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise cannot("listed", path, error) from error

    def _check_link(self, path: str) -> None:
        """Refuse a link that leads out of the dataset: a copy would publish what it points at.

        Raises:
            SourceError: it leads out, to something that is there.
        """
        root, real = os.path.realpath(self.url), os.path.realpath(path)
        if os.path.lexists(real) and os.path.commonpath([root, real]) != root:
            raise SourceError(
                f"{path} is a link to {real}, which is outside of the dataset; "
                "put a copy there instead (for another model.yaml alone, "
                "--olmoearth-run-config-path names its folder)"
            )

    def fetch(self, files: WindowFiles, wanted: Sequence[SourceFile]) -> dict[str, Had]:
        return read_files(f"{self.url}/windows/{files.key}", wanted, self._inodes)

    def have(self, group: str, name: str, file: SourceFile) -> Had:
        path = f"{self.url}/windows/{group}/{name}/{file.path}"
        try:
            data, found = read_file(path, file.size)
        except OSError as error:
            raise cannot("read", path, error) from error
        if len(data) != file.size or version_of(found, self._inodes) != file.version:
            raise SourceError(
                f"{path} has {len(data)} bytes, {file.size} when it was listed, or was written "
                "since; the source changes while it is read: run again when it is still"
            )
        return Had(data, found.st_mode & ANYBODY)


def _open_no_link(path: str, flags: int) -> int:
    """Open a file, not a link that was put there just now; a pipe isn't waited for."""
    return os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)


def _window_files(group: str, name: str, listed: bytes) -> WindowFiles:
    return WindowFiles(group, name, tuple(SourceFile(*file) for file in parse(listed)))
