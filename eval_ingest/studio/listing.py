"""The files of a window on a local disk, each with its size and time.

Seventy system calls a window: where _listing.c was compiled it makes them, in a third of the time
and without the GIL, so that threads can wait for a network file system side by side.
"""

import os
from collections.abc import Iterator

try:
    from eval_ingest.studio import _listing
except ImportError:  # an installation without a C compiler
    _listing = None  # type: ignore[assignment]

WINDOW_FILES = ("metadata.json", "items.json")

_DEEPEST = 8
"""Folders below `layers/`; more than that is a link that leads round in circles."""


def list_window(root: str, layers: frozenset[str]) -> bytes:
    """A window's files, sorted by path: of each path, size in bytes and time of change in ns.

    After each of the three there is a zero byte, the only one that no path can hold. So the text
    as a whole tells one state of a window from another, without a look at what is in it.

    Args:
        root: the window's folder; without one there are no files.
        layers: layers whose files are wanted, all of their item groups.

    Raises:
        OSError: a folder may not be listed.
    """
    if _listing is not None:
        return _listing.list_window(root, b"".join(os.fsencode(name) + b"\0" for name in layers))
    files = [name for name in WINDOW_FILES if os.path.isfile(f"{root}/{name}")]
    found = [_file(name, os.stat(f"{root}/{name}")) for name in files]
    try:
        with os.scandir(f"{root}/layers") as entries:
            wanted = [entry for entry in entries if entry.name.partition(".")[0] in layers]
    except (FileNotFoundError, NotADirectoryError):
        wanted = []
    for entry in wanted:
        found += _below(entry, f"layers/{entry.name}", 1)
    return b"".join(b"%s\0%d\0%d\0" % file for file in sorted(found))


def parse(listed: bytes) -> list[tuple[str, int, str]]:
    """Path, size and time of each file of a listing."""
    texts = os.fsdecode(listed).split("\0")
    return list(zip(texts[0::3], map(int, texts[1::3]), texts[2::3], strict=False))


def _below(entry: os.DirEntry[str], path: str, depth: int) -> Iterator[tuple[bytes, int, int]]:
    if entry.is_dir():
        if depth > _DEEPEST:
            raise OSError(f"{entry.path}: too many levels of folders")
        with os.scandir(entry.path) as entries:
            for child in entries:
                yield from _below(child, f"{path}/{child.name}", depth + 1)
        return
    try:
        stat = entry.stat()
    except FileNotFoundError:  # gone meanwhile, or a link to nothing
        return
    yield _file(path, stat)


def _file(path: str, stat: os.stat_result) -> tuple[bytes, int, int]:
    return os.fsencode(path), stat.st_size, stat.st_mtime_ns
