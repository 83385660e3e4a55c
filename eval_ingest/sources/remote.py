"""A dataset behind a URL: gs://, s3://, or any other file system that fsspec knows.

Every window is listed once and every object fetched once per ingest: see staging.py.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from eval_ingest.errors import SourceError
from eval_ingest.objects.backend import Entry
from eval_ingest.objects.reading import Objects
from eval_ingest.sources.base import (
    ANYBODY,
    Fetchable,
    Listed,
    SourceFile,
    Window,
    WindowFiles,
    WindowReader,
    check_text_size,
    every_file,
    layer_of,
)
from eval_ingest.sources.listing import WINDOW_FILES
from eval_ingest.sources.prefixes import prefixes
from eval_ingest.sources.staging import Listing, StagedWindows, remove_staging

WINDOWS_PER_LISTING = 64
"""Windows that one listing covers: a few pages of a thousand objects."""
LISTINGS_AHEAD = 16
BYTES_AHEAD = 32 * 2**20
"""A worker fetches this much ahead of the window that it decodes."""
WINDOWS_AHEAD = 32


@dataclass(frozen=True)
class RemoteSource:
    """A dataset behind a URL."""

    url: str
    staging: Path | None = None
    """Folder that keeps what is listed and fetched from stage to stage; None: nothing is kept."""
    staging_limit: int | None = None
    """Bytes of windows that it may keep."""

    moves = False

    def __getstate__(self) -> dict[str, Any]:
        # Each process opens its own connections.
        return {"url": self.url, "staging": self.staging, "staging_limit": self.staging_limit}

    @property
    def origin(self) -> str:
        return self.url

    @property
    def notes(self) -> tuple[str, ...]:
        return ()

    @cached_property
    def _objects(self) -> Objects:
        # Without a staging folder nothing is kept, so a look begins anew.
        return Objects(self.url, resumes=self.staging is not None)

    @cached_property
    def _top(self) -> dict[str, Entry]:
        """The files beside the windows folder: one listing instead of a request for each."""
        return {entry.name: entry for entry in self._objects.require()}

    @cached_property
    def _listing(self) -> Listing | None:
        return None if self.staging is None else Listing(self.staging)

    @cached_property
    def _staged(self) -> StagedWindows | None:
        return None if self.staging is None else StagedWindows(self.staging, self.staging_limit)

    def check(self) -> None:
        """Raise SourceError if it isn't there or may not be listed."""
        _ = self._top

    def read_text(self, name: str) -> str | None:
        if name not in self._top:
            return None
        check_text_size(f"{self.url}/{name}", self._top[name].size)
        try:
            data = self._objects.run(self._objects.read(name, self._top[name]))
            return data.decode()
        except FileNotFoundError:
            return None
        except UnicodeDecodeError as error:
            raise SourceError(f"{self.url}/{name} is not UTF-8 text: {error}") from error

    # -------------------------------------------------------------------------------- listing

    def groups(self) -> list[str]:
        return self._folders("windows")

    def _folders(self, folder: str) -> list[str]:
        entries = self._objects.run(self._objects.list_folder(folder))
        names = (entry.name.rsplit("/", 1)[-1] for entry in entries if entry.folder)
        return sorted(name for name in names if not name.startswith("."))

    def listing(self, groups: list[str], layers: frozenset[str]) -> Iterator[Listed]:
        windows = self.windows(groups, layers)
        if self._listing is None:
            return (window.listed for window in windows)
        return self._listing.write(windows, layers)

    def ensure_listed(self, groups: list[str], layers: frozenset[str]) -> None:
        if self._listing is not None and not self._listing.covers(layers):
            for _ in self.listing(groups, layers):
                pass

    def windows(self, groups: list[str], layers: frozenset[str]) -> Iterator[WindowFiles]:
        for group in sorted(groups):
            base = f"windows/{group}"
            names = self._folders(base)
            most = WINDOWS_PER_LISTING if self._objects.finds_prefixes else 1
            for found in self._find_all(base, prefixes(names, most)):
                by_window: dict[str, list[SourceFile]] = {}
                for entry in found:
                    name, _, inner = entry.name.removeprefix(f"{base}/").partition("/")
                    if not inner or name.startswith("."):
                        continue
                    files = by_window.setdefault(name, [])
                    if inner in WINDOW_FILES or layer_of(inner) in layers:
                        files.append(SourceFile(inner, entry.size, entry.version))
                for name in sorted(by_window):
                    files = sorted(by_window[name], key=lambda file: file.path)
                    yield WindowFiles(group, name, tuple(files))

    def _find_all(self, base: str, starts: list[str]) -> Iterator[list[Entry]]:
        """The objects below each prefix, in turn; the next ones are being listed meanwhile."""
        waiting: deque[Future[list[Entry]]] = deque()
        try:
            for start in starts:
                waiting.append(self._objects.submit(self._objects.find(base, start)))
                if len(waiting) >= LISTINGS_AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def window(self, group: str, name: str, layers: frozenset[str]) -> WindowFiles:
        found = None if self._listing is None else self._listing.window(group, name)
        if found is not None:
            return found
        base = f"windows/{group}/{name}"
        files = [
            SourceFile(inner, entry.size, entry.version)
            for entry in self._objects.run(self._objects.find(base))
            if (inner := entry.name.removeprefix(f"{base}/")) in WINDOW_FILES
            or layer_of(inner) in layers
        ]
        return WindowFiles(group, name, tuple(sorted(files, key=lambda file: file.path)))

    # -------------------------------------------------------------------------------- reading

    def read(self, group: str, name: str, file: SourceFile) -> bytes:
        files = WindowFiles(group, name, (file,))
        return self._objects.run(self._fetch(files, (file.path,)))[file.path]

    def readers(
        self,
        windows: Iterable[Window],
        whole: bool = True,
        fetchable: Fetchable = every_file,
    ) -> Iterator[tuple[WindowFiles, WindowReader]]:
        waiting: deque[_FetchedWindow] = deque()
        ahead = 0
        try:
            for window in windows:
                files = window if isinstance(window, WindowFiles) else window()
                reader = _FetchedWindow(self, files, whole, fetchable)
                waiting.append(reader)
                ahead += files.n_bytes
                while waiting and (ahead > BYTES_AHEAD or len(waiting) >= WINDOWS_AHEAD):
                    first = waiting.popleft()
                    ahead -= first.files.n_bytes
                    yield first.files, first
            while waiting:
                first = waiting.popleft()
                yield first.files, first
        finally:
            for reader in waiting:
                reader.cancel()

    async def _fetch(self, files: WindowFiles, paths: tuple[str, ...]) -> dict[str, bytes]:
        """Some of a window's files, all at once."""
        import asyncio

        base = f"windows/{files.group}/{files.name}"

        async def one(path: str) -> bytes:
            file = files.by_path[path]
            listed = Entry(f"{base}/{path}", file.size, file.version)
            try:
                return await self._objects.read(listed.name, listed)
            except FileNotFoundError as error:
                raise SourceError(
                    f"{self.url}/{listed.name} has gone since it was listed; "
                    "run again when the source is still: only what changed is read anew"
                ) from error

        return dict(zip(paths, await asyncio.gather(*map(one, paths)), strict=True))

    def forget(self) -> None:
        if self.staging is not None:
            if self._listing is not None:
                self._listing.close()
            remove_staging(self.staging)


