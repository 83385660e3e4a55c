"""Where an rslearn dataset lies: list its windows' files, read their bytes.

A source is listed once per ingest. Listing gives each file's size and version, so that nothing is
asked about one by one, and a changed file is noticed without being read.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from eval_ingest.errors import SourceError, SourceNotFoundError

WINDOW_FILES = ("metadata.json", "items.json")
CONFIG_FILES = ("config.json", "dataset.json")


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of a window."""

    path: str
    """Relative to the window's folder, with forward slashes."""
    size: int
    """Bytes."""
    version: str
    """Changes when the content does: modification time, or an object's checksum or generation."""


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
        text = "\n".join(f"{file.path}\t{file.size}\t{file.version}" for file in self.files)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def completed(self, layer: str) -> list[int]:
        """Item groups of a layer whose `completed` marker is there, in order."""
        found = []
        for file in self.files:
            parts = file.path.split("/")
            if len(parts) == 3 and parts[0] == "layers" and parts[2] == "completed":
                base, _, number = parts[1].partition(".")
                if base == layer and (not number or number.isdigit()):
                    found.append(int(number or 0))
        return sorted(found)


class Source(Protocol):
    """An rslearn dataset with windows in files, read only."""

    @property
    def url(self) -> str:
        """Where it lies."""
        ...

    def read_text(self, name: str) -> str | None:
        """A file beside the windows folder, or None if it isn't there."""
        ...

    def groups(self) -> list[str]:
        """Window groups, sorted."""
        ...

    def windows(self, groups: list[str], layers: frozenset[str]) -> Iterator[WindowFiles]:
        """Every window of the groups with its files in `layers`, sorted by (group, name)."""
        ...

    def window(self, group: str, name: str, layers: frozenset[str]) -> WindowFiles:
        """One window as it is now."""
        ...

    def read(self, group: str, name: str, file: SourceFile) -> bytes:
        """A file's bytes; SourceError if they aren't as many as were listed."""
        ...


def open_source(url: str) -> Source:
    """The source at a path or URL.

    Raises:
        SourceNotFoundError: there is nothing, or no rslearn dataset.
        SourceError: it can't be reached.
    """
    source: Source = FsspecSource(url) if "://" in url else LocalSource(url)
    return source


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

    def read_text(self, name: str) -> str | None:
        path = Path(self.url, name)
        try:
            return path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise SourceError(f"{path} can't be read: {error}") from error

    def groups(self) -> list[str]:
        return _visible_folders(os.path.join(self.url, "windows"))

    def names(self, groups: list[str]) -> Iterator[tuple[str, str]]:
        """(group, name) of every window, without a look at its files."""
        for group in sorted(groups):
            for name in _visible_folders(os.path.join(self.url, "windows", group)):
                yield group, name

    def windows(self, groups: list[str], layers: frozenset[str]) -> Iterator[WindowFiles]:
        for group, name in self.names(groups):
            yield self.window(group, name, layers)

    def window(self, group: str, name: str, layers: frozenset[str]) -> WindowFiles:
        root = os.path.join(self.url, "windows", group, name)
        files: list[SourceFile] = []
        for file_name in WINDOW_FILES:
            try:
                stat = os.stat(os.path.join(root, file_name))
            except OSError:
                continue
            files.append(SourceFile(file_name, stat.st_size, str(stat.st_mtime_ns)))
        try:
            with os.scandir(os.path.join(root, "layers")) as entries:
                wanted = [e for e in entries if e.name.partition(".")[0] in layers]
        except (FileNotFoundError, NotADirectoryError):
            wanted = []
        for entry in wanted:
            _collect(entry, f"layers/{entry.name}", files)
        files.sort(key=lambda file: file.path)
        return WindowFiles(group, name, tuple(files))

    def read(self, group: str, name: str, file: SourceFile) -> bytes:
        path = os.path.join(self.url, "windows", group, name, file.path)
        try:
            with open(path, "rb", buffering=0) as stream:
                data = stream.read()
        except OSError as error:
            raise SourceError(f"{path} can't be read: {error.strerror or error}") from error
        if len(data) != file.size:
            raise SourceError(
                f"{path} has {len(data)} bytes, {file.size} when it was listed; "
                "the source changes while it is read: run again when it is still"
            )
        return data


