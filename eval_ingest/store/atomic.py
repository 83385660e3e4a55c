"""Publish whole or not at all: write aside, flush, rename."""

import contextlib
import errno
import functools
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eval_ingest.errors import IntegrityError, StoreError, lacking

_EVALS = "evals go to OLMOEARTH_EVAL_DATASETS"
_OWNED = f"check who owns it, or give a folder of yours; {_EVALS}"


def store_error(path: Path | str, doing: str, error: OSError) -> StoreError:
    """An OSError as a message that says what to do.

    Raises:
        MachineError: it is for lack of file handles or memory, and says nothing of the path.
    """
    lack = lacking(error)
    if lack is not None:
        raise lack from error
    cure = {
        errno.EACCES: _OWNED,
        errno.EPERM: _OWNED,
        errno.EROFS: f"it is mounted read-only; give a folder that can be written; {_EVALS}",
        errno.ENOSPC: "the disk is full; free space and run again: it goes on where it stopped",
        errno.EDQUOT: "your quota is used up; free some space and run again",
        errno.EEXIST: "a file is in the way; give another folder",
        errno.ENOTDIR: "a part of this path is a file; give another folder",
    }.get(error.errno or 0, "run again once that is resolved: it goes on where it stopped")
    return StoreError(f"{doing} {path} failed: {error.strerror or error}; {cure}")


@contextlib.contextmanager
def store_errors(doing: str, path: Path | str) -> Iterator[None]:
    """An OSError within the block becomes a StoreError: see `store_error`."""
    try:
        yield
    except OSError as error:
        raise store_error(path, doing, error) from error


@contextlib.contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends without error.

    Raises:
        StoreError: it can't be written.
    """
    with _opened_aside(path) as stream:
        yield Path(stream.name)


@contextlib.contextmanager
def _opened_aside(path: Path) -> Iterator[Any]:
    """The same as a file of tempfile's, which is open: on a mount each open takes its time."""
    with store_errors("writing", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = tempfile.NamedTemporaryFile(  # noqa: SIM115  its `with` would remove it
            prefix=f".{path.name}.", suffix=".tmp", dir=path.parent, delete=False
        )
        temporary = Path(aside.name)
        try:
            with aside.file:
                os.fchmod(aside.fileno(), 0o666 & ~umask())
                yield aside
                aside.flush()
                os.fsync(aside.fileno())
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()  # where it hasn't taken its place


@functools.cache
def umask() -> int:
    """The process's file mode mask, which temporary files and folders would otherwise ignore."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def write_bytes(path: Path, data: bytes, permissions: int = 0o666) -> None:
    """Replace a file's content at once; readers see the old or the new, never a mix.

    `permissions` are mode bits: those that the umask allows of them, and its owner's, are given.
    """
    with _opened_aside(path) as stream:
        stream.write(data)
        if permissions != 0o666:
            os.fchmod(stream.fileno(), (permissions | 0o600) & ~umask())


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file at once."""
    write_bytes(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """A JSON file's content. ValueError for NaN, which JSON doesn't know: other readers stumble."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def read_bytes(path: Path) -> bytes | None:
    """A file's content, or None if it isn't there.

    Raises:
        StoreError: it can't be read.
    """
    with store_errors("reading", path), contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return path.read_bytes()
    return None


def read_json(path: Path) -> Any | None:
    """The content of a JSON file, or None if it isn't there.

    Raises:
        StoreError: it can't be read or isn't JSON.
    """
    data = read_bytes(path)
    try:
        return None if data is None else json.loads(data)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path} is not JSON ({error}); remove it and ingest again") from error


def file_crc32c(path: Path) -> str:
    """CRC32C of a file's bytes, as Google Cloud Storage writes it."""
    import base64

    import google_crc32c  # a machine that only loads from local roots may lack it

    checksum = google_crc32c.Checksum()
    with open(path, "rb", buffering=0) as stream:
        while chunk := stream.read(16 << 20):
            checksum.update(chunk)
    return base64.b64encode(checksum.digest()).decode()


def remove_path(path: Path) -> None:
    """Remove a file or a folder, if it is there; of a link to one, the link.

    Raises:
        StoreError: something of it can't be removed; the rest is.
    """
    from eval_ingest.waiting import remove_folder  # a machine that only loads removes none

    with store_errors("removing", path):
        if not path.is_dir() or path.is_symlink():
            path.unlink(missing_ok=True)
        elif (error := remove_folder(path)) is not None:
            raise error


def check_file(path: Path, crc32c: str, cure: str) -> None:
    """Compare a file's checksum with what is recorded.

    Raises:
        IntegrityError: it differs, or can't be read; the message ends with the cure.
        MachineError: for lack of file handles or memory.
    """
    try:
        found = file_crc32c(path)
    except OSError as error:
        raise lacking(error) or IntegrityError(f"{path}: {error.strerror}", cure) from error
    if found != crc32c:
        raise IntegrityError(f"{path} has CRC32C {found}, recorded is {crc32c}", cure)
