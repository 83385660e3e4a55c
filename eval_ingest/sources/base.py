"""What a source is: the files of windows, what lists and reads them, and what they share.

A source is listed once per ingest. Listing gives each file's size and version, so that nothing is
asked about one by one, and a changed file is noticed without being read. How a window's files are
had is a source's own: local.py, remote.py and archive.py are sources, open.py chooses one.
"""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from eval_ingest.errors import EvalIngestError, SourceError, lacking
from eval_ingest.redaction import spelled
from eval_ingest.waiting import BYTES_AHEAD, SOURCES, WINDOWS_AHEAD, Room, Waiting

CONFIG_FILES = ("config.json", "dataset.json")
ARCHIVE_ENDINGS = (".tar", ".tar.gz", ".tgz")


WINDOW_FILES = ("metadata.json", "items.json")

ANYBODY = 0o666
"""Permissions of files in a place that knows none."""

MAX_TEXT_BYTES = 20_000_000
"""Of a configuration file; real ones have about ten thousand."""


def check_text_size(where: str, n_bytes: int) -> None:
    """Refuse a configuration file that would fill the memory.

    Raises:
        SourceError: it is larger than MAX_TEXT_BYTES.
    """
    if n_bytes > MAX_TEXT_BYTES:
        raise SourceError(
            f"{where} has {n_bytes:,} bytes, more than the {MAX_TEXT_BYTES:,} of a configuration "
            "file; is this the right one?"
        )


def cannot(doing: str, path: str | os.PathLike[str], error: OSError) -> EvalIngestError:
    """What to say of a source's file or folder that can't be had, and of a machine that can't."""
    return lacking(error) or SourceError(f"{path} can't be {doing}: {error.strerror or error}")


UNUSABLE = "unusable: "
"""How the version of a file begins for which its window is not read."""


class SourceFile(NamedTuple):
    """A file of a window."""

    path: str
    """Relative to the window's folder, with forward slashes."""
    size: int
    """Bytes."""
    version: str
    """Changes when the content does: see `listing.version_of`, or an object's checksum."""


Key = tuple[str, str]
"""A window's (group, name)."""


def crc_of(version: str) -> int:
    """The CRC32C that a version is.

    >>> crc_of("crc32c:0000002a")
    42
    """
    return int(version.removeprefix("crc32c:"), 16)


class Listed(NamedTuple):
    """A window of a listing, without its files: small enough to hold a hundred thousand."""

    group: str
    name: str
    digest: str = ""
    """Of its files; empty where they weren't looked at."""

    @property
    def spelled(self) -> "Listed":
        """With names that any text can hold: bytes that are no UTF-8 are written out."""
        if self.group.isascii() and self.name.isascii():
            return self
        return Listed(spelled(self.group), spelled(self.name), self.digest)


@dataclass(frozen=True)
class WindowFiles:
    """A window's files: metadata.json, items.json and the layers that are asked for."""

    group: str
    name: str
    files: tuple[SourceFile, ...]
    """Sorted by path."""

    @property
    def key(self) -> str:
        """`group/name`."""
        return f"{self.group}/{self.name}"

    @cached_property
    def n_bytes(self) -> int:
        """Total size in bytes."""
        return sum(file.size for file in self.files)

    @cached_property
    def by_path(self) -> dict[str, SourceFile]:
        """Files by relative path."""
        return {file.path: file for file in self.files}

    @cached_property
    def digest(self) -> str:
        """Changes when any of the files does."""
        files = [f"{path}\0{size}\0{version}\0" for path, size, version in self.files]
        return digest_of(os.fsencode("".join(files)))

    @property
    def unusable(self) -> str:
        """Which of its files keeps it from being read, and why; "" if none does."""
        for path, _, version in self.files:
            if version.startswith(UNUSABLE):
                return f"{spelled(path)} {version.removeprefix(UNUSABLE)}"
        return ""

    @property
    def odd_name(self) -> str:
        """Its own name, or a file's, that is no UTF-8, spelled; "" if all are."""
        for name in (self.group, self.name, *self.by_path):
            if (text := spelled(name)) != name:
                return text
        return ""

    @property
    def listed(self) -> Listed:
        """What identifies it."""
        return Listed(self.group, self.name, self.digest)

    @cached_property
    def _completed(self) -> dict[str, dict[int, None]]:
        """Completed item groups by layer, in order."""
        found: dict[str, list[int]] = {}
        for path in self.by_path:
            if path.endswith("/completed") and path.count("/") == 2 and path.startswith("layers/"):
                layer, _, number = path[7:-10].partition(".")
                if not number or (number.isascii() and number.isdigit()):
                    found.setdefault(layer, []).append(int(number or 0))
        return {layer: dict.fromkeys(sorted(numbers)) for layer, numbers in found.items()}

    def completed(self, layer: str) -> Collection[int]:
        """Item groups of a layer whose `completed` marker is there, in order."""
        return self._completed.get(layer, {}).keys()


