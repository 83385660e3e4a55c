"""Which datasets exist under a root: folders that hold config.json and windows/.

Windows are counted, never looked into, and of a dataset that is known already not even listed at
every look: see looks.py.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from eval_ingest.core.fingerprint import fingerprint
from eval_ingest.errors import SourceError, SourceNotFoundError, lacking
from eval_ingest.objects.backend import Entry
from eval_ingest.redaction import spelled
from eval_ingest.sources.base import CONFIG_FILES
from eval_ingest.sources.listing import is_folder
from eval_ingest.sources.looks import Look, Memory
from eval_ingest.sources.open import address
from eval_ingest.sources.sqlite import DATABASE

MAX_DEPTH = 4
MAX_FOLDERS = 20_000
"""A root with more folders than this, beside those in datasets, is a mistake."""
AT_ONCE = 16
"""Datasets whose windows are listed at the same time: the names of all are held meanwhile."""
SAMPLE = 24
"""So many windows of a group are known by name, for a look into them."""


_WATCHED_FILES = (
    *CONFIG_FILES, "model.yaml", "olmoearth_run.yaml", DATABASE, f"{DATABASE}-wal",
)  # fmt: skip
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
    root: str,
    max_depth: int = MAX_DEPTH,
    lister: Lister | None = None,
    memory: Memory | None = None,
) -> Iterator[Found]:
    """Every dataset at most `max_depth` folders below a root, which may be one itself.

    Args:
        root: path or URL.
        max_depth: levels of folders.
        lister: lists folders; by default that of the root's file system.
        memory: earlier looks, which spare most of the listing; it takes this one.

    Raises:
        SourceNotFoundError: there is no such root.
        SourceError: it can't be listed.
    """
    root = address(root)
    ls, memory = lister or _lister(root), memory or Memory()
    level, folders = [""], 0
    for depth in range(max_depth + 1):
        below: list[str] = []
        datasets: dict[str, dict[str, Entry]] = {}
        resting = {folder: memory.resting(_url(root, folder)) for folder in level}
        yield from (_found(_url(root, folder), look) for folder, look in resting.items() if look)
        level = [folder for folder in level if resting[folder] is None]
        for folder, entries in zip(level, ls(level), strict=True):
            names = {entry.last: entry for entry in entries}
            if not depth and not entries and not os.path.isdir(root):
                raise SourceNotFoundError(
                    f"the root {root} does not exist or is empty; check its name"
                )
            if _EVAL_ROOT_FILE in names:
                continue
            if any(name in names for name in CONFIG_FILES) and _is_folder(names.get("windows")):
                datasets[folder] = names
                continue
            below += [
                entry.name
                for name, entry in names.items()
                if entry.folder and name != "windows" and not name.startswith(".")
            ]
        yield from _look_at(root, datasets, ls, memory)
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


def _look_at(
    root: str, datasets: dict[str, dict[str, Entry]], ls: Lister, memory: Memory
) -> Iterator[Found]:
    """The datasets in some folders, of which the files and folders are given by name."""
    places = [f"{folder}/windows".lstrip("/") for folder in datasets]
    changed: list[_Outline] = []
    for (folder, names), entries in zip(datasets.items(), ls(places), strict=True):
        url = _url(root, folder)
        groups = [e for e in entries if e.folder and not e.last.startswith(".")]
        files = [(n, names[n].size, names[n].version) for n in _WATCHED_FILES if n in names]
        outline = fingerprint("outline", files, sorted((g.last, g.version) for g in groups))
        look = memory.unchanged(url, outline)
        if look is not None:
            yield _found(url, look)
            continue
        if any(group.modified and memory.is_racy(group.modified) for group in groups):
            outline = ""
        changed.append(_Outline(url, outline, files, groups))
    for k in range(0, len(changed), AT_ONCE):
        some = changed[k : k + AT_ONCE]
        inside = iter(ls([group.name for outline in some for group in outline.groups]))
        yield from (_list(outline, inside, memory) for outline in some)


class _Outline(NamedTuple):
    """What a cheap look sees of a dataset."""

    url: str
    fingerprint: str
    files: list[tuple[str, int, str]]
    groups: list[Entry]


def _list(outline: _Outline, inside: Iterator[list[Entry]], memory: Memory) -> Found:
    """A full look: what lies in each of its groups comes from `inside`."""
    found: dict[str, int] = {}
    sample: dict[str, tuple[str, ...]] = {}
    facts: list[tuple[str, ...]] = []
    for group in outline.groups:
        entries = (e for e in next(inside) if e.folder)
        listed = sorted(e.last for e in entries if not e.last.startswith("."))
        found[group.last] = len(listed)
        if spelled(group.last) == group.last:  # what has no name in text, an ingest tells of
            readable = [name for name in listed if spelled(name) == name]
            sample[group.last] = tuple(spread(readable, SAMPLE))
        facts.append((group.last, fingerprint(listed)))
    return _found(
        outline.url,
        memory.note(
            outline.url,
            outline.fingerprint,
            fingerprint("source", outline.files, sorted(facts)),
            dict(sorted(found.items())),
            sample,
        ),
    )


def _url(root: str, folder: str) -> str:
    return f"{root.rstrip('/')}/{folder}" if folder else root


def _found(url: str, look: Look) -> Found:
    return Found(url, look.fingerprint, look.groups, look.sample)


def spread(items: Sequence[Item], most: int) -> list[Item]:
    """At most so many items, spread evenly, the first and the last among them.

    >>> spread("abcdefg", 3)
    ['a', 'd', 'g']
    """
    if len(items) <= most:
        return list(items)
    return [items[k * (len(items) - 1) // (most - 1)] for k in range(most)]


def _lister(root: str) -> Lister:
    if "://" not in root:
        return lambda folders: [_list_local(root, folder) for folder in folders]
    from eval_ingest.objects.reading import Objects  # brings asyncio, which folders do without
    from eval_ingest.objects.retry import FIRST_LOOK

    # A root that is down shall not hold up the others; there will be another look.
    objects = Objects(root, FIRST_LOOK, resumes=False)
    objects.greet()
    return lambda folders: objects.run_all(map(objects.list_folder, folders))


def _list_local(root: str, folder: str) -> list[Entry]:
    try:
        with os.scandir(os.path.join(root, folder) if folder else root) as entries:
            return [_local_entry(folder, entry) for entry in entries]
    except FileNotFoundError:
        return []
    except OSError as error:
        if not folder:
            raise SourceError(
                f"the root {root} can't be listed: {error.strerror or error}; "
                "check the path and who may read it"
            ) from error
        lack = lacking(error)
        if lack is not None:
            raise lack from error
        return []  # a folder that only others may read


def _local_entry(folder: str, entry: os.DirEntry[str]) -> Entry:
    name = f"{folder}/{entry.name}" if folder else entry.name
    parts = name.split("/")
    # A link to a folder may lead round in circles, but nothing is looked for below `windows`.
    in_windows = "windows" in parts and is_folder(entry)
    if in_windows or entry.is_dir(follow_symlinks=False):
        stat = _stat(entry) if parts[-2:-1] == ["windows"] else None
        if stat is None:
            return Entry(name, 0, "", folder=True)
        # Of a group: it changes when a window comes or goes.
        return Entry(name, 0, f"time:{stat.st_mtime_ns}", folder=True, modified=stat.st_mtime)
    is_linked = entry.is_symlink() and _is_dataset(entry.path)
    stat = _stat(entry) if entry.name in _WATCHED_FILES else None
    if stat is None:
        return Entry(name, 0, "", folder=is_linked)
    return Entry(name, stat.st_size, f"time:{stat.st_mtime_ns} {stat.st_ctime_ns}")


def _stat(entry: os.DirEntry[str]) -> os.stat_result | None:
    """What it is now; None if it has gone meanwhile, or is a link that can't be followed."""
    try:
        return entry.stat()
    except OSError as error:
        if lack := lacking(error):
            raise lack from error
        return None


def _is_dataset(path: str) -> bool:
    return any(os.path.isfile(os.path.join(path, name)) for name in CONFIG_FILES)
