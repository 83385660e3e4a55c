"""An archive's or an object's bytes, from front to end: which they are, and that they came whole.

Belongs here: what is read once, in pieces, because it may be larger than the memory. Does not:
windows' files (local.py, remote.py), and what becomes of the bytes (unpacking.py).
"""

import base64
import contextlib
import hashlib
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

import google_crc32c

from eval_ingest.errors import SourceError, SourceNotFoundError, StoreError, lacking
from eval_ingest.sources.base import cannot

if TYPE_CHECKING:  # fsspec's file systems are slow to import
    from eval_ingest.objects.backend import Entry

_CHUNK = 1 << 20
_LEFT_FREE = 1 << 28


@dataclass(frozen=True)
class Version:
    """Which bytes it holds, as far as can be told without reading them."""

    size: int
    text: str
    listed: "Entry | None" = None

    @classmethod
    def of(cls, url: str) -> "Version":
        """Look at it; of a file, also at its inode and time of change, which tools can't set.

        Raises:
            SourceNotFoundError: there is none.
            SourceError: it can't be looked at.
        """
        if "://" in url:
            from eval_ingest.objects.reading import Objects

            objects = Objects(url)
            objects.greet()
            entry = objects.run(objects.stat())
            if entry is None:
                raise SourceNotFoundError(f"source {url} does not exist; check the URL")
            return cls(entry.size, entry.version, entry)
        try:
            stat = os.stat(url)
        except FileNotFoundError as error:
            raise SourceNotFoundError(f"source {url} does not exist; check the path") from error
        except OSError as error:
            raise cannot("read", url, error) from error
        return cls(stat.st_size, f"{stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}")

    def name(self, url: str) -> str:
        """The folder's: of the archive and this version of it."""
        texts = (url, f"{self.size} {self.text}")
        return "-".join(hashlib.blake2b(t.encode(), digest_size=8).hexdigest() for t in texts)


@contextlib.contextmanager
def stream_of(url: str, version: Version) -> Iterator["Checked"]:
    """All bytes, from front to end; at the end they are to be compared with what was seen."""
    with _opened(url) as stream:
        yield Checked(url, stream, version)


def _opened(url: str) -> IO[bytes]:
    try:
        if "://" not in url:
            return open(url, "rb", buffering=0)
        from eval_ingest.objects.reading import Objects

        stream: IO[bytes] = Objects(url).open()
        return stream
    except FileNotFoundError as error:
        raise SourceNotFoundError(f"{url} has gone since it was looked at; run again") from error
    except OSError as error:
        raise lacking(error) or CutOffError(str(cannot("read", url, error))) from error
    except SourceError as error:
        raise CutOffError(str(error)) from error


class CutOffError(SourceError):
    """It can't be read, or not to its end; what came is right."""


class Checked:
    """A stream that adds up what passes through. A plain .tar has no checksum of its own."""

    def __init__(self, url: str, stream: IO[bytes], version: Version) -> None:
        self._url = url
        self._stream = stream
        self._version = version
        self._crc32c = google_crc32c.Checksum()
        self.size = 0

    def read(self, size: int) -> bytes:
        """Some bytes; at the end, none."""
        try:
            data = self._stream.read(size)
        except Exception as error:  # of a network's libraries, it may be any
            said = getattr(error, "strerror", None) or error
            raise lacking(error) or CutOffError(
                f"{self._url} can't be read on from byte {self.size:,}: {said}; "
                "run again: it goes on where it stopped"
            ) from error
        self.size += len(data)
        if self._version.listed is not None:
            self._crc32c.update(data)
        return data

    def _now(self) -> "Entry":
        """The object as it is now.

        Raises:
            SourceNotFoundError: it has gone.
            CutOffError: it can't be looked at.
        """
        try:
            now = Version.of(self._url).listed
        except SourceNotFoundError:
            raise
        except SourceError as error:
            raise CutOffError(str(error)) from error
        assert now is not None
        return now

    def compare(self) -> None:
        """Raise SourceError if it wasn't what was seen, whole."""
        url, listed = self._url, self._version.listed
        if listed is None:
            if self._version != Version.of(url):
                raise SourceError(f"{url} has changed while it was read; run again")
            return
        kind, _, wanted = listed.version.partition(":")
        if kind != "crc32c" and self._now().is_as(listed) is False:
            raise SourceError(f"{url} has changed while it was read; run again")
        found = base64.b64encode(self._crc32c.digest()).decode()
        if self.size != listed.size or (kind == "crc32c" and found != wanted):
            raise SourceError(
                f"{url} arrived with {self.size} bytes, CRC32C {found}; listed are "
                f"{listed.size}, {listed.version}: it was damaged on the way, or has "
                "changed; run again"
            )


def fetch(url: str, path: Path, listed: "Entry") -> None:
    """Bring an object to a file on this disk, of which there is nothing unless all is there.

    Raises:
        SourceError: it can't be read, or doesn't arrive as it was listed.
        StoreError: this disk has no room for it.
    """
    version = Version(listed.size, listed.version, listed)
    aside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(path.parent).free
        if version.size + _LEFT_FREE > free:
            raise StoreError(
                f"{url} has {version.size:,} bytes, and {free:,} are free in {path.parent}; "
                "free space there"
            )
        with stream_of(url, version) as stream, open(aside, "wb") as written:
            while data := stream.read(_CHUNK):
                written.write(data)
            stream.compare()
        os.replace(aside, path)
    except OSError as error:
        raise StoreError(f"fetching {url} into {path.parent} failed: {error}") from error
    finally:
        aside.unlink(missing_ok=True)
