"""Where everything lies under an eval root: plain path values, which touch nothing.

    registry.json
    catalog/{name}.yaml
    {name}/metadata.json          the whole configuration; written last: the commit point
    {name}/norm_stats.json
    {name}/resolved.json          what the first stage made of the configuration
    {name}/window_index.parquet, split_assignment.parquet, weka_copy.json
    {name}/config.json, model.yaml, windows/...      the rslearn copy
    {name}/model.original.yaml, .rslearn_dataset_index/...
    {name}/samples/{shard}/<modality>.npy, target.npy, index.parquet
    {name}/{train,val,test}/index.<fingerprint>.parquet

Samples are packed once, in shards that never change, and a split's index says which rows of which
shard are its own. So another split policy rewrites three small files and no pixel, and windows
that are new go into a new shard beside the old ones.

How files get there and away, on a disk or in a bucket, is in roots/.
"""

from dataclasses import dataclass
from pathlib import Path

from eval_ingest.core.spec import check_name

RSLEARN_INDEX = ".rslearn_dataset_index"

STAGE_FILES = (
    "window_index.parquet", "split_assignment.parquet", "weka_copy.json", "copy_manifest.parquet",
    "source_state.json",
)  # fmt: skip
"""Files of a dataset's folder by which it is known as ours, be it published, damaged or half
written; folders that other tools made have none of them."""


@dataclass(frozen=True)
class RootLayout:
    """The files of an eval root, on this machine; a bucket's are mirrored in a folder."""

    path: Path

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
        return DatasetLayout(self.path / check_name(name))


@dataclass(frozen=True)
class DatasetLayout:
    """The files of one dataset, on this machine."""

    path: Path

    @property
    def name(self) -> str:
        """The dataset's name."""
        return self.path.name

    @property
    def metadata(self) -> Path:
        """metadata.json, the commit point."""
        return self.path / "metadata.json"

    @property
    def resolved(self) -> Path:
        """resolved.json: what the first stage made of the configuration."""
        return self.path / "resolved.json"

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

    def array(self, shard: str, name: str) -> Path:
        """An array of a shard of packed samples: a modality's, or `target`."""
        return self.samples / shard / f"{name}.npy"

    def split_index(self, split: str, fingerprint: str) -> Path:
        """A split's index."""
        return self.path / split / f"index.{fingerprint}.parquet"
