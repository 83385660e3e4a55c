"""The one door to what is ingested: an eval root, a dataset under it, and the windows of its copy.

Protocols alone: local.py and remote.py are roots, open.py chooses one. Everything works on files
of this machine (store/paths.py). What differs between a disk and a bucket, how files get there and
away, who may write, and what a quick look costs, is behind these, and nobody else asks which it is.
"""

from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from eval_ingest.core.entry import ShardArray
from eval_ingest.core.registry_text import RegistryText
from eval_ingest.errors import StoreError
from eval_ingest.store.paths import DatasetLayout, RootLayout

if TYPE_CHECKING:  # copying needs google-crc32c; a machine that only loads may lack it
    from eval_ingest.store.manifest import CopiedWindow
    from eval_ingest.store.window_files import Contents, Measured

Value = TypeVar("Value")

Key = tuple[str, str]
"""A window's (group, name)."""


class EvalRoot(Protocol):
    """The folder of all ingested datasets, or the bucket's folder that it stands for."""

    def __hash__(self) -> int:
        """Roots of one address are equal."""
        ...

    @property
    def layout(self) -> RootLayout:
        """Its files on this machine."""
        ...

    @property
    def path(self) -> Path:
        """The folder; of a remote root the one that mirrors it."""
        ...

    @property
    def url(self) -> str:
        """What people call it: a path or a URL, without the secrets that it may hold."""
        ...

    @property
    def address(self) -> str:
        """The path or URL that opens it again; not to be shown."""
        ...

    @property
    def cache_bytes(self) -> int | None:
        """Bytes of it that this machine may keep; None: its files are here."""
        ...

    def shown(self, path: Path) -> str:
        """A path under the root as people know it."""
        ...

    def dataset(self, name: str) -> "DatasetStore":
        """A dataset, be it there or not; SpecError if the name isn't allowed."""
        ...

    def dataset_names(self) -> list[str]:
        """Datasets with a metadata.json, sorted."""
        ...

    def fetch_metadata(self) -> list[str]:
        """Have every dataset's metadata.json as it is now; the names as `dataset_names` has them.

        Raises:
            StoreError: they can't be read.
        """
        ...

    def read(self, path: Path, read: Callable[[], Value]) -> Value:
        """What is read of a file beside the datasets, as it is now.

        Raises:
            IntegrityError: it is damaged where it comes from.
            StoreError: it can't be read.
        """
        ...

    def fetch_folder(self, folder: Path) -> None:
        """Have the files right in a folder as they are now.

        Raises:
            StoreError: they can't be read.
        """
        ...

    def send(self, *paths: Path) -> None:
        """Files that were written beside the datasets' stages: whatever is there is replaced.

        Raises:
            StoreError: they can't be written.
        """
        ...

    def unfinished_removals(self) -> list[str]:
        """Datasets that are out of sight, whose removal was stopped."""
        ...

    def update_registry(self, change: Callable[[RegistryText], RegistryText]) -> RegistryText:
        """Change registry.json; nothing that others write into it meanwhile is lost.

        Args:
            change: gives what is to stand there, from what does; called again if another writer
                was faster.

        Raises:
            StoreError: it can't be read or written.
        """
        ...


