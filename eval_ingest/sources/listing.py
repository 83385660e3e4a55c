"""The files of a window on a local disk, each with its size and time.

Seventy system calls a window: where _listing.c was compiled it makes them, in a third of the time
and without the GIL, so that threads can wait for a network file system side by side.
"""

import os
import stat
from collections.abc import Callable, Iterator

try:
    from eval_ingest.sources import _listing
except ImportError:  # an installation without a C compiler
    _listing = None  # type: ignore[assignment]

WINDOW_FILES = ("metadata.json", "items.json")

_DEEPEST = 8
"""Folders below `layers/`; more than that is a link that leads round in circles."""


class OddFileError(OSError):
    """What lies there is neither a file nor a folder."""


def list_window(root: str, layers: frozenset[str], check_link: Callable[[str], None]) -> bytes:
    """A window's files, sorted by path: of each path, size in bytes and time of change in ns.

    After each of the three there is a zero byte, the only one that no path can hold. So the text
    as a whole tells one state of a window from another, without a look at what is in it.

    Args:
        root: the window's folder; without one there are no files.
        layers: layers whose files are wanted, all of their item groups.
        check_link: called with each link before it is followed; raises if it may not be.

    Raises:
        OddFileError: something is neither a file nor a folder, such as a pipe.
        OSError: a folder may not be listed.
    """
    if _listing is not None:
        text = _listing.list_window(root, b"".join(os.fsencode(name) + b"\0" for name in layers))
        if text is not None:  # there is nothing but plain files and folders
            return text
    found = [file for name in WINDOW_FILES for file in _file(f"{root}/{name}", name, check_link)]
    if os.path.islink(f"{root}/layers"):
        check_link(f"{root}/layers")
    try:
        with os.scandir(f"{root}/layers") as entries:
            wanted = [entry for entry in entries if entry.name.partition(".")[0] in layers]
    except (FileNotFoundError, NotADirectoryError):
        wanted = []
    for entry in wanted:
        found += _below(entry, f"layers/{entry.name}", 1, check_link)
    return b"".join(b"%s\0%d\0%d\0" % file for file in sorted(found))


def in_64_bits(time_ns: int) -> int:
    """A time in ns as 64 bits hold it: from 2262 on it begins anew.

    >>> in_64_bits(2**63 - 1), in_64_bits(2**63)
    (9223372036854775807, -9223372036854775808)
    """
    return (time_ns + 2**63) % 2**64 - 2**63


def parse(listed: bytes) -> list[tuple[str, int, str]]:
    """Path, size and time of each file of a listing."""
    texts = os.fsdecode(listed).split("\0")
    return list(zip(texts[0::3], map(int, texts[1::3]), texts[2::3], strict=False))


def _below(
    entry: os.DirEntry[str], path: str, depth: int, check_link: Callable[[str], None]
) -> Iterator[tuple[bytes, int, int]]:
    if not entry.is_dir():
        yield from _file(entry.path, path, check_link)
        return
    if entry.is_symlink():
        check_link(entry.path)
    if depth > _DEEPEST:
        raise OSError(f"{entry.path}: too many levels of folders")
    with os.scandir(entry.path) as entries:
        for child in entries:
            yield from _below(child, f"{path}/{child.name}", depth + 1, check_link)


def _file(
    where: str, path: str, check_link: Callable[[str], None]
) -> Iterator[tuple[bytes, int, int]]:
    """The file, if there is one; it may have gone meanwhile, or be a link to nothing."""
    if os.path.islink(where):
        check_link(where)
    try:
        found = os.stat(where)
    except (FileNotFoundError, NotADirectoryError):
        return
    if not stat.S_ISREG(found.st_mode):
        raise OddFileError(f"{where} is neither a file nor a folder; remove it from the dataset")
    yield os.fsencode(path), found.st_size, in_64_bits(found.st_mtime_ns)
