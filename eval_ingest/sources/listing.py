"""The files of a window on a local disk, each with its size and version, and their bytes.

A hundred system calls a window and more: where _listing.c was compiled it makes them, in a third of
the time and without the GIL, so that threads can wait for a network file system side by side.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence

from eval_ingest.sources.base import ANYBODY, UNUSABLE, WINDOW_FILES, Had

try:
    from eval_ingest.sources import _listing

    _listing.list_plain_window  # noqa: B018  an older build follows links
except (ImportError, AttributeError):  # an installation without a C compiler
    _listing = None  # type: ignore[assignment]

_DEEPEST = 8
"""Folders below `layers/`; more than that is a link that leads round in circles."""
MOST_FILES = 100_000
"""Of a window; real ones have tens."""

_UNUSABLE = {
    errno.ELOOP: "lies more folders deep than any file of a window",
    errno.ENAMETOOLONG: "has a path longer than any file's",
    errno.E2BIG: f"is one of more than {MOST_FILES:,} files",
    errno.ENXIO: "is neither a file nor a folder",
}
"""What makes a window one that isn't read, by what the system says, or we in its words."""


def list_window(
    root: str, layers: frozenset[str], check_link: Callable[[str], None], inodes: bool = False
) -> bytes:
    """A window's files, sorted by path: of each path, size in bytes and version.

    After each of the three there is a zero byte, the only one that no path can hold. So the text
    as a whole tells one state of a window from another, without a look at what is in it.

    Args:
        root: the window's folder; without one there are no files.
        layers: layers whose files are wanted, all of their item groups.
        check_link: called with each link before it is followed; raises if it may not be.
        inodes: see `version_of`.

    A window that can't be listed for what is in it, such as a pipe, has one file: the first that
    is in the way, whose version begins with UNUSABLE and says why.

    Raises:
        OSError: a folder may not be listed.
    """
    try:
        return _listed(root, layers, check_link, inodes)
    except OSError as error:
        why = _UNUSABLE.get(error.errno or 0)
        if why is None:
            raise
        path = os.path.relpath(error.filename, root)
        return b"%s\0%d\0%s\0" % (os.fsencode(path), 0, (UNUSABLE + why).encode())


def _listed(
    root: str, layers: frozenset[str], check_link: Callable[[str], None], inodes: bool
) -> bytes:
    if _listing is not None:
        text = _listing.list_plain_window(
            root, b"".join(os.fsencode(name) + b"\0" for name in layers), inodes, MOST_FILES
        )
        if text is not None:  # there is nothing but plain files and folders
            return text
    for path in (root, f"{root}/layers"):
        if os.path.islink(path):
            check_link(path)
    found = [file for name in WINDOW_FILES for file in _file(f"{root}/{name}", name, check_link)]
    try:
        inside = _inside(f"{root}/layers")
    except (FileNotFoundError, NotADirectoryError):
        inside = []
    for entry in inside:
        if entry.name.partition(".")[0] in layers:
            found += _below(entry, f"layers/{entry.name}", 1, check_link)
        if len(found) > MOST_FILES:
            raise OSError(errno.E2BIG, "too many files", entry.path)
    return b"".join(
        b"%s\0%d\0%s\0" % (path, stat.st_size, version_of(stat, inodes).encode())
        for path, stat in sorted(found, key=lambda file: file[0])
    )


def read_files(
    root: str, files: Sequence[tuple[str, int, str]], inodes: bool | None
) -> dict[str, Had]:
    """What can be had at once of a window's files; not the ones that aren't as they were listed.

    Args:
        root: the window's folder.
        files: path, size in bytes and version of each.
        inodes: see `version_of`; None: the versions are of another kind, and aren't looked at.
    """
    if _listing is None:
        return _read_by_python(root, files, inodes)
    listed = os.fsencode("".join(f"{path}\0{size}\0{version}\0" for path, size, version in files))
    found = zip(files, *_listing.read_files(root, listed, -1 if inodes is None else inodes),
                strict=True)  # fmt: skip
    return {file[0]: Had(data, mode & ANYBODY) for file, data, mode in found if mode >= 0}


