"""Where everything lies under an eval root.

    registry.json
    catalog/{name}.yaml
    {name}/metadata.json          the whole configuration; written last: the commit point
    {name}/norm_stats.json
    {name}/window_index.parquet, split_assignment.parquet, weka_copy.json
    {name}/config.json, model.yaml, windows/...      the rslearn copy
    {name}/model.original.yaml, .rslearn_dataset_index/...
    {name}/samples/{shard}/<modality>.npy, target.npy, index.parquet
    {name}/{train,val,test}/index.<fingerprint>.parquet

Samples are packed once, in shards that never change, and a split's index says which rows of which
shard are its own. So another split policy rewrites three small files and no pixel, and windows
that are new go into a new shard beside the old ones.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from eval_ingest.core.entry import ShardArray
from eval_ingest.core.spec import NAME_PATTERN, check_name
from eval_ingest.errors import IntegrityError

if TYPE_CHECKING:  # a local root doesn't pay for it
    from eval_ingest.store.roots.remote import RemoteRoot

Value = TypeVar("Value")

RSLEARN_INDEX = ".rslearn_dataset_index"

MAX_SHARD_BYTES = 8 << 30
"""Larger datasets are packed in several shards: a stopped copy loses at most one."""


@dataclass(frozen=True)
class EvalRoot:
    """The folder of all ingested datasets, or what stands for it on this machine."""

    path: Path
    """The root itself; for a remote one the folder that mirrors it."""
    remote: "RemoteRoot | None" = None

    @property
    def url(self) -> str:
        """What people call it: a path or a URL, without the secrets that it may hold."""
        return self.shown(self.path)

    @property
    def address(self) -> str:
        """The path or URL that opens it again; not to be shown."""
        return str(self.path) if self.remote is None else self.remote.url

    @property
    def registry(self) -> Path:
        """registry.json."""
        return self.path / "registry.json"

    @property
    def registry_lock(self) -> Path:
        """Held while registry.json is compiled."""
        return self.path / ".registry.lock"

    @property
    def catalog(self) -> Path:
        """Where added dataset specs are, unless EVAL_INGEST_CATALOG says otherwise."""
        return self.path / "catalog"

    def dataset(self, name: str) -> "DatasetLayout":
        """A dataset's folder; SpecError if the name isn't allowed."""
        return DatasetLayout(self.path / check_name(name), self.remote)

    def dataset_names(self) -> list[str]:
        """Datasets with a metadata.json, sorted."""
        if self.remote is not None:
            return self.remote.dataset_names()
        if not self.path.is_dir():
            return []
        names = (found.parent.name for found in self.path.glob("*/metadata.json"))
        return sorted(name for name in names if NAME_PATTERN.fullmatch(name))

    def shown(self, path: Path) -> str:
        """A path under the root as people know it."""
        return str(path) if self.remote is None else self.remote.shown(path)

    def pull(self, *paths: Path) -> None:
        """Have files of a remote root as they are now; a local root's are.

        Raises:
            StoreError: they can't be read.
        """
        if self.remote is not None:
            self.remote.pull(paths)

    def intact(self, path: Path, read: Callable[[], Value]) -> Value:
        """What is read of a file; a remote root's is fetched again if its copy here is damaged.

        Raises:
            IntegrityError: it is damaged where it comes from.
            StoreError: it can't be read.
        """
        try:
            return read()
        except IntegrityError:
            if self.remote is None or not self.remote.fetch_again(path):
                raise
            return read()

    def push(self, *paths: Path) -> None:
        """Send files to a remote root, whatever is there.

        Raises:
            StoreError: they can't be written.
        """
        if self.remote is not None:
            self.remote.push(paths)


@dataclass(frozen=True)
class DatasetLayout:
    """The files of one dataset, on this machine: see EvalRoot."""

    path: Path
    remote: "RemoteRoot | None" = None

    @property
    def name(self) -> str:
        """The dataset's name."""
        return self.path.name

    @property
    def root(self) -> EvalRoot:
        """The root that it is under."""
        return EvalRoot(self.path.parent, self.remote)

    @property
    def url(self) -> str:
        """What people call it: a path or a URL."""
        return self.root.shown(self.path)

    @property
    def registered_path(self) -> str:
        """Its `weka_path` in the registry."""
        return str(self.path) if self.remote is None else self.remote.registered_path(self.name)

    @property
    def metadata(self) -> Path:
        """metadata.json, the commit point."""
        return self.path / "metadata.json"

    @property
    def norm_stats(self) -> Path:
        """norm_stats.json."""
        return self.path / "norm_stats.json"

    @property
    def window_index(self) -> Path:
        """window_index.parquet."""
        return self.path / "window_index.parquet"

    @property
    def split_assignment(self) -> Path:
        """split_assignment.parquet."""
        return self.path / "split_assignment.parquet"

    @property
    def weka_copy(self) -> Path:
        """weka_copy.json: the outcome of the copy stage."""
        return self.path / "weka_copy.json"

    @property
    def copy_manifest(self) -> Path:
        """Which windows were copied, with size and checksum."""
        return self.path / "copy_manifest.parquet"

    @property
    def windows(self) -> Path:
        """The rslearn windows."""
        return self.path / "windows"

    @property
    def samples(self) -> Path:
        """The packed samples' shards."""
        return self.path / "samples"

    @property
    def source_state(self) -> Path:
        """What the source looked like to discovery when it was indexed last."""
        return self.path / "source_state.json"

    @property
    def staging(self) -> Path:
        """What is kept of a remote source from stage to stage; gone when the copy is done."""
        return self.path / ".staging"

    @property
    def archive(self) -> Path:
        """Where a source that is an archive is unpacked; its windows go when the copy is done."""
        return self.path / ".archive"

    @property
    def lock(self) -> Path:
        """Held while the dataset is being ingested; beside the folder, so that it outlives it."""
        return self.path.parent / f".{self.name}.lock"

    @property
    def shard_bytes(self) -> int:
        """Shards of packed samples stay below this size, if a sample does."""
        return MAX_SHARD_BYTES if self.remote is None else self.remote.shard_bytes

    @contextlib.contextmanager
    def held(self, timeout_s: float, waiting_for: str) -> Iterator[None]:
        """Hold a remote dataset's lease, with its files as they are now; of a local one, nothing.

        Raises:
            LockedError: another process holds it.
            StoreError: the root can't be reached.
        """
        if self.remote is None:
            yield
        else:
            with self.remote.held(self.name, timeout_s, waiting_for):
                yield

    def have(self, path: Path) -> None:
        """Have a file that never changes; of a remote dataset it is fetched once.

        Raises:
            StoreError: it can't be fetched.
        """
        if self.remote is not None and not path.is_file():
            self.remote.pull([path])

    @property
    def is_held(self) -> bool:
        """True unless a remote dataset's lease has yet to be taken."""
        return self.remote is None or self.remote.is_held(self.name)

    def is_there(self, path: Path) -> bool:
        """True if a file is there; of a remote dataset's, whose lease is held, the object."""
        return path.is_file() if self.remote is None else self.remote.has(path)

    def send(self) -> None:
        """Send what has changed of a remote dataset whose lease is held, but for metadata.json.

        Raises:
            StoreError: it can't be written, or another process has written it.
        """
        if self.remote is not None:
            self.remote.push_dataset(self.name)

    def array(self, shard: str, name: str, recorded: ShardArray) -> Path:
        """The file of a shard's array; of a remote dataset's in the cache.

        Raises:
            StoreError: it can't be fetched.
        """
        path = self.samples / shard / f"{name}.npy"
        return path if self.remote is None else self.remote.fetch_array(path, recorded)

    def split_index(self, split: str, fingerprint: str) -> Path:
        """A split's index."""
        return self.path / split / f"index.{fingerprint}.parquet"
