"""A dataset behind a URL: gs://, s3://, or any other file system that fsspec knows.

Every window is listed once and every object fetched once per ingest: see staging.py.
"""

import asyncio
import json
import os
import shutil
import tempfile
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from eval_ingest.errors import SourceError
from eval_ingest.objects.backend import Entry
from eval_ingest.objects.reading import Objects
from eval_ingest.sources.base import (
    ANYBODY,
    Copies,
    Had,
    Key,
    Listed,
    Source,
    SourceFile,
    WindowFiles,
    WindowReader,
    check_text_size,
    digest_of,
    is_read,
    plain,
)
from eval_ingest.sources.prefixes import prefixes
from eval_ingest.sources.staging import StagedWindows
from eval_ingest.sources.stream import fetch
from eval_ingest.sources.window_table import WindowTable
from eval_ingest.waiting import ALWAYS, remove_folder

WINDOWS_PER_LISTING = 64
"""Windows that one listing covers: a few pages of a thousand objects."""
LISTINGS_AHEAD = 16
LISTING_VERSION = 2
MOST_BESIDE = 1 << 34
"""Bytes of a file beside the windows folder that is brought here."""


@dataclass(frozen=True)
class RemoteSource(Source):
    """A dataset behind a URL."""

    url: str
    staging: Path | None = None
    """Folder that keeps what is listed and fetched from stage to stage; None: nothing is kept."""
    staging_limit: int | None = None
    """Bytes of windows that it may keep."""
    copies: Copies | None = None
    """What needn't be fetched."""

    waiting = ALWAYS

    def __getstate__(self) -> dict[str, Any]:
        # Each process opens its own connections.
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @cached_property
    def _objects(self) -> Objects:
        # Without a staging folder nothing is kept, so a look begins anew.
        return Objects(self.url, resumes=self.staging is not None)

    @cached_property
    def _top(self) -> dict[str, Entry]:
        """The files beside the windows folder: one listing instead of a request for each."""
        return {entry.name: entry for entry in self._objects.require()}

    @cached_property
    def _texts(self) -> dict[str, str | None]:
        """What was read of those files: all who ask see the same."""
        return {}

    @cached_property
    def _listing(self) -> WindowTable | None:
        if self.staging is None:
            return None
        return WindowTable(self.staging / "listing.sqlite", LISTING_VERSION)

    @cached_property
    def _staged(self) -> StagedWindows | None:
        return None if self.staging is None else StagedWindows(self.staging, self.staging_limit)

    def check(self) -> None:
        """Raise SourceError if it isn't there or may not be listed."""
        _ = self._top

    def read_text(self, name: str) -> str | None:
        if name not in self._texts:
            self._texts[name] = self._read_text(name)
        return self._texts[name]

    def _read_text(self, name: str) -> str | None:
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

    @cached_property
    def _passing(self) -> Path:
        """A folder that goes with this source, where nothing is kept."""
        path = tempfile.mkdtemp(prefix="eval_ingest_")
        weakref.finalize(self, shutil.rmtree, path, ignore_errors=True)
        return Path(path)

    def has(self, name: str) -> bool:
        return name in self._top

    def on_disk(self, *names: str) -> Path:
        here = {name: self._top[name] for name in names if name in self._top}
        versions = [f"{name} {entry.size} {entry.version}" for name, entry in here.items()]
        kept = self.staging or self._passing
        folder = kept / f"beside-{digest_of(os.fsencode(str(versions)))}"
        for name, entry in here.items():
            if entry.size > MOST_BESIDE:
                raise SourceError(
                    f"{self.url}/{name} has {entry.size:,} bytes, more than the {MOST_BESIDE:,} "
                    "that are fetched of a file beside the windows; copy the dataset to a disk "
                    "and give that folder"
                )
            if not (folder / name).is_file():
                fetch(f"{self.url}/{name}", folder / name, entry)
        return folder

    # -------------------------------------------------------------------------------- listing

    def groups(self) -> list[str]:
        return self._folders("windows")

    def _folders(self, folder: str) -> list[str]:
        return [name for name in self._objects.folders(folder) if not name.startswith(".")]

    def listing(self, groups: list[str], layers: frozenset[str]) -> Iterator[Listed]:
        table = self._listing
        if table is None:
            yield from (window.listed for window in self.windows(groups, layers))
            return
        with table.writing(anew=True):
            for window in self.windows(groups, layers):
                files = {os.fsencode(f.path): (f.size, f.version.encode()) for f in window.files}
                table.add(_folder(window.group, window.name), files)
                table.flush()
                yield window.listed
            table.finish(layers=json.dumps(sorted(layers)))

    def ensure_listed(
        self, groups: list[str], layers: frozenset[str], windows: Iterable[Key] | None = None
    ) -> None:
        table = self._listing
        if table is None:
            return
        if not table.is_whole or not layers <= set(json.loads(str(table.fact("layers")))):
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
                    if is_read(inner, layers):
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
        if self._listing is not None and self._listing.is_whole:
            found = self._listing.window(_folder(group, name))
            if found is not None:
                return WindowFiles(group, name, tuple(found))
        base = f"windows/{plain(group, self.url)}/{plain(name, self.url)}"
        files = [
            SourceFile(inner, entry.size, entry.version)
            for entry in self._objects.run(self._objects.find(base))
            if is_read(inner := entry.name.removeprefix(f"{base}/"), layers)
        ]
        return WindowFiles(group, name, tuple(sorted(files, key=lambda file: file.path)))

    # -------------------------------------------------------------------------------- reading

    def fetch(self, files: WindowFiles, wanted: Sequence[SourceFile]) -> dict[str, Had]:
        found = self._staged.load(files) if self._staged is not None else None
        if found is None:
            # Of a file without a version, nobody can say that it is still the same.
            known = [file for file in wanted if file.version]
            found = {} if self.copies is None else dict(self.copies(files.listed, known))
            missing = [file for file in wanted if file.path not in found]
            found |= self._objects.run(self._fetch(files, missing))
        return {path: Had(data, ANYBODY) for path, data in found.items()}

    def have(self, group: str, name: str, file: SourceFile) -> Had:
        return self.fetch(WindowFiles(group, name, (file,)), [file])[file.path]

    def keep(self, window: WindowReader) -> None:
        """Have a window's bytes ready for a later stage, unless some file is too large."""
        files, staged = window.files, self._staged
        if staged is None or staged.has(files) or not window.is_fit or not staged.takes(files):
            return
        contents = {file.path: window.read(files.group, files.name, file) for file in files.files}
        staged.save(files, contents)

    def drop(self, files: WindowFiles) -> None:
        if self._staged is not None:
            self._staged.drop(files)

    async def _fetch(self, files: WindowFiles, wanted: Sequence[SourceFile]) -> dict[str, bytes]:
        """Some of a window's files, all at once."""
        base = f"windows/{files.group}/{files.name}"

        async def one(file: SourceFile) -> bytes:
            listed = Entry(f"{base}/{file.path}", file.size, file.version)
            try:
                return await self._objects.read(listed.name, listed)
            except FileNotFoundError as error:
                raise SourceError(
                    f"{self.url}/{listed.name} has gone since it was listed; "
                    "run again when the source is still: only what changed is read anew"
                ) from error

        data = await asyncio.gather(*map(one, wanted))
        return {file.path: found for file, found in zip(wanted, data, strict=True)}

    def forget(self) -> None:
        if self.staging is not None:
            if self._listing is not None:
                self._listing.close()
            remove_folder(self.staging)


def _folder(group: str, name: str) -> bytes:
    return os.fsencode(f"{group}/{name}")
