"""Where an rslearn dataset lies: list its windows' files, read their bytes.

A source is listed once per ingest. Listing gives each file's size and version, so that nothing is
asked about one by one, and a changed file is noticed without being read.

A folder is a LocalSource; what lies behind a URL is in remote.py, and archives in archive.py.
"""

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol

from eval_ingest.engine import batched, map_ordered
from eval_ingest.errors import SourceError, SourceNotFoundError
from eval_ingest.objects.filesystems import weka_mount
from eval_ingest.studio.listing import OddFileError, list_window, parse

CONFIG_FILES = ("config.json", "dataset.json")
ARCHIVE_ENDINGS = (".tar", ".tar.gz", ".tgz")

_LISTING_THREADS = 16
_LISTED_TOGETHER = 32
"""Windows that a thread lists in one go."""


MAX_TEXT_BYTES = 20_000_000
"""Of a configuration file; real ones have about ten thousand."""


def check_text_size(where: str, n_bytes: int) -> None:
    """Refuse a configuration file that would fill the memory.

    Raises:
        SourceError: it is larger than MAX_TEXT_BYTES.
    """
    if n_bytes > MAX_TEXT_BYTES:
        raise SourceError(
            f"{where} has {n_bytes:,} bytes, more than the {MAX_TEXT_BYTES:,} of a configuration "
            "file; is this the right one?"
        )


class SourceFile(NamedTuple):
    """A file of a window."""

    path: str
    """Relative to the window's folder, with forward slashes."""
    size: int
    """Bytes."""
    version: str
    """Changes when the content does: modification time, or an object's checksum or generation."""


class Listed(NamedTuple):
    """A window of a listing, without its files: small enough to hold a hundred thousand."""

    group: str
    name: str
    digest: str = ""
    """Of its files; empty where they weren't looked at."""


@dataclass(frozen=True)
class WindowFiles:
    """A window's files: metadata.json, items.json and the layers that are asked for."""

    group: str
    name: str
    files: tuple[SourceFile, ...]
    """Sorted by path."""

    @property
    def key(self) -> str:
        """`group/name`."""
        return f"{self.group}/{self.name}"

    @property
    def n_bytes(self) -> int:
        """Total size in bytes."""
        return sum(file.size for file in self.files)

    @cached_property
    def by_path(self) -> dict[str, SourceFile]:
        """Files by relative path."""
        return {file.path: file for file in self.files}

    @cached_property
    def digest(self) -> str:
        """Changes when any of the files does."""
        files = [f"{path}\0{size}\0{version}\0" for path, size, version in self.files]
        return digest_of(os.fsencode("".join(files)))

    @property
    def listed(self) -> Listed:
        """What identifies it."""
        return Listed(self.group, self.name, self.digest)

    @cached_property
    def _completed(self) -> dict[str, list[int]]:
        """Completed item groups by layer, in order."""
        found: dict[str, list[int]] = {}
        for path in self.by_path:
            if path.endswith("/completed") and path.count("/") == 2 and path.startswith("layers/"):
                layer, _, number = path[7:-10].partition(".")
                if not number or number.isdigit():
                    found.setdefault(layer, []).append(int(number or 0))
        for numbers in found.values():
            numbers.sort()
        return found

    def completed(self, layer: str) -> list[int]:
        """Item groups of a layer whose `completed` marker is there, in order."""
        return self._completed.get(layer, [])


def digest_of(listed: bytes) -> str:
    """The digest of a window's files, from a listing of them as listing.py writes it."""
    return hashlib.blake2b(listed, digest_size=16).hexdigest()


class WindowReader(Protocol):
    """Reads the files of one window."""

    @property
    def url(self) -> str:
        """Where the dataset lies."""
        ...

    def read(self, group: str, name: str, file: SourceFile) -> bytes:
        """A file's bytes; SourceError if they aren't as they were listed."""
        ...

    def keep(self) -> None:
        """A later stage will read this window again: where fetching costs, keep its bytes."""
        ...

    def drop(self) -> None:
        """No later stage will read this window again: drop what was kept."""
        ...


