"""The one door to what is ingested: an eval root, and a dataset under it, as they are on a disk.

Everything works on files of this machine (store/paths.py). On a local disk or a mounted Weka they
are where they belong, and most of what is here has nothing to do. Where they belong into a bucket,
remote.py and remote_store.py do otherwise: how files get there and away, who may write, and what a
quick look costs. Nobody else asks which it is; open.py chooses.
"""

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from eval_ingest.core.entry import ShardArray
from eval_ingest.core.registry_text import RegistryText
from eval_ingest.core.spec import SPLITS, is_name
from eval_ingest.errors import IntegrityError, StoreError
from eval_ingest.store.atomic import check_file, remove_path, store_errors, write_bytes
from eval_ingest.store.locks import locked
from eval_ingest.store.npy import check_npy
from eval_ingest.store.paths import (
    ADOPTED_MARK,
    INGESTED_MARK,
    KEPT,
    STAGE_FILES,
    DatasetLayout,
    RootLayout,
)
from eval_ingest.store.registry_file import exchange
from eval_ingest.store.room import require_disk
from eval_ingest.store.seal import cure_for, read_sealed

if TYPE_CHECKING:  # copying needs google-crc32c; a machine that only loads may lack it
    from eval_ingest.store.window_files import Windows

Value = TypeVar("Value")

MAX_SHARD_BYTES = 8 << 30
"""Larger datasets are packed in several shards: a stopped copy loses at most one."""

Recorded = ShardArray | str | None
"""What is known of a file: of a packed array its shape and size, of another one its CRC32C; None
for a sealed file, which holds its own."""

_REMOVED = ".removed."


class EvalRoot:
    """The folder of all ingested datasets."""

    cache_bytes: int | None = None
    """Bytes of it that this machine may keep; None: its files are here."""

    def __init__(self, path: Path) -> None:
        self.path = path
        """The folder; of a remote root the one that mirrors it."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EvalRoot) and self.path == other.path

    def __hash__(self) -> int:
        return hash(self.path)

    @property
    def layout(self) -> RootLayout:
        """Its files on this machine."""
        return RootLayout(self.path)

    @property
    def url(self) -> str:
        """What people call it: a path or a URL, without the secrets that it may hold."""
        return self.shown(self.path)

    @property
    def address(self) -> str:
        """The path or URL that opens it again; not to be shown."""
        return str(self.path)

    def shown(self, path: Path) -> str:
        """A path under the root as people know it."""
        return str(path)

    def dataset(self, name: str) -> "DatasetStore":
        """A dataset, be it there or not; SpecError if the name isn't allowed."""
        return DatasetStore(self, self.layout.dataset(name))

    def dataset_names(self) -> list[str]:
        """Datasets with a metadata.json, sorted."""
        if not self.path.is_dir():
            return []
        names = (found.parent.name for found in self.path.glob("*/metadata.json"))
        return sorted(filter(is_name, names))

    def fetch_metadata(self) -> list[str]:
        """Have every dataset's metadata.json as it is now; the names as `dataset_names` has them.

        Raises:
            StoreError: they can't be read.
        """
        return self.dataset_names()

    def read(self, path: Path, read: Callable[[], Value]) -> Value:
        """What is read of a file under the root, as it is now.

        Raises:
            IntegrityError: it is damaged where it comes from.
            StoreError: it can't be read.
        """
        return read()

    def fetch_folder(self, folder: Path) -> None:
        """Have the files right in a folder as they are now.

        Raises:
            StoreError: they can't be read.
        """

    def send(self, *paths: Path) -> None:
        """Files that were written beside the datasets' stages: whatever is there is replaced.

        Raises:
            StoreError: they can't be written.
        """

    def names(self) -> set[str]:
        """Files and folders right in it, whoever wrote them.

        Raises:
            StoreError: they can't be listed.
        """
        return _names_in(self.path)

    def write(self, path: Path, data: bytes) -> None:
        """Write a small file, whatever was there.

        Raises:
            StoreError: it can't be written.
        """
        write_bytes(path, data)

    def update_registry(self, change: Callable[[RegistryText], RegistryText]) -> RegistryText:
        """Change registry.json; nothing that others write into it meanwhile is lost.

        Args:
            change: gives what is to stand there, from what does; called again if another writer
                was faster.

        Raises:
            StoreError: it can't be read or written.
        """
        changed = exchange(self.layout.registry, change)
        self.sweep()
        return changed

    def sweep(self) -> None:
        """Remove what was taken out of sight, also by removals that were stopped."""
        for removed in self.path.glob(f"{_REMOVED}*"):
            with contextlib.suppress(StoreError):  # somebody else's; another time, then
                remove_path(removed)


