"""A dataset in an archive: unpacked once into a folder, which is then the source.

An archive comes from elsewhere, and a member's name is a path that its author chose. So nothing
is written but plain files and folders below the target, and not more than the limits allow.
"""

import base64
import contextlib
import hashlib
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING

import google_crc32c

from eval_ingest.errors import SourceError, SourceNotFoundError, StoreError
from eval_ingest.sources.base import CONFIG_FILES
from eval_ingest.sources.local import LocalSource

if TYPE_CHECKING:  # fsspec's file systems are slow to import
    from eval_ingest.objects.backend import Entry

_DEEPEST = 3
"""Levels of folders in an archive above config.json that are looked into."""


@dataclass(frozen=True)
class Limits:
    """What an archive may hold."""

    total_bytes: int = 4 * 2**40
    members: int = 50_000_000
    path_length: int = 1024


LIMITS = Limits()


@dataclass(frozen=True)
class ArchiveSource(LocalSource):
    """The unpacked folder of an archive."""

    archive: str = ""
    """The archive's path or URL."""

    @property
    def origin(self) -> str:
        return self.archive


def open_archive(url: str, folder: Path | None, limits: Limits = LIMITS) -> ArchiveSource:
    """Unpack an archive, unless that is done, and open what is in it.

    Args:
        url: path or URL of a .tar, .tar.gz or .tgz.
        folder: where archives are unpacked, each in a folder named after its fingerprint.
        limits: more than this stops it.

    Raises:
        SourceNotFoundError: there is no such archive.
        SourceError: it is damaged, unsafe, larger than the limits, or holds no dataset.
        StoreError: it can't be unpacked there.
    """
    if folder is None:
        raise SourceError(f"{url} is an archive, and only a dataset's source may be one; unpack it")
    found = _stat(url)
    of_url = hashlib.blake2b(url.encode(), digest_size=8).hexdigest()
    version = hashlib.blake2b(found.encode(), digest_size=8).hexdigest()
    target = folder / f"{of_url}-{version}"
    if not target.is_dir():
        _unpack(url, target, limits)
        for other in folder.glob(f"{of_url}-*"):  # earlier versions of the same archive
            if other != target:
                shutil.rmtree(other, ignore_errors=True)
    return ArchiveSource(str(_dataset_in(target, url)), url)


def _stat(url: str) -> str:
    """Size and version of the archive, as a text."""
    if "://" in url:
        from eval_ingest.objects.reading import Objects

        objects = Objects(url)
        objects.greet()
        entry = objects.info()
        if entry is None or entry.folder:
            raise SourceNotFoundError(f"source {url} does not exist; check the URL")
        return f"{entry.size} {entry.version}"
    try:
        stat = os.stat(url)
    except FileNotFoundError as error:
        raise SourceNotFoundError(f"source {url} does not exist; check the path") from error
    except OSError as error:
        raise SourceError(f"{url} can't be read: {error.strerror or error}") from error
    return f"{stat.st_size} {stat.st_mtime_ns}"


@contextlib.contextmanager
def _stream(url: str) -> Iterator[IO[bytes]]:
    """An archive's bytes, from front to end; at the end those of a URL are compared."""
    if "://" not in url:
        with open(url, "rb") as stream:
            yield stream
        return
    from eval_ingest.objects.reading import Objects

    objects = Objects(url)
    with objects.open() as stream:
        checked = _Checked(stream, objects.info())
        yield checked  # type: ignore[misc]  # of a file, tarfile wants read() alone
        checked.compare(url)


class _Checked:
    """A stream that adds up what passes through. A plain .tar has no checksum of its own."""

    def __init__(self, stream: IO[bytes], listed: "Entry | None") -> None:
        self._stream = stream
        self._listed = listed
        self._crc32c = google_crc32c.Checksum()
        self._size = 0

    def read(self, size: int = -1) -> bytes:
        """Some bytes."""
        data = self._stream.read(size)
        self._size += len(data)
        self._crc32c.update(data)
        return data

    def compare(self, url: str) -> None:
        """Raise SourceError if it wasn't the object that was listed, whole."""
        while self.read(1 << 20):
            pass  # what lies behind the end of the archive
        if self._listed is None:
            return
        kind, _, listed = self._listed.version.partition(":")
        found = base64.b64encode(self._crc32c.digest()).decode()
        if self._size != self._listed.size or (kind == "crc32c" and found != listed):
            raise SourceError(
                f"{url} arrived with {self._size} bytes, CRC32C {found}; listed are "
                f"{self._listed.size}, {self._listed.version}: it was damaged on the way, or has "
                "changed; run again"
            )


def _unpack(url: str, target: Path, limits: Limits) -> None:
    """Unpack into a folder beside the target, which appears when all is there."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise _cannot_write(target, error) from error
    try:
        with _stream(url) as stream:
            _extract(url, stream, aside, limits)
        with contextlib.suppress(FileExistsError):  # another process was faster
            os.rename(aside, target)
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise SourceError(
            f"{url} can't be unpacked: {type(error).__name__}: {error}; "
            "it is damaged or no tar archive: write it anew"
        ) from error
    except OSError as error:
        if error.filename is None and error.errno is None:  # zlib's, on a broken stream
            raise SourceError(
                f"{url} can't be unpacked: {error}; it is damaged: write it anew"
            ) from error
        raise _cannot_write(target, error) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _cannot_write(target: Path, error: OSError) -> StoreError:
    return StoreError(
        f"unpacking into {target} failed: {error.strerror or error}; "
        "free space there or make it writable, and run again"
    )


def _extract(url: str, stream: IO[bytes], target: Path, limits: Limits) -> None:
    """Write the members as they come; the archive is read once, from front to end."""
    members, total = 0, 0
    with tarfile.open(fileobj=stream, mode="r|*") as archive:
        for member in archive:
            members += 1
            total += member.size
            _check(url, member, limits)
            if members > limits.members or total > limits.total_bytes:
                raise SourceError(
                    f"{url} holds more than {limits.members:,} members or "
                    f"{limits.total_bytes:,} bytes; unpack it by hand and give the folder"
                )
            if member.size > shutil.disk_usage(target).free:
                raise StoreError(
                    f"{url} does not fit into {target.parent}: {member.size:,} bytes more are "
                    "needed; free space there, or unpack it elsewhere and give the folder"
                )
            archive.extract(member, target, filter="data")


def _check(url: str, member: tarfile.TarInfo, limits: Limits) -> None:
    """Refuse everything but plain files and folders below the target.

    tarfile's data filter comes after this; links, which it allows within the target, have been
    a way around it more than once, and a dataset needs none.
    """
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\\" in member.name or "\0" in member.name:
        problem = "leaves the folder that it is unpacked into; write the archive "
        problem += "with relative paths: tar -C FOLDER -czf ARCHIVE ."
    elif not (member.isreg() or member.isdir()):
        problem = "is a link or a device; write the archive with tar --dereference"
        problem += " --hard-dereference"
    elif len(member.name) > limits.path_length:
        problem = f"has a path longer than {limits.path_length}"
    else:
        return
    raise SourceError(f"{url} is not unpacked: its member {member.name[:200]!r} {problem}")


def _dataset_in(folder: Path, url: str) -> Path:
    """The folder with config.json: the unpacked one, or one below it."""
    level = [folder]
    for _ in range(_DEEPEST + 1):
        found = [path for path in level if any((path / name).is_file() for name in CONFIG_FILES)]
        if len(found) == 1:
            return found[0]
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
