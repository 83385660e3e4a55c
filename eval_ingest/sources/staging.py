"""What is kept of a remote source between listing, indexing and copying, in a folder beside.

    .staging/listing.sqlite          every window's files, as listed: see window_table.py
    .staging/windows/{2 hex}/{hash}  one window's bytes, from the time it is indexed until copied

So a window is listed once and fetched once per ingest, though two stages need it, perhaps in two
processes; and memory holds none of it. Nothing here is needed: what is missing or damaged is
listed or fetched again.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import google_crc32c

from eval_ingest.errors import StoreError
from eval_ingest.sources.base import WindowFiles

_TALLY = "kept"
_TALLY_UNIT = 1 << 14
"""Each byte of the tally stands for so many that are kept: several processes may append to it."""


class StagedWindows:
    """The bytes of windows that are fetched and not yet copied: one file for each.

    Args:
        folder: the staging folder.
        limit: bytes that an ingest may keep; what comes after that is fetched once more.
    """

    def __init__(self, folder: Path, limit: int | None = None) -> None:
        self._folder = folder / "windows"
        self._tally = folder / _TALLY
        self._limit = limit

    def takes(self, files: WindowFiles) -> bool:
        """True if a window may be kept."""
        if self._limit is None:
            return True
        try:
            kept = self._tally.stat().st_size * _TALLY_UNIT
        except FileNotFoundError:
            kept = 0
        return kept + files.n_bytes <= self._limit

    def _path(self, files: WindowFiles) -> Path:
        name = hashlib.blake2b(files.key.encode(), digest_size=16).hexdigest()
        return self._folder / name[:2] / name

    def save(self, files: WindowFiles, contents: Mapping[str, bytes]) -> None:
        """Keep a window's bytes.

        Raises:
            StoreError: they can't be written.
        """
        rows = [(path, len(data), google_crc32c.value(data)) for path, data in contents.items()]
        head = json.dumps({"digest": files.digest, "files": rows}).encode() + b"\n"
        path = self._path(files)
        aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(aside, "wb") as stream:
                stream.write(head)
                stream.writelines(contents.values())
            os.replace(aside, path)
            if self._limit is not None:
                with open(self._tally, "ab") as stream:
                    stream.write(bytes(files.n_bytes // _TALLY_UNIT + 1))
        except OSError as error:
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)
            raise _failed(path, error) from error

    def has(self, files: WindowFiles) -> bool:
        """A cheap look."""
        return self._path(files).is_file()

    def load(self, files: WindowFiles) -> dict[str, bytes] | None:
        """A window's bytes by path, if they are there, whole, and of this version of it."""
        try:
            with open(self._path(files), "rb") as stream:
                head = json.loads(stream.readline())
                if head["digest"] != files.digest:
                    return None
                contents = {path: stream.read(size) for path, size, _ in head["files"]}
        except (OSError, ValueError, KeyError):
            return None
        whole = all(
            len(contents[path]) == size and google_crc32c.value(contents[path]) == crc
            for path, size, crc in head["files"]
        )
        return contents if whole and contents.keys() == files.by_path.keys() else None

    def drop(self, files: WindowFiles) -> None:
        """Remove a window's bytes: they are where they belong."""
        with contextlib.suppress(OSError):
            self._path(files).unlink(missing_ok=True)


def _failed(path: Path, error: Exception) -> StoreError:
    text = getattr(error, "strerror", None) or str(error)
    return StoreError(
        f"keeping fetched windows in {path} failed: {text}; free space there or make it writable, "
        "and run again: it goes on where it stopped"
    )
