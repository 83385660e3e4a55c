"""EvalDataset: a split of an ingested dataset, memory mapped.

Opening reads metadata.json and the split's index; no window is scanned, and pixels are read when
a sample is asked for. Workers of a DataLoader share the maps.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from eval_ingest.core.columns import numbers, one_array
from eval_ingest.core.entry import Metadata
from eval_ingest.core.resolved import ModalityInput
from eval_ingest.core.spec import SPLITS
from eval_ingest.core.task import Task
from eval_ingest.errors import IntegrityError, LoadError
from eval_ingest.loading.collate import Samples, collate
from eval_ingest.loading.maps import Maps, open_array
from eval_ingest.loading.memory import recycler
from eval_ingest.loading.normalize import (
    DEFAULT_METHOD,
    Normalizer,
    make_normalizer,
    pretrained_stats,
)
from eval_ingest.loading.parallel import in_parallel
from eval_ingest.settings import Settings
from eval_ingest.store.layout import EvalRoot
from eval_ingest.store.registry import require_metadata
from eval_ingest.store.uri import open_root

if TYPE_CHECKING:  # the source side is for datasets without packed samples alone
    from eval_ingest.loading.from_source import SourceSamples

TARGET = "target"

_BATCH_BYTES = 64 << 20
"""`loader` makes batches of about this many bytes of float32 pixels."""


class EvalDataset(Dataset[dict[str, Any]]):
    """A split of an ingested eval dataset.

    `ds[i]` is a dict:

    | key | value |
    |---|---|
    | each modality | float32 (H, W, T, C), bands in `ds.bands[modality]`'s order |
    | timestamps | per modality long (T, 3): day, month from 0, year |
    | target | long (H, W) or scalar class, -1 invalid; or float32 (H, W) or scalar, NaN invalid |
    | window | "group/name" |

    Samples are ordered as rslearn orders windows, by the SHA-256 of their names.

    Args:
        name: the dataset, as in the registry.
        split: train, val or test.
        root: the eval root; default OLMOEARTH_EVAL_DATASETS.
        modalities: only these; default all.
        normalize: "dataset" (statistics of its train split), "pretrained" (OlmoEarth's), or None
            (stored values, Sentinel-1 linear).
        method: how statistics are used; see `core.norm.METHODS`.
        crop: a square of the dataset's crop size from the "center" or a "random" place; None: all.
            A dataset without a crop size is never cropped.
        label_fraction: share of the train split, in (0, 1], or "10%", or a name in the spec's
            label_fractions: nested subsets, drawn by `seed`.
        seed: of label_fraction.

    Raises:
        UnknownDatasetError: no such dataset under the root; the message lists the near names.
        LoadError: an argument that the dataset can't satisfy.
    """

    def __init__(
        self,
        name: str,
        split: str,
        *,
        root: str | Path | None = None,
        modalities: Sequence[str] | None = None,
        normalize: Literal["dataset", "pretrained"] | None = "dataset",
        method: str = DEFAULT_METHOD,
        crop: Literal["center", "random"] | None = "center",
        label_fraction: float | str = 1.0,
        seed: int = 42,
    ) -> None:
        self._arguments: dict[str, Any] = {
            "name": name, "split": split, "modalities": modalities, "normalize": normalize,
            "method": method, "crop": crop, "label_fraction": label_fraction, "seed": seed,
        }  # fmt: skip
        eval_root = open_root(Settings.load(), root)
        self._root = eval_root.url
        self._open(eval_root, require_metadata(eval_root, name), **self._arguments)

    def _open(
        self,
        eval_root: EvalRoot,
        metadata: Metadata,
        *,
        name: str,
        split: str,
        modalities: Sequence[str] | None,
        normalize: Literal["dataset", "pretrained"] | None,
        method: str,
        crop: Literal["center", "random"] | None,
        label_fraction: float | str,
        seed: int,
    ) -> None:
        """Open a certain version of the dataset: the one that this metadata is of."""
        self.metadata: Metadata = metadata
        if split not in SPLITS:
            raise LoadError(f"no split {split!r}; there are {', '.join(SPLITS)}")
        if crop not in ("center", "random", None):
            raise LoadError(f"no crop {crop!r}; there are 'center', 'random' and None")
        self.name, self.split = name, split
        self._layout = eval_root.dataset(name)
        self._inputs = self._choose(modalities)
        self._normalizers = {
            modality.name: self._normalizer(modality, normalize, method)
            for modality in self._inputs
        }
        self._crop = self.metadata.config.crop_size if crop else None
        self._random_crop = crop == "random"
        self._index = self._read_index()
        self._order = self._draw(self._fraction(label_fraction), seed)
        self._maps: Maps = {}
        self._from_source = self._open_source()

    # -------------------------------------------------------------------------------- opening

    def _choose(self, modalities: Sequence[str] | None) -> list[ModalityInput]:
        known = {modality.name: modality for modality in self.metadata.config.modalities}
        wanted = list(known) if modalities is None else list(modalities)
        unknown = [name for name in wanted if name not in known]
        if unknown or not wanted:
            raise LoadError(
                f"{self.metadata.name} has no modality {', '.join(unknown) or '(none asked for)'}; "
                f"it has {', '.join(known)}"
            )
        return [known[name] for name in wanted]

    def _normalizer(
        self, modality: ModalityInput, normalize: str | None, method: str
    ) -> Normalizer:
        if normalize is None:
            return Normalizer(None, None)
        if normalize == "dataset":
            stats = self.metadata.norm_stats[modality.name]
        elif normalize == "pretrained":
            stats = pretrained_stats(modality.name)
        else:
            raise LoadError(f"no normalize={normalize!r}; there are 'dataset', 'pretrained', None")
        return make_normalizer(method, modality.bands, stats, modality.decibels)

    def _read_index(self) -> "_SplitIndex":
        path = self._layout.path / self.metadata.splits[self.split].index
        self._layout.have(path)
        try:
            # Not pq.read_table: that imports pandas, which takes longer than all of the rest.
            with pq.ParquetFile(path, memory_map=True) as file:
                table = file.read(use_threads=False)
        except (OSError, pa.ArrowException) as error:
            raise IntegrityError(
                f"the index {path} can't be read ({error}); ingest {self.name} again"
            ) from error
        return _SplitIndex(table, [modality.name for modality in self.metadata.config.modalities])

    def _open_source(self) -> "SourceSamples | None":
        """Where the samples come from, if none are packed."""
        if self.metadata.spec.copy_mode != "index":
            return None
        # The source side, with all that decoding needs; other datasets do without.
        try:
            from eval_ingest.loading.from_source import SourceSamples
        except ImportError as error:
            raise LoadError(
                f"{self.name} was ingested with copy: index, so its samples are decoded from "
                f"{self.metadata.source}, and that needs {error.name}: "
                "pip install 'eval-ingest[ingest]'"
            ) from error
        index = self._index
        return SourceSamples(self.metadata, index.groups, index.names, index.digests)

    def _fraction(self, given: float | str) -> float:
        if not isinstance(given, str):
            return given
        named = self.metadata.spec.label_fractions
        if given in named:
            return named[given]
        try:
            return float(given[:-1]) / 100 if given.endswith("%") else float(given)
        except ValueError:
            raise LoadError(
                f"no label_fraction {given!r}; {self.metadata.name} names "
                f"{', '.join(named) or 'none'}; or give a share such as 0.1 or '10%'"
            ) from None

    def _draw(self, label_fraction: float, seed: int) -> NDArray[np.int64] | None:
        """The rows of a label fraction, or None for all of them in order."""
        if not 0 < label_fraction <= 1:
            raise LoadError(f"label_fraction is {label_fraction}; it must be in (0, 1]")
        if label_fraction == 1:
            return None
        if self.split != "train":
            raise LoadError(
                f"label_fraction is for the train split; {self.split} is always used whole"
            )
        total = len(self._index)
        count = max(1, int(total * label_fraction))
        generator = torch.Generator().manual_seed(seed)
        return torch.randperm(total, generator=generator)[:count].numpy()

    def __getstate__(self) -> tuple[str, Metadata, dict[str, Any]]:
        return self._root, self.metadata, self._arguments

    def __setstate__(self, state: tuple[str, Metadata, dict[str, Any]]) -> None:
        # Opening again costs milliseconds; the maps themselves can't travel. The metadata does, so
        # that a worker reads the version that its loader counts, whatever was published since.
        self._root, metadata, self._arguments = state
        self._open(open_root(Settings.load(), self._root), metadata, **self._arguments)

    # --------------------------------------------------------------------------------- asking

    def __len__(self) -> int:
        return len(self._index) if self._order is None else len(self._order)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{m.name} ({len(m.bands)} bands)" for m in self._inputs)
        return f"EvalDataset({self.name!r}, {self.split!r}: {len(self)} samples, {shapes})"

    @property
    def task(self) -> Task:
        """What is predicted."""
        return self.metadata.config.task

    @property
    def classes(self) -> list[str]:
        """Class names by id; empty for regressions."""
        return [known.name for known in self.task.classes]

    @property
    def bands(self) -> dict[str, tuple[str, ...]]:
        """Bands per modality, in the order of the samples."""
        return {modality.name: modality.bands for modality in self._inputs}

    def window(self, i: int) -> str:
        """`group/name` of sample i."""
        row = self._row(i)
        return f"{self._index.groups[row]}/{self._index.names[row]}"

    def _row(self, i: int) -> int:
        if not -len(self) <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)} in {self.name} {self.split}")
        i %= len(self)
        return i if self._order is None else int(self._order[i])

    def __getitem__(self, i: int) -> dict[str, Any]:
        return self._sample(self._row(int(i)))

    def _sample(self, row: int) -> dict[str, Any]:
        window = self._window_slice(row)
        sample: dict[str, Any] = {}
        for modality in self._inputs:
            stored = self._stored(modality.name, row)[window]
            sample[modality.name] = recycler.empty(stored.shape)
            self._normalizers[modality.name].apply(stored, sample[modality.name])
        sample["timestamps"] = {
            modality.name: self._index.timestamps(modality.name, row) for modality in self._inputs
        }
        target = self._stored(TARGET, row)
        sample["target"] = self._target(target[window] if target.ndim else target)
        sample["window"] = f"{self._index.groups[row]}/{self._index.names[row]}"
        return sample

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[i] for i in range(len(self)))

    def __getitems__(self, indices: Sequence[int]) -> Sequence[dict[str, Any]]:
        """Samples for a DataLoader; of equal shape, they lie in one batch already."""
        rows = [self._row(int(i)) for i in indices]
        batch = self._batch(rows)
        return [self._sample(row) for row in rows] if batch is None else Samples(batch)

    def _window_slice(self, row: int) -> tuple[slice, slice]:
        """Rows and columns of the crop."""
        if self._crop is None:
            return slice(None), slice(None)
        slices = []
        for size in (int(self._index.heights[row]), int(self._index.widths[row])):
            spare = max(size - self._crop, 0)
            # An odd pixel is cut off at the front, as rslearn's centred Pad does.
            middle = (spare + 1) // 2
            start = int(torch.randint(spare + 1, ())) if self._random_crop else middle
            slices.append(slice(start, start + self._crop))
        return slices[0], slices[1]

    def _target(self, stored: NDArray[Any]) -> torch.Tensor:
        kind = np.int64 if self.task.kind.has_classes else np.float32
        return torch.from_numpy(np.array(stored, dtype=kind))

    def _stored(self, name: str, row: int) -> NDArray[Any]:
        """A sample's stored array: a view of the memory map."""
        if self._from_source is not None:
            return self._from_source.array(row, name)
        shard = int(self._index.shards[row])
        array = self._map(shard, name)
        if self.metadata.shards[shard].arrays[name].uniform:
            return np.asarray(array[int(self._index.rows[row])])
        shape = self._shape(name, row)
        start = int(self._index.offsets[name][row])
        return array[start : start + int(np.prod(shape))].reshape(shape)

    def _shape(self, name: str, row: int) -> tuple[int, ...]:
        size = int(self._index.heights[row]), int(self._index.widths[row])
        if name == TARGET:
            return size
        modality = self.metadata.config.modality(name)
        return (*size, int(self._index.timesteps[name][row]), len(modality.bands))

    def _map(self, shard: int, name: str) -> NDArray[Any]:
        found = self._maps.get((shard, name))
        if found is None:
            found = open_array(self._layout, self.metadata.shards[shard], name, self._maps)
            self._maps[shard, name] = found
        return found

    # ------------------------------------------------------------------------------- batching

    def batches(self, batch_size: int, bucket: bool = False) -> Iterator[dict[str, Any]]:
        """All samples in order, in batches as `collate` makes them.

        Where samples agree in shape, stored pixels are converted and normalised straight into
        their place in the batch, on several threads. With `bucket`, samples of equal shape come
        together, so that none is padded: `batch["window"]` tells which they are.
        """
        if batch_size < 1:
            raise LoadError(f"batch_size is {batch_size}; it must be at least 1")
        every = [self._row(i) for i in range(len(self))]
        for bucketed in self._buckets(every) if bucket else [every]:
            for start in range(0, len(bucketed), batch_size):
                rows = bucketed[start : start + batch_size]
                batch = self._batch(rows)
                yield collate([self._sample(row) for row in rows]) if batch is None else batch

    def _buckets(self, rows: list[int]) -> list[list[int]]:
        """Rows by the shape of their samples, in order within a bucket."""
        found: dict[tuple[int, ...], list[int]] = {}
        for row in rows:
            found.setdefault(self._shapes_of(row, *self._window_slice(row)), []).append(row)
        return list(found.values())

    def _batch(self, rows: list[int]) -> dict[str, Any] | None:
        """Some rows as one batch; None if they differ in shape."""
        windows = [self._window_slice(row) for row in rows]
        shapes = {self._shapes_of(row, *w) for row, w in zip(rows, windows, strict=True)}
        if len(shapes) != 1:
            return None
        if self._from_source is not None:
            self._from_source.read_ahead(rows)
        batch: dict[str, Any] = {
            modality.name: self._pixels(modality.name, rows, windows) for modality in self._inputs
        }
        batch["timestamps"] = {
            m.name: torch.stack([self._index.timestamps(m.name, row) for row in rows])
            for m in self._inputs
        }
        batch["timesteps"] = {
            m.name: torch.from_numpy(self._index.timesteps[m.name][rows].astype(np.int64))
            for m in self._inputs
        }
        targets = (self._stored(TARGET, row) for row in rows)
        batch["target"] = self._target(
            np.stack(
                [
                    target[window] if target.ndim else target
                    for target, window in zip(targets, windows, strict=True)
                ]
            )
        )
        batch["window"] = [f"{self._index.groups[row]}/{self._index.names[row]}" for row in rows]
        return batch

    def _shapes_of(self, row: int, rows: slice, columns: slice) -> tuple[int, ...]:
        height, width = int(self._index.heights[row]), int(self._index.widths[row])
        steps = (int(self._index.timesteps[m.name][row]) for m in self._inputs)
        return len(range(height)[rows]), len(range(width)[columns]), *steps

    def _pixels(
        self, name: str, rows: list[int], windows: list[tuple[slice, slice]]
    ) -> torch.Tensor:
        """Normalised pixels of samples of equal shape: no stored pixel is copied on the way."""
        first = self._stored(name, rows[0])[windows[0]]
        out = recycler.empty((len(rows), *first.shape))
        apply = self._normalizers[name].apply

        def fill(places: range) -> None:
            for k in places:
                apply(self._stored(name, rows[k])[windows[k]], out[k])

        in_parallel(fill, len(rows), first.size)
        return out

    def loader(
        self,
        batch_size: int | None = None,
        num_workers: int | None = None,
        shuffle: bool | None = None,
        **kwargs: Any,
    ) -> DataLoader[dict[str, Any]]:
        """A DataLoader with workers and batch size chosen for this dataset.

        Reading a memory map costs less than handing tensors between processes, so there are no
        workers unless samples are large, or decoded from the source. `loader.why` says what was
        chosen and why. Anything given here wins; train is shuffled.
        """
        sizes = [int(np.prod(self._stored(m.name, self._row(0)).shape)) * 4 for m in self._inputs]
        if self._crop and len(self):
            height, width = (
                int(x[self._row(0)]) for x in (self._index.heights, self._index.widths)
            )
            sizes = [size * self._crop**2 // (height * width) for size in sizes]
        sample_bytes = max(sum(sizes), 1)
        chosen = batch_size or int(
            min(max(2 ** int(np.log2(max(_BATCH_BYTES / sample_bytes, 1))), 1), 256)
        )
        workers = num_workers
        if workers is None:
            mapped = self._from_source is None
            workers = 0 if mapped and sample_bytes < 32 << 20 else min(4, os.cpu_count() or 1)
        loader: DataLoader[dict[str, Any]] = DataLoader(
            self,
            batch_size=chosen,
            num_workers=workers,
            shuffle=self.split == "train" if shuffle is None else shuffle,
            collate_fn=kwargs.pop("collate_fn", collate),
            **kwargs,
        )
        loader.why = (
            f"batch_size {chosen}: a sample is {sample_bytes / 2**20:.2f} MiB as float32, a batch "
            f"about {chosen * sample_bytes / 2**20:.0f} MiB; num_workers {workers}: "
            + (
                "reading the memory map is faster than handing tensors between processes"
                if workers == 0
                else "samples are large or decoded from the source: worth handing between processes"
            )
        )
        return loader


class _SplitIndex:
    """A split's index as arrays; texts are only decoded when asked for."""

    def __init__(self, table: pa.Table, modalities: list[str]) -> None:
        def column(name: str) -> NDArray[Any]:
            return numbers(table[name])

        self._table = table
        self.shards, self.rows = column("shard"), column("row")
        self.heights, self.widths = column("height"), column("width")
        self.offsets = {name: column(f"{name}.offset") for name in (*modalities, TARGET)}
        self.timesteps = {name: column(f"{name}.timesteps") for name in modalities}
        self._stamps: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {}
        self.groups: _Texts = _Texts(table["group"])
        self.names: _Texts = _Texts(table["name"])
        if "source_digest" in table.column_names:
            self.digests: _Texts = _Texts(table["source_digest"])

    def __len__(self) -> int:
        return len(self.rows)

    def timestamps(self, modality: str, row: int) -> torch.Tensor:
        """long (T, 3): day, month from 0, year."""
        if modality not in self._stamps:
            column = one_array(self._table[f"{modality}.timestamps"])
            self._stamps[modality] = (numbers(column.offsets), numbers(column.values))
        offsets, values = self._stamps[modality]
        found = values[offsets[row] : offsets[row + 1]].astype(np.int64)
        return torch.from_numpy(found.reshape(-1, 3))


class _Texts:
    """A text column, read one by one."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self._column = column

    def __getitem__(self, row: int) -> str:
        return str(self._column[row].as_py())
