"""Where everything lies under an eval root: plain path values, which touch nothing.

    registry.json
    catalog/{name}.yaml
    {name}/metadata.json          the whole configuration; written last: the commit point
    {name}/opening.json           what EvalDataset reads of it
    {name}/norm_stats.json
    {name}/resolved.json          what the first stage made of the configuration
    {name}/window_index.parquet, split_assignment.parquet, weka_copy.json
    {name}/config.json, model.yaml, windows/...      the rslearn copy
    {name}/model.original.yaml, .rslearn_dataset_index/...
    {name}/samples/{shard}/<modality>.npy, target.npy, index.parquet
    {name}/{train,val,test}/index.<fingerprint>.arrow

Samples are packed once, in shards that never change, and a split's index says which rows of which
shard are its own. So another split policy rewrites three small files and no pixel, and windows
that are new go into a new shard beside the old ones.

How files get there and away, on a disk or in a bucket, is in roots/.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval_ingest.core.spec import SPLITS, check_name

RSLEARN_INDEX = ".rslearn_dataset_index"

STAGE_FILES = (
    "window_index.parquet", "split_assignment.parquet", "weka_copy.json", "copy_manifest.parquet",
    "source_state.json",
)  # fmt: skip
"""Files of a dataset's folder by which it is known as ours, be it published, damaged or half
written; folders that other tools made have none of them."""


PUBLISHED = (
    "metadata.json", "opening.json", "norm_stats.json", "window_index.parquet",
    "split_assignment.parquet", "weka_copy.json", "copy_manifest.parquet", "config.json",
    "model.yaml", "olmoearth_run.yaml", "windows", RSLEARN_INDEX, "samples", *SPLITS,
    "README.md", "report", "viewer",
)  # fmt: skip
"""What is right in a dataset's folder that is published; what runs keep for themselves isn't."""

INGESTED_MARK, ADOPTED_MARK = ".ingested_by_eval_ingest", ".adopted_by_eval_ingest"
"""Files that say so from the first moment on."""
KEPT = (".window_index", ".staging", ".copied_ahead", ".archive")
"""Folders of what an ingest keeps on the machine that it runs on until it is done."""


class _Below:
    """A file or folder right in a layout's folder."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, layout: Any, _owner: object = None) -> Path:
        path: Path = layout.path / self._name
        return path


@dataclass(frozen=True)
class RootLayout:
    """The files of an eval root, on this machine; a bucket's are mirrored in a folder."""

    path: Path

    registry = _Below("registry.json")
    """registry.json."""
    registry_lock = _Below(".registry.lock")
    """Held while registry.json is compiled."""
    catalog = _Below("catalog")
    """Where added dataset specs are, unless EVAL_INGEST_CATALOG says otherwise."""

    def dataset(self, name: str) -> "DatasetLayout":
        """A dataset's folder; SpecError if the name isn't allowed."""
        return DatasetLayout(self.path / check_name(name))


@dataclass(frozen=True)
class DatasetLayout:
    """The files of one dataset, on this machine."""

    path: Path

    metadata = _Below("metadata.json")
    """The commit point."""
    opening = _Below("opening.json")
    """What EvalDataset reads of it."""
    resolved = _Below("resolved.json")
    """What the first stage made of the configuration."""
    norm_stats = _Below("norm_stats.json")
    window_index = _Below("window_index.parquet")
    split_assignment = _Below("split_assignment.parquet")
    weka_copy = _Below("weka_copy.json")
    """The outcome of the copy stage."""
    copy_manifest = _Below("copy_manifest.parquet")
    """Which windows were copied, with size and checksum."""
    windows = _Below("windows")
    """The rslearn windows."""
    samples = _Below("samples")
    """The packed samples' shards."""
    retired = _Below("retired.json")
    """Since when which shards and split indexes are unnamed."""
    source_state = _Below("source_state.json")
    """What the source looked like to discovery when it was indexed last."""
    staging = _Below(".staging")
    """What is kept of a remote source from stage to stage; gone when the copy is done."""
    ahead = _Below(".copied_ahead")
    """Windows of the copy that were written while they were indexed; gone when the copy is done."""
    archive = _Below(".archive")
    """Where a source that is an archive is unpacked; its windows go when the copy is done."""

    @property
    def name(self) -> str:
        """The dataset's name."""
        return self.path.name

    @property
    def lock(self) -> Path:
        """Held while the dataset is being ingested; beside the folder, so that it outlives it."""
        return self.path.parent / f".{self.name}.lock"

    def array(self, shard: str, name: str) -> Path:
        """An array of a shard of packed samples: a modality's, or `target`."""
        return self.path.joinpath("samples", shard, f"{name}.npy")

    def split_index(self, split: str, fingerprint: str) -> Path:
        """A split's index."""
        return self.path.joinpath(split, f"index.{fingerprint}.arrow")
