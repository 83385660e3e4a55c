"""Packed samples of remote eval roots on the local disk, within a limit.

    {cache}/roots/{root}/{dataset}/samples/{shard}/<modality>.npy     whole and checked
                                                   .<modality>.npy.note     size and checksum
                                                   .<modality>.npy.*.part   on its way

Several processes share it. A file appears when it is whole and has the recorded checksum; while
one process fetches it, the others that want it wait. What was used longest ago makes room. A file
that is removed while it is mapped stays readable where it is mapped, so nobody is disturbed.
"""

import contextlib
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from eval_ingest.errors import IntegrityError, StoreError
from eval_ingest.store.atomic import file_crc32c, read_json, store_errors, write_json
from eval_ingest.store.room import LEFT_FREE

STALE_S = 3600.0
"""A part that wasn't written to for this long belongs to nobody any more."""


class _Held(NamedTuple):
    used: float
    n_bytes: int
    path: Path


@dataclass(frozen=True)
class PackCache:
    """The packed samples under a cache folder.

    Args:
        folder: the cache's folder of roots.
        limit: bytes that they may take together.
    """

    folder: Path
    limit: int

    def fetched(
        self, path: Path, n_bytes: int, crc32c: str | None, fetch: Callable[[Path], None]
    ) -> Path:
        """A file, fetched if it isn't there.

        Args:
            path: where it goes.
            n_bytes: its size.
            crc32c: its checksum as recorded, or None where it wasn't.
            fetch: writes the bytes into a file that is there, empty.

        Raises:
            IntegrityError: what was fetched has another checksum.
            StoreError: it doesn't fit, or can't be written.
        """
        from filelock import FileLock

        if self._has(path, n_bytes, crc32c):
            return path
        with store_errors("writing", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_name(f".{path.name}.lock")):
                if not self._has(path, n_bytes, crc32c):
                    self._fetch(path, n_bytes, crc32c, fetch)
        return path

    def _has(self, path: Path, n_bytes: int, crc32c: str | None) -> bool:
        """True if the file is there as recorded; it then counts as just used."""
        try:
            if path.stat().st_size != n_bytes:
                return False
            note = read_json(_note(path)) or {}
            if note.get("size") != n_bytes or crc32c not in (None, note.get("crc32c")):
                return False
            os.utime(_note(path))
        except (OSError, StoreError, AttributeError):
            return False
        return True

    def _fetch(
        self, path: Path, n_bytes: int, crc32c: str | None, fetch: Callable[[Path], None]
    ) -> None:
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            self.make_room(n_bytes, path, reserve=part)
            fetch(part)
            found = file_crc32c(part)
            if crc32c not in (None, found):
                raise IntegrityError(
                    f"{path} arrived with CRC32C {found}, recorded is {crc32c}; run again, and if "
                    "it stays so, see eval-ingest verify: what is stored may be damaged"
                )
            _note(path).unlink(missing_ok=True)
            os.replace(part, path)
            note_pack(path, n_bytes, found)
        finally:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)

    def make_room(
        self, n_bytes: int, path: Path, reserve: Path | None = None, written: bool = False
    ) -> None:
        """Remove what was used longest ago until so much fits in.

        Args:
            n_bytes: what will be written.
            path: to which file, for the message.
            written: it is on the disk already, and only has to be counted.
            reserve: a file that is made at that size, so that others see what is coming.

        Raises:
            StoreError: it doesn't fit.
        """
        from filelock import FileLock

        if n_bytes > self.limit:
            raise StoreError(
                f"{path} has {n_bytes / 2**30:.2f} GiB, and the cache may hold "
                f"{self.limit / 2**30:.2f} GiB; set EVAL_INGEST_CACHE_GIB to more"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / ".room.lock"):
            held = sorted(self._held())
            total = sum(file.n_bytes for file in held)
            free = shutil.disk_usage(self.folder).free - LEFT_FREE + n_bytes * written
            for file in held:
                if total + n_bytes <= self.limit and n_bytes <= free:
                    break
                if file.path.name.startswith("."):
                    continue  # on its way
                file.path.unlink(missing_ok=True)
                _note(file.path).unlink(missing_ok=True)
                total, free = total - file.n_bytes, free + file.n_bytes
            if n_bytes > free:
                raise StoreError(
                    f"{path} needs {n_bytes:,} bytes, and {max(free, 0):,} are free in "
                    f"{self.folder} ({LEFT_FREE / 2**30:.0f} GiB are left to others); "
                    "free space there, or set EVAL_INGEST_CACHE to a folder on another disk"
                )
            if reserve is not None:
                with open(reserve, "wb") as stream:
                    stream.truncate(n_bytes)

    def _held(self) -> list[_Held]:
        """Every file with when it was used last; what was left on its way is removed."""
        found = []
        for path in self.folder.glob("*/*/samples/[!.]*/*"):  # not those that are being written
            name = path.name
            try:
                if name.endswith(".npy") and not name.startswith("."):
                    note = _note(path)
                    used = note.stat().st_mtime if note.exists() else path.stat().st_mtime
                    found.append(_Held(used, path.stat().st_size, path))
                elif name.endswith(".part"):
                    stat = path.stat()
                    if time.time() - stat.st_mtime > STALE_S:
                        path.unlink()
                    else:
                        found.append(_Held(stat.st_mtime, stat.st_size, path))
            except FileNotFoundError:
                continue  # another process removed it
        return found


def note_pack(path: Path, n_bytes: int, crc32c: str) -> None:
    """Note a file as whole, with its size and checksum."""
    write_json(_note(path), {"size": n_bytes, "crc32c": crc32c})


def _note(path: Path) -> Path:
    return path.with_name(f".{path.name}.note")