class Source(Protocol):
    """An rslearn dataset with windows in files, read only."""

    @property
    def url(self) -> str:
        """Where it lies: what rslearn can open."""
        ...

    @property
    def origin(self) -> str:
        """What the user gave: an archive's own URL, where `url` is the unpacked folder."""
        ...

    def read_text(self, name: str) -> str | None:
        """A file beside the windows folder, or None if it isn't there."""
        ...

    def groups(self) -> list[str]:
        """Window groups, sorted."""
        ...

    def listing(self, groups: list[str], layers: frozenset[str]) -> Iterator[Listed]:
        """Every window of the groups; a remote source keeps their files for `window`."""
        ...

    def ensure_listed(self, groups: list[str], layers: frozenset[str]) -> None:
        """List the groups now if that isn't done, so that `window` costs nothing."""
        ...

    def windows(self, groups: list[str], layers: frozenset[str]) -> Iterator[WindowFiles]:
        """Every window of the groups with its files in `layers`, group by group."""
        ...

    def window(self, group: str, name: str, layers: frozenset[str]) -> WindowFiles:
        """One window: as it is now, or, of a remote source, as it was listed."""
        ...

    def read(self, group: str, name: str, file: SourceFile) -> bytes:
        """A file's bytes; SourceError if they aren't as they were listed."""
        ...

    def readers(
        self, windows: Iterable[WindowFiles], whole: bool = True
    ) -> Iterator[tuple[WindowFiles, WindowReader]]:
        """Each window with its reader; a remote source fetches those that come next meanwhile.

        Args:
            windows: in the order in which they will be read.
            whole: False if metadata.json alone is sure to be read.
        """
        ...

    def forget(self) -> None:
        """Drop everything that was kept: the ingest is done."""
        ...


def open_source(
    url: str,
    staging: Path | None = None,
    archives: Path | None = None,
    staging_limit: int | None = None,
) -> Source:
    """The source at a path or URL: a folder, a bucket's folder, or an archive of one.

    Args:
        url: a path, or a URL that fsspec knows; ending in .tar, .tar.gz or .tgz for an archive.
        staging: folder in which a remote source keeps what it has listed and fetched.
        staging_limit: bytes that it may keep; what comes after that is fetched a second time.
        archives: folder in which archives are unpacked; needed for them only.

    Raises:
        SourceNotFoundError: there is nothing, or no rslearn dataset.
        SourceError: it can't be reached.
    """
    url = str(weka_mount(url) or url.removeprefix("file://"))
    if url.lower().endswith(ARCHIVE_ENDINGS):
        from eval_ingest.studio.archive import open_archive

        return open_archive(url, archives)
    if "://" in url:
        # fsspec's file systems take a second to import; a folder needs none of them.
        from eval_ingest.studio.remote import RemoteSource

        source = RemoteSource(url.rstrip("/"), staging, staging_limit)
        source.check()
        return source
    # Absolute: what is kept of it is read in other folders, by other processes.
    return LocalSource(os.path.abspath(os.path.expanduser(url)))


def layer_of(path: str) -> str | None:
    """The layer that a window's file belongs to; None for metadata.json and items.json."""
    parts = path.split("/", 2)
    if parts[0] != "layers" or len(parts) < 3:
        return None
    return parts[1].partition(".")[0]