class _FetchedWindow:
    """One window's bytes, on their way or here; taken from the staging folder if they are there."""

    def __init__(
        self, source: RemoteSource, files: WindowFiles, whole: bool, fetchable: Fetchable
    ) -> None:
        self.files = files
        self.url = source.url
        self._source = source
        self._contents: dict[str, bytes] = {}
        self._fetchable = fetchable(files)
        self._is_staged = source._staged is not None and source._staged.has(files)
        self._future: Future[dict[str, bytes]] | None = None
        if not self._is_staged:
            self._begin(self._left if whole else self._left & {"metadata.json"})

    @property
    def _left(self) -> frozenset[str]:
        """What may be fetched and isn't here."""
        return self._fetchable - self._contents.keys()

    def _begin(self, paths: frozenset[str]) -> None:
        fetch = self._source._fetch(self.files, tuple(sorted(paths)))
        self._future = self._source._objects.submit(fetch)

    def read(self, group: str, name: str, file: SourceFile) -> bytes:
        if file.path not in self._contents:
            self._arrive()
        if file.path not in self._contents:
            self._begin(self._left | {file.path})
            self._arrive()
        return self._contents[file.path]

    def _arrive(self) -> None:
        if self._future is not None:
            future, self._future = self._future, None
            self._contents |= future.result()
        elif self._is_staged and not self._contents:
            assert self._source._staged is not None
            self._contents = self._source._staged.load(self.files) or {}
            self._is_staged = bool(self._contents)

    def permissions(self, group: str, name: str, file: SourceFile) -> int:
        return ANYBODY

    def ours(self, group: str, name: str, file: SourceFile) -> None:
        return None

    def keep(self) -> None:
        """Have the bytes ready for a later stage."""
        if self._source._staged is None or self._is_staged:
            return
        if len(self._fetchable) < len(self.files.files):
            return  # some of it is larger than it may be
        if not self._source._staged.takes(self.files):
            return
        if len(self._contents) < len(self.files.files):
            for file in self.files.files:
                self.read(self.files.group, self.files.name, file)
        self._source._staged.save(self.files, self._contents)
        self._is_staged = True

    def drop(self) -> None:
        """No later stage needs the bytes."""
        if self._source._staged is not None:
            self._source._staged.drop(self.files)

    def cancel(self) -> None:
        """Stop fetching."""
        if self._future is not None:
            self._future.cancel()