def _visible_folders(path: str) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return sorted(e.name for e in entries if not e.name.startswith(".") and e.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise SourceError(f"{path} can't be listed: {error.strerror or error}") from error


def _collect(entry: os.DirEntry[str], path: str, files: list[SourceFile]) -> None:
    """Add the files under a directory entry, recursively."""
    if not entry.is_dir():
        stat = entry.stat()
        files.append(SourceFile(path, stat.st_size, str(stat.st_mtime_ns)))
        return
    with os.scandir(entry.path) as entries:
        for child in entries:
            _collect(child, f"{path}/{child.name}", files)


@dataclass(frozen=True)
class FsspecSource:
    """A dataset behind a URL: gs://, s3://, or any other file system that fsspec knows."""

    url: str

    @cached_property
    def _fs(self) -> tuple[Any, str]:
        import fsspec

        try:
            fs, root = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise SourceError(f"source {self.url} can't be opened: {error}") from error
        return fs, root.rstrip("/")

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url}  # each process opens its own connection

    def _call(self, what: str, method: str, *args: Any, **kwargs: Any) -> Any:
        fs, _ = self._fs
        try:
            return getattr(fs, method)(*args, **kwargs)
        except FileNotFoundError:
            raise
        except Exception as error:
            raise SourceError(
                f"source {self.url}: {what} failed: {type(error).__name__}: {error}; "
                "check the URL and your credentials (gcloud auth application-default login)"
            ) from error

    def read_text(self, name: str) -> str | None:
        try:
            data = self._call(f"reading {name}", "cat_file", f"{self._fs[1]}/{name}")
        except FileNotFoundError:
            return None
        return str(data.decode("utf-8", errors="replace"))

    def groups(self) -> list[str]:
        return self._folders(f"{self._fs[1]}/windows")

    def _folders(self, path: str) -> list[str]:
        try:
            entries = self._call("listing", "ls", path, detail=True)
        except FileNotFoundError:
            return []
        names = (e["name"].rstrip("/").rsplit("/", 1)[-1] for e in entries if _is_folder(e))
        return sorted(name for name in names if name and not name.startswith("."))

    def windows(self, groups: list[str], layers: frozenset[str]) -> Iterator[WindowFiles]:
        for group in sorted(groups):
            base = f"{self._fs[1]}/windows/{group}"
            found = self._find(base)
            by_window: dict[str, list[SourceFile]] = {}
            for path, info in found.items():
                name, _, inner = path.removeprefix(base).lstrip("/").partition("/")
                if inner and not name.startswith(".") and _wanted(inner, layers):
                    by_window.setdefault(name, []).append(_source_file(inner, info))
            for name in sorted(by_window):
                files = sorted(by_window.pop(name), key=lambda file: file.path)
                yield WindowFiles(group, name, tuple(files))

    def window(self, group: str, name: str, layers: frozenset[str]) -> WindowFiles:
        base = f"{self._fs[1]}/windows/{group}/{name}"
        files = [
            _source_file(inner, info)
            for path, info in self._find(base).items()
            if _wanted(inner := path.removeprefix(base).lstrip("/"), layers)
        ]
        return WindowFiles(group, name, tuple(sorted(files, key=lambda file: file.path)))

    def _find(self, base: str) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = self._call("listing", "find", base, detail=True)
        return found

    def read(self, group: str, name: str, file: SourceFile) -> bytes:
        path = f"{self._fs[1]}/windows/{group}/{name}/{file.path}"
        try:
            data: bytes = self._call(f"reading {file.path}", "cat_file", path)
        except FileNotFoundError as error:
            raise SourceError(f"{path} has gone since it was listed; run again") from error
        if len(data) != file.size:
            raise SourceError(f"{path}: {len(data)} of {file.size} bytes arrived; run again")
        return data


def _is_folder(entry: dict[str, Any]) -> bool:
    return bool(entry.get("type") == "directory")


def _wanted(path: str, layers: frozenset[str]) -> bool:
    return path in WINDOW_FILES or layer_of(path) in layers


def _source_file(path: str, info: dict[str, Any]) -> SourceFile:
    for key in ("crc32c", "generation", "ETag", "etag", "md5Hash", "mtime", "created"):
        if info.get(key):
            return SourceFile(path, int(info.get("size") or 0), str(info[key]))
    return SourceFile(path, int(info.get("size") or 0), "")