@dataclass(frozen=True)
class LocalSource:
    """A dataset in a folder, on a local disk or a mounted Weka."""

    url: str

    def __post_init__(self) -> None:
        root = Path(self.url)
        if not root.is_dir():
            what = "is a file, not a folder" if root.exists() else "does not exist"
            raise SourceNotFoundError(
                f"source {self.url} {what}; give the folder that holds config.json and windows/"
            )

    @property
    def origin(self) -> str:
        return self.url

    def read_text(self, name: str) -> str | None:
        path = Path(self.url, name)
        try:
            found = path.stat()  # links are followed: people keep model.yaml elsewhere
            if not stat.S_ISREG(found.st_mode):
                raise SourceError(f"{path} is not a file; remove it, or put a file there")
            check_text_size(str(path), found.st_size)
            return path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise SourceError(f"{path} can't be read: {error}") from error

    def groups(self) -> list[str]:
        return self._visible_folders("windows")

    def names(self, groups: list[str]) -> Iterator[Listed]:
        """Every window, without a look at its files."""
        for group in sorted(groups):
            for name in self._visible_folders("windows", group):
                yield Listed(group, name)

    def listing(self, groups: list[str], layers: frozenset[str]) -> Iterator[Listed]:
        for found, listed in self._list_all(groups, layers):
            yield Listed(found.group, found.name, digest_of(listed))

    def ensure_listed(self, groups: list[str], layers: frozenset[str]) -> None:
        pass  # a window is looked at when its turn comes

    def windows(self, groups: list[str], layers: frozenset[str]) -> Iterator[WindowFiles]:
        for found, listed in self._list_all(groups, layers):
            yield _window_files(found.group, found.name, listed)

    def window(self, group: str, name: str, layers: frozenset[str]) -> WindowFiles:
        return _window_files(group, name, self._list(group, name, layers))

    def _list(self, group: str, name: str, layers: frozenset[str]) -> bytes:
        root = f"{self.url}/windows/{group}/{name}"
        try:
            return list_window(root, layers, self._check_link)
        except OddFileError as error:
            raise SourceError(str(error)) from error
        except OSError as error:
            raise SourceError(f"{root} can't be listed: {error.strerror or error}") from error

    def _list_all(
        self, groups: list[str], layers: frozenset[str]
    ) -> Iterator[tuple[Listed, bytes]]:
        def look_at(some: list[Listed]) -> list[tuple[Listed, bytes]]:
            return [(window, self._list(window.group, window.name, layers)) for window in some]

        # More threads than cores: on a network file system most of them wait.
        with ThreadPoolExecutor(_LISTING_THREADS, thread_name_prefix="eval_ingest_list") as pool:
            some = batched(self.names(groups), _LISTED_TOGETHER)
            for found in map_ordered(pool, look_at, some, in_flight=2 * _LISTING_THREADS):
                yield from found

    def _visible_folders(self, *parts: str) -> list[str]:
        """Names of the folders in a folder; links to folders are followed within the dataset."""
        path = os.path.join(self.url, *parts)
        try:
            if os.path.islink(path):
                self._check_link(path)
            with os.scandir(path) as entries:
                found = [e for e in entries if not e.name.startswith(".") and e.is_dir()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise SourceError(f"{path} can't be listed: {error.strerror or error}") from error
        for entry in found:
            if entry.is_symlink():
                self._check_link(entry.path)
        return sorted(entry.name for entry in found)

    def _check_link(self, path: str) -> None:
        """Refuse a link that leads out of the dataset: a copy would publish what it points at.

        Raises:
            SourceError: it leads out.
        """
        root, real = os.path.realpath(self.url), os.path.realpath(path)
        if os.path.commonpath([root, real]) != root:
            raise SourceError(
                f"{path} is a link to {real}, which is outside of the dataset; "
                "put a copy there instead (for another model.yaml alone, "
                "--olmoearth-run-config-path names its folder)"
            )

    def read(self, group: str, name: str, file: SourceFile) -> bytes:
        path = f"{self.url}/windows/{group}/{name}/{file.path}"
        try:
            data, time = _read(path, file.size)
        except OSError as error:
            raise SourceError(f"{path} can't be read: {error.strerror or error}") from error
        if len(data) != file.size or str(time) != file.version:
            raise SourceError(
                f"{path} has {len(data)} bytes, {file.size} when it was listed, or was written "
                "since; the source changes while it is read: run again when it is still"
            )
        return data

    def readers(
        self, windows: Iterable[WindowFiles], whole: bool = True
    ) -> Iterator[tuple[WindowFiles, WindowReader]]:
        for files in windows:
            yield files, self

    def keep(self) -> None:
        pass  # its files stay where they are

    def drop(self) -> None:
        pass

    def forget(self) -> None:
        pass


def _window_files(group: str, name: str, listed: bytes) -> WindowFiles:
    return WindowFiles(group, name, tuple(SourceFile(*file) for file in parse(listed)))


def _read(path: str, size: int) -> tuple[bytes, int]:
    """A file's bytes and its time of change in ns, with as few system calls as it takes.

    One byte more shows that it grew.
    """
    opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = os.read(opened, size + 1)
        while 0 < len(data) < size and (more := os.read(opened, size + 1 - len(data))):
            data += more
        return data, os.fstat(opened).st_mtime_ns
    finally:
        os.close(opened)