def _read_by_python(
    root: str, files: Sequence[tuple[str, int, str]], inodes: bool | None
) -> dict[str, Had]:
    found = {}
    for path, size, version in files:
        with contextlib.suppress(OSError):
            data, stat = read_file(f"{root}/{path}", size)
            if len(data) == size and (inodes is None or version_of(stat, inodes) == version):
                found[path] = Had(data, stat.st_mode & ANYBODY)
    return found


def read_file(path: str, size: int) -> tuple[bytes, os.stat_result]:
    """A file's bytes and what it is after that, with as few system calls as it takes.

    One byte more shows that it grew.
    """
    # A pipe that was put there just now isn't waited for.
    opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        data = os.read(opened, size + 1)
        while 0 < len(data) < size and (more := os.read(opened, size + 1 - len(data))):
            data += more
        return data, os.fstat(opened)
    finally:
        os.close(opened)


def version_of(file: os.stat_result, inodes: bool) -> str:
    """What changes when a file does: time of change, and what no tool can set.

    Args:
        file: the file as it is now.
        inodes: True to add the time of change of its inode, and the inode's number. So a file is
            seen to be another though size and time were made the same (`cp -p`, `touch -r`).
    """
    if not inodes:
        return str(in_64_bits(file.st_mtime_ns))
    changed = in_64_bits(file.st_mtime_ns), in_64_bits(file.st_ctime_ns)
    return f"{changed[0]} {changed[1]} {file.st_ino}"


def is_folder(entry: os.DirEntry[str]) -> bool:
    """True for a folder, and for a link that is none to a file: who follows it tells more."""
    return not os.path.isfile(entry.path) if entry.is_symlink() else entry.is_dir()


def keeps_inodes(path: str) -> bool:
    """False for the file systems of FUSE: gcsfuse numbers files anew each time it is mounted."""
    device = os.stat(path).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
            for mount in mounts:
                fields, _, kind = mount.partition(" - ")
                if fields.split()[2] == number:
                    return not kind.startswith("fuse")
    except OSError:
        pass  # not Linux
    return True


def in_64_bits(time_ns: int) -> int:
    """A time in ns as 64 bits hold it: from 2262 on it begins anew.

    >>> in_64_bits(2**63 - 1), in_64_bits(2**63)
    (9223372036854775807, -9223372036854775808)
    """
    return (time_ns + 2**63) % 2**64 - 2**63


def parse(listed: bytes) -> list[tuple[str, int, str]]:
    """Path, size and version of each file of a listing."""
    texts = os.fsdecode(listed).split("\0")
    return list(zip(texts[0::3], map(int, texts[1::3]), texts[2::3], strict=False))


def _below(
    entry: os.DirEntry[str], path: str, depth: int, check_link: Callable[[str], None]
) -> Iterator[tuple[bytes, os.stat_result]]:
    if not entry.is_dir():
        yield from _file(entry.path, path, check_link)
        return
    if entry.is_symlink():
        check_link(entry.path)
    if depth > _DEEPEST:
        raise OSError(errno.ELOOP, "too many levels of folders", entry.path)
    for child in _inside(entry.path):
        yield from _below(child, f"{path}/{child.name}", depth + 1, check_link)


def _inside(folder: str) -> list[os.DirEntry[str]]:
    """What is in a folder by name: what is in the way is the same wherever it lies."""
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _file(
    where: str, path: str, check_link: Callable[[str], None]
) -> Iterator[tuple[bytes, os.stat_result]]:
    """The file, if there is one; it may have gone meanwhile, or be a link to nothing."""
    if os.path.islink(where):
        check_link(where)
    try:
        found = os.stat(where)
    except (FileNotFoundError, NotADirectoryError):
        return
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.ENXIO, "neither a file nor a folder", where)
    yield os.fsencode(path), found