class DatasetStore(Protocol):
    """A dataset under an eval root: where its files are here, and how they get there and away."""

    @property
    def root(self) -> EvalRoot:
        """The root that it is under."""
        ...

    @property
    def layout(self) -> DatasetLayout:
        """Its files on this machine."""
        ...

    @property
    def name(self) -> str:
        """The dataset's name."""
        ...

    @property
    def url(self) -> str:
        """What people call it: a path or a URL."""
        ...

    @property
    def registered_path(self) -> str:
        """Its `weka_path` in the registry."""
        ...

    # --------------------------------------------------------------------------- who may write

    def hold(self, timeout_s: float, waiting_for: str) -> AbstractContextManager[None]:
        """Be the only one, on any machine, that writes in it; with its small files as they are now.

        Args:
            timeout_s: how long to wait for another holder.
            waiting_for: what is being done, for the message.

        Raises:
            LockedError: another process holds it for longer.
            StoreError: the root can't be reached or written.
        """
        ...

    @property
    def is_held(self) -> bool:
        """True while `hold` lasts."""
        ...

    # ------------------------------------------------------------------------------ small files

    def read(self, path: Path, read: Callable[[], Value]) -> Value:
        """What is read of a file as it is now; while it is held, of the file here.

        Raises:
            IntegrityError: it is damaged where it comes from.
            StoreError: it can't be read.
        """
        ...

    def read_fixed(self, path: Path, read: Callable[[], Value]) -> Value:
        """The same of a file that never changes: it is fetched once.

        Raises:
            IntegrityError: it is damaged where it comes from.
            StoreError: it can't be read.
        """
        ...

    def fetch_folder(self, folder: Path) -> None:
        """Have the files right in a folder as they are now.

        Raises:
            StoreError: they can't be read.
        """
        ...

    def names(self) -> set[str]:
        """Files and folders right in its folder, where it lies, whoever wrote them.

        Raises:
            StoreError: they can't be listed.
        """
        ...

    def discard(self, names: Iterable[str]) -> None:
        """Remove files and folders right in its folder, in this order.

        Raises:
            StoreError: one can't be removed.
        """
        ...

    def is_there(self) -> bool:
        """True if there is a dataset that we wrote: published, damaged, unfinished, half removed.

        Raises:
            StoreError: the root can't be reached.
        """
        ...

    def send(self) -> None:
        """Have all small files that were written or removed, but metadata.json, where they belong.

        Raises:
            StoreError: it isn't held any more, or they can't be written.
        """
        ...

    def publish(self, data: bytes) -> None:
        """Write metadata.json, the commit point.

        Raises:
            StoreError: it isn't held any more, somebody else has published, or it can't be written.
        """
        ...

    def copy_out(self, paths: Collection[str], target: Path) -> Iterator[str]:
        """Copy files, given by their paths in the dataset, into a folder; yields each when done.

        Raises:
            IntegrityError: one isn't there.
            StoreError: one can't be read.
            OSError: one can't be written.
        """
        ...

    # --------------------------------------------------------------------------- packed samples

    @property
    def shard_bytes(self) -> int:
        """Shards of packed samples stay below this size, if a sample does."""
        ...

    def checksum(self, path: Path) -> str | None:
        """CRC32C of a packed file that was written, where it is to be recorded."""
        ...

    def put_shard(self, aside: Path, target: Path, arrays: Mapping[str, ShardArray]) -> None:
        """Give a shard that is whole its name.

        Args:
            aside: the folder that it was written in, with its index.parquet.
            target: the folder that it will be in.
            arrays: what is recorded about its files.

        Raises:
            OSError, StoreError: it can't be written, or the dataset isn't held any more.
        """
        ...

    def array(self, shard: str, name: str, recorded: ShardArray) -> Path:
        """The file of a shard's array on this machine.

        Raises:
            StoreError: it can't be fetched.
        """
        ...

    # ------------------------------------------------------------------------------ is it whole

    def look_at_array(self, path: Path, recorded: ShardArray) -> None:
        """A look at a packed array that is cheap: no element is read.

        Raises:
            IntegrityError: it is missing, or of another size or shape than is recorded.
        """
        ...

    def look_at_table(self, path: Path) -> None:
        """A look at a sealed file that is cheap.

        Raises:
            IntegrityError: it is missing, or known to be damaged.
        """
        ...

    def look_at_file(self, path: Path, crc32c: str) -> None:
        """A look at a file of known checksum that is cheap.

        Raises:
            IntegrityError: it is missing, or known to be damaged.
        """
        ...

    def verify_array(self, path: Path, recorded: ShardArray) -> None:
        """Compare a packed array with all that is recorded about it.

        Raises:
            IntegrityError: it is missing or damaged.
            StoreError: it can't be read.
        """
        ...

    # ------------------------------------------------------------------------- windows and room

    @property
    def windows(self) -> "Windows":
        """The windows of its copy."""
        ...

    def require_room(self, windows: int, samples: int) -> None:
        """Check that there is room for what an ingest will write.

        Args:
            windows: bytes of the windows that will be copied, see `store.room.window_bytes`.
            samples: bytes of the samples that will be packed.

        Raises:
            StoreError: there isn't; says how much is needed and free, and what to do.
        """
        ...

    # --------------------------------------------------------------------------------- clearing

    def retire(self, paths: Iterable[Path]) -> None:
        """Files that a new version doesn't name: readers may hold them from now on for a while."""
        ...

    def remove_retired(self, named: Collection[Path], grace_s: float) -> None:
        """Remove shards and split indexes that nothing has named for so long.

        Args:
            named: the folders of shards, and the split indexes, that metadata.json names.
            grace_s: seconds.
        """
        ...

    def forget_shards(self, names: Iterable[str]) -> None:
        """Make shards unknown to the next run, without taking them from readers."""
        ...

    def keep_only(self, folder: Path, names: Collection[str]) -> None:
        """Remove what else is right in a folder, whoever wrote it.

        Raises:
            StoreError: it can't be removed.
        """
        ...

    def withdraw(self) -> None:
        """Take the whole dataset out of sight, at once.

        Raises:
            StoreError: it can't be removed.
        """
        ...

    def erase(self) -> None:
        """Remove all that is left of a withdrawn dataset.

        Raises:
            StoreError: it can't be removed.
        """
        ...


class Windows(Protocol):
    """The windows of a dataset's copy; pickled for worker processes."""

    def has(self, group: str, name: str) -> bool:
        """True if the window is there; a cheap look."""
        ...

    def clear(self, keys: Iterable[Key]) -> None:
        """Make way for windows that will be written; where they are replaced at once, nothing."""
        ...

    def write(
        self, group: str, name: str, source_digest: str, split: str, files: "Contents"
    ) -> "CopiedWindow":
        """Write a window, checked; see `store.window_files.copy_window`."""
        ...

    def change_splits(self, windows: Iterable[tuple["CopiedWindow", str]]) -> list["CopiedWindow"]:
        """Give copied windows other splits: only their metadata.json is rewritten."""
        ...

    def measured(self, keys: Iterable[Key]) -> Iterator[tuple[Key, "Measured | StoreError"]]:
        """Each window read back: files, bytes and checksum, or why it can't be read."""
        ...

    def keep_only(self, keys: Container[Key]) -> None:
        """Remove all other windows."""
        ...

    def paths(self) -> Iterator[str]:
        """Every file, as group/name/path."""
        ...
