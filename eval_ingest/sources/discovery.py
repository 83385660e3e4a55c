"""Which datasets exist under a root: folders that hold config.json and windows/.

Windows are counted, never looked into, so that a bucket of a hundred datasets costs a few hundred
listings of one level each.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from eval_ingest.core.fingerprint import fingerprint
from eval_ingest.errors import SourceError, SourceNotFoundError
from eval_ingest.objects.backend import Entry
from eval_ingest.objects.filesystems import weka_mount
from eval_ingest.objects.reading import Objects
from eval_ingest.objects.retry import FIRST_LOOK
from eval_ingest.sources.base import CONFIG_FILES

MAX_DEPTH = 4
MAX_FOLDERS = 20_000
"""A root with more folders than this, beside those in datasets, is a mistake."""
SAMPLE = 24
"""So many windows of a group are known by name, for a look into them."""

_WATCHED_FILES = (*CONFIG_FILES, "model.yaml", "olmoearth_run.yaml")
_EVAL_ROOT_FILE = "registry.json"
"""Below an eval root there are datasets too, but they are copies."""

Item = TypeVar("Item")
Lister = Callable[[Sequence[str]], list[list[Entry]]]
"""What lies right below each of some folders, whose paths are relative to the root."""


@dataclass(frozen=True)
class Found:
    """A dataset under a root."""

    url: str
    fingerprint: str
    """Changes with the configuration files and with the groups' windows by name, at no cost.

    What is changed inside a window goes unnoticed here; an ingest notices.
    """
    groups: dict[str, int] = field(compare=False)
    """Number of window folders by group."""
    sample: dict[str, tuple[str, ...]] = field(compare=False)
    """Up to SAMPLE windows by group, the first and the last by name among them."""

    @property
    def windows(self) -> int:
        """Number of window folders."""
        return sum(self.groups.values())


def find_datasets(
    root: str, max_depth: int = MAX_DEPTH, lister: Lister | None = None
) -> Iterator[Found]:
    """Every dataset at most `max_depth` folders below a root, which may be one itself.

    Args:
        root: path or URL.
        max_depth: levels of folders.
        lister: lists folders; by default that of the root's file system.

    Raises:
        SourceNotFoundError: there is no such root.
        SourceError: it can't be listed.
    """
    root = str(weka_mount(root) or root.removeprefix("file://")).rstrip("/") or "/"
    ls = lister or _lister(root)
    level, folders = [""], 0
    for depth in range(max_depth + 1):
        below: list[str] = []
        for folder, entries in zip(level, ls(level), strict=True):
            names = {entry.name.rsplit("/", 1)[-1]: entry for entry in entries}
            if not depth and not entries and not os.path.isdir(root):
                raise SourceNotFoundError(
                    f"the root {root} does not exist or is empty; check its name"
                )
            if _EVAL_ROOT_FILE in names:
                continue
            if any(name in names for name in CONFIG_FILES) and _is_folder(names.get("windows")):
                yield _look_at(root, folder, names, ls)
                continue
            below += [
                entry.name
                for name, entry in names.items()
                if entry.folder and name != "windows" and not name.startswith(".")
            ]
        folders += len(below)
        if folders > MAX_FOLDERS:
            raise SourceError(
                f"the root {root} has more than {MAX_FOLDERS:,} folders that are no datasets; "
                "give roots nearer to the datasets"
            )
        level = sorted(below)
        if not level:
            return


def source_fingerprint(url: str) -> str:
    """The fingerprint that find_datasets gives the dataset at a path or URL; "" if it has none."""
    try:
        for found in find_datasets(url, max_depth=0):
            return found.fingerprint
    except SourceError:
        pass  # an archive, or a source that the next step will say more about
    return ""


def _is_folder(entry: Entry | None) -> bool:
    return entry is not None and entry.folder


def _look_at(root: str, folder: str, names: dict[str, Entry], ls: Lister) -> Found:
    windows = f"{folder}/windows".lstrip("/")
    [entries] = ls([windows])
    groups = [e for e in entries if e.folder and not _last(e).startswith(".")]
    found: dict[str, int] = {}
    sample: dict[str, tuple[str, ...]] = {}
    facts: list[tuple[str, ...]] = []
    for group, inside in zip(groups, ls([group.name for group in groups]), strict=True):
        listed = sorted(_last(e) for e in inside if e.folder and not _last(e).startswith("."))
        found[_last(group)] = len(listed)
        sample[_last(group)] = tuple(spread(listed, SAMPLE))
        facts.append((_last(group), fingerprint(listed)))
    files = [(n, names[n].size, names[n].version) for n in _WATCHED_FILES if n in names]
    url = f"{root.rstrip('/')}/{folder}" if folder else root
    return Found(
        url, fingerprint("source", files, sorted(facts)), dict(sorted(found.items())), sample
    )


def spread(items: Sequence[Item], most: int) -> list[Item]:
    """At most so many items, spread evenly, the first and the last among them.

    >>> spread("abcdefg", 3)
    ['a', 'd', 'g']
    """
    if len(items) <= most:
        return list(items)
    return [items[k * (len(items) - 1) // (most - 1)] for k in range(most)]


def _last(entry: Entry) -> str:
    return entry.name.rsplit("/", 1)[-1]


def _lister(root: str) -> Lister:
    if "://" not in root:
        return _LocalLister(root)
    # A root that is down shall not hold up the others; there will be another look.
    objects = Objects(root, FIRST_LOOK, resumes=False)
    objects.greet()
    return _RemoteLister(objects)


@dataclass(frozen=True)
class _RemoteLister:
    objects: Objects

    def __call__(self, folders: Sequence[str]) -> list[list[Entry]]:
        futures = [self.objects.submit(self.objects.list_folder(folder)) for folder in folders]
        return [future.result() for future in futures]


@dataclass(frozen=True)
class _LocalLister:
    root: str

    def __call__(self, folders: Sequence[str]) -> list[list[Entry]]:
        return [self._list(folder) for folder in folders]

    def _list(self, folder: str) -> list[Entry]:
        path = os.path.join(self.root, folder) if folder else self.root
        try:
            with os.scandir(path) as entries:
                return [self._entry(folder, entry) for entry in entries]
        except FileNotFoundError:
            return []
        except OSError as error:
            if not folder:
                raise SourceError(
                    f"the root {self.root} can't be listed: {error.strerror or error}; "
                    "check the path and who may read it"
                ) from error
            return []  # a folder that only others may read

    def _entry(self, folder: str, entry: os.DirEntry[str]) -> Entry:
        name = f"{folder}/{entry.name}" if folder else entry.name
        # A link to a folder may lead round in circles.
        if entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and entry.is_dir()):
            return Entry(name, 0, "", folder=not entry.is_symlink() or _is_dataset(entry.path))
        if entry.name not in _WATCHED_FILES:
            return Entry(name, 0, "")
        stat = entry.stat()
        return Entry(name, stat.st_size, f"time:{stat.st_mtime_ns}")


def _is_dataset(path: str) -> bool:
    return any(os.path.isfile(os.path.join(path, name)) for name in CONFIG_FILES)