def digest_of(listed: bytes) -> str:
    """The digest of a window's files, from a listing of them as listing.py writes it."""
    return hashlib.blake2b(listed, digest_size=16).hexdigest()


def plain(name: object, where: str) -> str:
    """A group or window, if it can be the name of a folder: not all names come from a listing.

    Raises:
        SourceError: it can't.
    """
    if not isinstance(name, str) or not name or name[0] == "." or {"/", "\0"} & set(name):
        raise SourceError(
            f"{where} has a group or window {str(name)[:80]!r}, which names no folder; "
            "correct it there"
        )
    return name


Window = WindowFiles | Callable[[], WindowFiles]
"""A window's files, or what lists them: where that takes time, it is done ahead too."""

Fetchable = Callable[[WindowFiles], frozenset[str]]
"""The files of a window that may be fetched before anybody asks for them, by what is listed."""


def every_file(files: WindowFiles) -> frozenset[str]:
    """All of a window's files: it is known to be of a fit size."""
    return frozenset(files.by_path)


class Copies(Protocol):
    """Copies of a source near by; pickled for worker processes."""

    @property
    def archives(self) -> Sequence[Path]:
        """Folders in which the source was unpacked, if it is an archive."""

    def __call__(self, window: Listed, files: Iterable[SourceFile]) -> Mapping[str, bytes]:
        """Those of some files of a window, by path, that a copy holds just as the source does."""


class Ours(NamedTuple):
    """A window's folder that we have written, which may be moved away."""

    folder: str
    others: tuple[str, ...]
    """What else is in it, such as files of layers that nobody reads."""


class Had(NamedTuple):
    """A file as it was read."""

    data: bytes
    permissions: int
    """Who may read and write it, as mode bits: a copy is for no more people."""