@dataclass
class DatasetStore:
    """A dataset under an eval root: where its files are here, and how they get there and away."""

    root: EvalRoot
    """The root that it is under."""
    layout: DatasetLayout
    """Its files on this machine."""
    is_held: bool = field(default=False, compare=False)
    """True while `hold` lasts."""

    @property
    def name(self) -> str:
        """The dataset's name."""
        return self.layout.name

    @property
    def url(self) -> str:
        """What people call it: a path or a URL."""
        return self.root.shown(self.layout.path)

    @property
    def registered_path(self) -> str:
        """Its `weka_path` in the registry."""
        return str(self.layout.path)

    @contextlib.contextmanager
    def hold(self, timeout_s: float, waiting_for: str) -> Iterator[None]:
        """Be the only one, on any machine, that writes in it; with its small files as they are now.

        Args:
            timeout_s: how long to wait for another holder.
            waiting_for: what is being done, for the message.

        Raises:
            LockedError: another process holds it for longer.
            StoreError: the root can't be reached or written.
        """
        with locked(self.layout.lock, timeout_s, waiting_for):
            self.is_held = True
            try:
                yield
            finally:
                self.is_held = False

    # ------------------------------------------------------------------------------ small files

    def read(self, path: Path, read: Callable[[], Value]) -> Value:
        """What is read of a file as it is now; while it is held, of the file here.

        Raises:
            IntegrityError: it is damaged where it comes from.
            StoreError: it can't be read.
        """
        # While it is held nobody else can have changed it, and it may have yet to be sent.
        return read() if self.is_held else self.root.read(path, read)

    def read_fixed(self, path: Path, read: Callable[[], Value]) -> Value:
        """The same of a file that never changes: it is fetched once.

        Raises:
            IntegrityError: it is damaged where it comes from.
            StoreError: it can't be read.
        """
        if path.is_file():
            with contextlib.suppress(IntegrityError):
                return read()
        return self.root.read(path, read)

    def names(self) -> set[str]:
        """Files and folders right in its folder, where it lies, whoever wrote them.

        Raises:
            StoreError: they can't be listed.
        """
        return _names_in(self.layout.path)

    def is_there(self) -> bool:
        """True if there is a dataset that we wrote: published, damaged, begun, half removed.

        Raises:
            StoreError: the root can't be reached.
        """
        here = _names_in(self.layout.path).intersection(KEPT)  # they never are in a bucket
        ours = (*STAGE_FILES, INGESTED_MARK, ADOPTED_MARK)
        return bool(here) or not self.names().isdisjoint(ours)

    def send(self, *paths: Path) -> None:
        """Have small files that were written or removed where they belong.

        Args:
            paths: the files; none: all but metadata.json.

        Raises:
            StoreError: it isn't held any more, or they can't be written.
        """

    def publish(self, metadata: bytes, opening: bytes) -> None:
        """Write metadata.json, the commit point, and opening.json, by which it is opened.

        The opening.json of the version before goes first: whoever opens the dataset in between, or
        after a stop, does so by metadata.json.

        Raises:
            StoreError: it isn't held any more, somebody else has published, or it can't be written.
        """
        self.remove([self.layout.opening])
        write_bytes(self.layout.metadata, metadata)
        write_bytes(self.layout.opening, opening)

    def copy_out(self, paths: Collection[str], target: Path) -> Iterator[str]:
        """Copy files, given by their paths in the dataset, into a folder; yields each when done.

        Raises:
            IntegrityError: one isn't there.
            StoreError: one can't be read.
            OSError: one can't be written.
        """
        for path in paths:
            source = self.layout.path / path
            try:
                shutil.copyfile(source, target / path)
            except FileNotFoundError as error:
                raise IntegrityError(
                    f"{source} is missing; it was ingested anew in the meantime, or is damaged: "
                    "export it again, or see eval-ingest verify"
                ) from error
            yield path

    # --------------------------------------------------------------------------- packed samples

    @property
    def shard_bytes(self) -> int:
        """Shards of packed samples stay below this size, if a sample does."""
        return MAX_SHARD_BYTES

    def checksum(self, path: Path) -> str | None:
        """CRC32C of a packed file that was written, where it is to be recorded."""
        return None  # it doesn't travel, and `verify` compares every sample with the index

    def put_shard(self, aside: Path, target: Path, arrays: Mapping[str, ShardArray]) -> None:
        """Give a shard that is whole its name.

        Args:
            aside: the folder that it was written in, with its index.parquet.
            target: the folder that it will be in.
            arrays: what is recorded about its files.

        Raises:
            OSError, StoreError: it can't be written, or the dataset isn't held any more.
        """
        os.rename(aside, target)

    def array(self, shard: str, name: str, recorded: ShardArray) -> Path:
        """The file of a shard's array on this machine.

        Raises:
            StoreError: it can't be fetched.
        """
        return self.layout.array(shard, name)

    # ------------------------------------------------------------------------------ is it whole

    def look_at(self, path: Path, recorded: Recorded = None) -> None:
        """A look at a file that is cheap: of a packed array no element is read.

        Raises:
            IntegrityError: it is missing, or known to be damaged.
        """
        cure = cure_for(self.name)
        if isinstance(recorded, ShardArray):
            check_npy(path, recorded, cure)
        elif recorded is not None:
            check_file(path, recorded, cure)
        elif read_sealed(path, cure) is None:
            raise IntegrityError(f"{path} is missing", cure)

    def verify(self, path: Path, recorded: Recorded = None) -> None:
        """Compare a file, where it lies, with all that is recorded about it.

        Raises:
            IntegrityError: it is missing or damaged.
            StoreError: it can't be read.
        """
        self.read(path, lambda: DatasetStore.look_at(self, path, recorded))
        if isinstance(recorded, ShardArray) and recorded.crc32c is not None:
            self.look_at(path, recorded.crc32c)

    # ------------------------------------------------------------------------- windows and room

    @property
    def windows(self) -> "Windows":
        """The windows of its copy."""
        from eval_ingest.store.window_files import Windows  # see above

        return Windows(self.layout.windows)

    def require_room(self, windows: int, samples: int) -> None:
        """Check that there is room for what an ingest will write.

        Args:
            windows: bytes of the windows that will be copied, see `store.room.window_bytes`.
            samples: bytes of the samples that will be packed.

        Raises:
            StoreError: there isn't; says how much is needed and free, and what to do.
        """
        require_disk(self.layout.path, windows, samples)

    # --------------------------------------------------------------------------------- clearing

    def versions(self) -> Iterator[Path]:
        """The folders of shards, and the split indexes, be they named by metadata.json or not."""
        yield from self.layout.samples.glob("[!.]*")
        for split in SPLITS:
            yield from self.layout.path.glob(f"{split}/index.*")

    def remove(self, paths: Iterable[Path]) -> None:
        """Remove files and folders of it, in this order; one that isn't there is as good as that.

        Raises:
            StoreError: one can't be removed.
        """
        for path in paths:
            remove_path(path)

    def keep_only(self, folder: Path, names: Collection[str]) -> None:
        """Remove what else is right in a folder, whoever wrote it, but for what is hidden.

        Raises:
            StoreError: it can't be removed.
        """
        there = sorted(folder.iterdir()) if folder.is_dir() else []
        self.remove(path for path in there if path.name not in names and path.name[0] != ".")

    def withdraw(self) -> None:
        """Take the whole dataset out of sight, at once.

        Raises:
            StoreError: it can't be removed.
        """
        aside, path = self.root.path / f"{_REMOVED}{self.name}.{time.time_ns()}", self.layout.path
        with store_errors("removing", path), contextlib.suppress(FileNotFoundError):
            # What a link leads to is somebody's own: the link goes, and the data stay.
            path.unlink() if path.is_symlink() else path.rename(aside)

    def erase(self) -> None:
        """Remove all that is left of a withdrawn dataset, as far as that can be: see `left`."""
        for removed in self.left():
            with contextlib.suppress(StoreError):
                remove_path(removed)

    def left(self) -> list[Path]:
        """What takes room still though the dataset was removed: it couldn't be deleted."""
        return sorted(self.root.path.glob(f"{_REMOVED}{self.name}.*"))

    @property
    def linked_to(self) -> str:
        """Where its data are, if its folder under the root is a link to them; else empty."""
        return os.path.realpath(self.layout.path) if self.layout.path.is_symlink() else ""


def _names_in(folder: Path) -> set[str]:
    with store_errors("listing", folder), contextlib.suppress(FileNotFoundError):
        return {inside.name for inside in folder.iterdir()}
    return set()
