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


def list_window(root: str, layers: frozenset[str]) -> list[tuple[str, int, int]]:
    """Path, size in bytes and time of change in ns of a window's files, in no certain order.

    Args:
        root: the window's folder; without one there are no files.
        layers: layers whose files are wanted, all of their item groups.

    Raises:
        OSError: a folder may not be listed.
    """
    if _listing is not None:
        return _listing.list_window(root, b"".join(os.fsencode(name) + b"\0" for name in layers))
    files = []
    for name in WINDOW_FILES:
        if os.path.isfile(f"{root}/{name}"):
            files.append(_file(name, os.stat(f"{root}/{name}")))
    try:
        with os.scandir(f"{root}/layers") as entries:
            wanted = [entry for entry in entries if entry.name.partition(".")[0] in layers]
    except (FileNotFoundError, NotADirectoryError):
        return files
    for entry in wanted:
        files += _below(entry, f"layers/{entry.name}", 1)
    return files


def _below(entry: os.DirEntry[str], path: str, depth: int) -> Iterator[tuple[str, int, int]]:
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


def _file(path: str, stat: os.stat_result) -> tuple[str, int, int]:
    return path, stat.st_size, stat.st_mtime_ns