class Source(ABC):
    """An rslearn dataset with windows in files, read only."""

    moves = False
    """True if its files are ours and are moved into a copy, not read: see `ours`."""
    at_hand = False
    """True if its files lie on a disk of this machine, so that none of them is kept for later."""
    waiting: Waiting = SOURCES
    """Whether reading a window is waiting."""

    if TYPE_CHECKING:  # some have it as a field

        @property
        def url(self) -> str:
            """Where it lies: what rslearn can open."""

    @property
    def origin(self) -> str:
        """What the user gave: an archive's own URL, where `url` is the unpacked folder."""
        return self.url

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of it."""
        return ()

    def complete(self) -> bool:
        """Have at hand what was left for later; False if there is no such thing."""
        return False

    @abstractmethod
    def read_text(self, name: str) -> str | None:
        """A file beside the windows folder, or None if it isn't there."""

    def has(self, name: str) -> bool:
        """True if there is a file of this name beside the windows folder."""
        return Path(self.url, name).is_file()

    def on_disk(self, *names: str) -> Path:
        """A folder of this machine that holds those of some files beside the windows folder."""
        return Path(self.url)

    # -------------------------------------------------------------------------------- listing

    @abstractmethod
    def groups(self) -> list[str]:
        """Window groups, sorted."""

    def names(self, groups: list[str]) -> Iterator[Listed] | None:
        """Every window without a look at its files; None where that costs as much as a listing."""
        return None

    @abstractmethod
    def windows(self, groups: list[str], layers: frozenset[str]) -> Iterator[WindowFiles]:
        """Every window of the groups with its files in `layers`, group by group."""

    @abstractmethod
    def window(self, group: str, name: str, layers: frozenset[str]) -> WindowFiles:
        """One window: as it is now, or, of a remote source, as it was listed."""

    def listing(self, groups: list[str], layers: frozenset[str]) -> Iterator[Listed]:
        """Every window of the groups; a remote source keeps their files for `window`."""
        return (window.listed for window in self.windows(groups, layers))

    def ensure_listed(  # noqa: B027
        self, groups: list[str], layers: frozenset[str], windows: Iterable[Key] | None = None
    ) -> None:
        """List the groups now if that isn't done, so that `window` costs nothing.

        Args:
            groups: of the windows.
            layers: that will be read.
            windows: the only ones that will be; None: any may be.

        Windows can be read only after it: of an archive, they are unpacked. In a folder, a window
        is looked at when its turn comes.
        """

    # -------------------------------------------------------------------------------- reading

    @abstractmethod
    def fetch(self, files: WindowFiles, wanted: Sequence[SourceFile]) -> dict[str, Had]:
        """What can be had of some files of a window at once, as they were listed."""

    @abstractmethod
    def have(self, group: str, name: str, file: SourceFile) -> Had:
        """A file; SourceError if it isn't as it was listed."""

    def read(self, group: str, name: str, file: SourceFile) -> bytes:
        """A file's bytes; SourceError if they aren't as they were listed."""
        return self.have(group, name, file).data

    def ours(self, files: WindowFiles) -> Ours | None:
        """The folder of a window that we wrote, which may be moved away.

        The versions of its files are their CRC32C: see `crc_of`.
        """
        return None

    def readers(
        self,
        windows: Iterable[Window],
        whole: bool = True,
        fetchable: Fetchable = every_file,
    ) -> Iterator[tuple[WindowFiles, "WindowReader"]]:
        """Each window with its reader; those that come next are read meanwhile.

        Args:
            windows: in the order in which they will be read.
            whole: False if metadata.json alone is sure to be read.
            fetchable: names what may be fetched ahead; other files are when they are asked for.
        """
        room = Room(BYTES_AHEAD)

        def begin(window: tuple[int, Window]) -> WindowReader:
            return WindowReader(self, *window, whole, fetchable, room)

        for reader in self.waiting.each(begin, enumerate(windows), WINDOWS_AHEAD, room.close):
            yield reader.files, reader
            room.give_back(reader.taken)

    # What becomes of a window's bytes, from stage to stage:
    #
    #     window_index  read --> keep ------.    valid, and the copy stage will want it again
    #                        `-> (nothing)   |   invalid, or packed and not copied
    #     weka_copy     read <---------------'
    #                        `-> drop            packed and copied
    #                   forget                   the copy is done, or was done before: all of it
    #
    # A folder's files stay where they are, so there these do nothing.

    def keep(self, window: "WindowReader") -> None:  # noqa: B027
        """A later stage will read this window again: where fetching costs, keep its bytes."""

    def drop(self, files: WindowFiles) -> None:  # noqa: B027
        """No later stage will read this window again: drop what was kept."""

    def forget(self) -> None:  # noqa: B027
        """Drop everything that was kept: the ingest is done."""


class WindowReader:
    """Reads one window: of each file the bytes are remembered."""

    def __init__(
        self,
        source: Source,
        turn: int,
        window: Window,
        whole: bool,
        fetchable: Fetchable,
        room: Room,
    ) -> None:
        self._source = source
        self._had: dict[str, Had] = {}
        with source.waiting.watched(lambda: len(self.files.files)):
            self.files = window if isinstance(window, WindowFiles) else window()
            self._fetchable = fetchable(self.files)
            first = self._fetchable if whole else self._fetchable & {"metadata.json"}
            self.taken = sum(file.size for file in self.files.files if file.path in first)
            room.wait(self.taken, turn)
            self._fetch(first)

    def _fetch(self, paths: frozenset[str]) -> None:
        wanted = [f for f in self.files.files if f.path in paths and f.path not in self._had]
        self._had |= self._source.fetch(self.files, wanted)

    def have(self, group: str, name: str, file: SourceFile) -> Had:
        """A file; SourceError if it isn't as it was listed."""
        if file.path not in self._had:
            self._fetch(self._fetchable)
        if file.path not in self._had:  # the source says what is wrong with it
            self._had[file.path] = self._source.have(group, name, file)
        return self._had[file.path]

    def read(self, group: str, name: str, file: SourceFile) -> bytes:
        """A file's bytes; SourceError if they aren't as they were listed."""
        return self.have(group, name, file).data

    def ours(self) -> Ours | None:
        """See `Source.ours`."""
        return self._source.ours(self.files)

    @property
    def is_fit(self) -> bool:
        """True if all of its files may be fetched."""
        return len(self._fetchable) == len(self.files.files)

    def keep(self) -> None:
        """See `Source.keep`."""
        self._source.keep(self)

    def drop(self) -> None:
        """See `Source.drop`."""
        self._source.drop(self.files)


def is_read(path: str, layers: Container[str]) -> bool:
    """True for a window's metadata.json and items.json, and for the files of some layers."""
    parts = path.split("/", 2)
    if len(parts) < 3 or parts[0] != "layers":
        return path in WINDOW_FILES
    return parts[1].partition(".")[0] in layers
