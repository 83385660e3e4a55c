"""EvalDataset: a split of an ingested dataset, memory mapped.

Opening reads opening.json and the split's index; no window is scanned, and pixels are read when
a sample is asked for. Workers of a DataLoader share the maps.
"""

import functools
import math
import operator
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from numbers import Integral
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from eval_ingest.core.arguments import check_arguments
from eval_ingest.core.crops import Corner, split_cut
from eval_ingest.core.entry import Metadata
from eval_ingest.core.hub import SCHEME, HubAddress
from eval_ingest.core.kernels import Runs, gather_as_is
from eval_ingest.core.padding import padded_size
from eval_ingest.core.public import require_public
from eval_ingest.core.resolved import ModalityInput, Pad
from eval_ingest.core.spec import SPLITS
from eval_ingest.core.task import Task
from eval_ingest.errors import IntegrityError, LoadError, brief, optional_part, words_of
from eval_ingest.loading import shown
from eval_ingest.loading.collate import Ragged, Samples, collate
from eval_ingest.loading.memory import recycler
from eval_ingest.loading.normalize import (
    DEFAULT_METHOD,
    Normalizer,
    make_normalizer,
    pretrained_stats,
)
from eval_ingest.loading.on_device import Carrier
from eval_ingest.loading.packed import (
    PackedSamples,
    is_replaced,
    is_same,
    require_version,
    version_is_gone,
)
from eval_ingest.loading.parallel import in_parallel
from eval_ingest.loading.selection import drawn, share_of, strata_of
from eval_ingest.loading.windows import SampleWindows
from eval_ingest.settings import Settings
from eval_ingest.store.registry import require_metadata, require_opening
from eval_ingest.store.roots.base import EvalRoot
from eval_ingest.store.roots.open import open_root
from eval_ingest.store.seal import cured
from eval_ingest.store.split_index import TARGET, SplitIndex

if TYPE_CHECKING:
    # The source side is for datasets without packed samples alone.
    from eval_ingest.loading.from_source import SourceSamples
    from eval_ingest.loading.plot import SampleFigure

_OF_WORKERS = ("prefetch_factor", "persistent_workers", "timeout", "multiprocessing_context")
"""Arguments of DataLoader that it refuses where there are no workers."""
_MOST_FILLED_BYTES = 2 << 30
"""Of a sample that is larger than its window."""
_BATCH_BYTES = 64 << 20
"""`loader` makes batches of about this many bytes of float32 pixels."""


Statistics = Mapping[str, Mapping[str, float]]
"""Per band mean, std, min and max."""

CHANNELS_FIRST = (3, 2, 0, 1)
"""The axes of (H, W, T, C) as (C, T, H, W)."""

Transform = Callable[[dict[str, Any]], Any]

Normalize = Literal["dataset", "pretrained"] | Mapping[str, Statistics] | None
"""Which statistics samples are normalised with."""


def _check_batch_size(size: Any) -> int:
    if not isinstance(size, Integral) or isinstance(size, bool) or size < 1:
        raise LoadError(
            f"batch_size is {brief(size, 60)}; it must be a whole number, and at least 1"
        )
    return int(size)


def _pairs(corners: NDArray[np.int64]) -> list[Corner]:
    return [(top, left) for top, left in corners.tolist()]


def _is_shard(given: Any) -> bool:
    if not isinstance(given, Sequence) or [isinstance(k, Integral) for k in given] != [True] * 2:
        return False
    return bool(0 <= given[0] < given[1])


class EvalDataset(Dataset[dict[str, Any]]):
    """A split of an ingested eval dataset.

    `ds[i]` is a dict:

    | key | value |
    |---|---|
    | each modality | float32 (H, W, T, C), bands in `ds.bands[modality]`'s order |
    | timestamps | per modality long (T, 3): day, month from 0, year |
    | target | long (H, W) or scalar class, -1 invalid; or float32 (H, W) or scalar, NaN invalid |
    | window | "group/name" |
    | crop | where every crop of a window is a sample: its first row and column in the window |

    Samples are ordered as rslearn orders windows, by the SHA-256 of their names. `ds[10:20]` and
    `ds[[3, 1]]` are datasets of some of the samples.

    Args:
        name: the dataset, as in the registry, or where it is on the Hugging Face Hub:
            hf://ORG/REPO/NAME, with @REVISION after REPO for a certain one.
        split: train, val or test.
        root: the eval root; default OLMOEARTH_EVAL_DATASETS.
        version: the fingerprint that the dataset must have, or how it begins: scores on another
            version can't be compared. `ds.metadata.fingerprint` and `eval_ingest.info` tell it.
        modalities: only these, in this order: a name or several; default all.
        normalize: "dataset" (statistics of its train split), "pretrained" (OlmoEarth's), your own
            statistics {modality: {band: {"mean", "std", "min", "max"}}} of pixels (Sentinel-1 in
            dB), or None (stored values, Sentinel-1 linear).
            Normalised, pixels without data (a value that their raster declares for that, or NaN)
            become `nodata`.
        method: how statistics are used; see `core.norm.METHODS`.
        crop: a square of the dataset's crop size from the "center" or a "random" place; None: all.
            A dataset without a crop size is never cropped. Where the dataset says that every crop
            of a split's windows is a sample, these are the samples, whatever is given here.
        label_fraction: share of the train split, in (0, 1], or "10%", or a name in the spec's
            label_fractions: nested subsets, drawn by `seed`.
        stratified: draw label_fraction and max_samples so that each class (by a sample's most
            frequent label, of random crops the middle one's) or fifth of the targets has its share,
            rare ones first; nested too.
        seed: of label_fraction and max_samples.
        max_samples: at most so many samples, the first of those that label_fraction draws.
        nodata: what pixels without data are once normalised: 0, or NaN for models that mask them.
        channels_first: pixels as (C, T, H, W), as rslearn has them; views, not copies.
        transforms: called with each sample (a dict as above) last; gives what a batch is made of.

    Raises:
        UnknownDatasetError: no such dataset under the root; the message lists the near names.
        OutdatedError: it is of another version than is asked for.
        LoadError: an argument that the dataset can't satisfy.

    >>> ds = EvalDataset("tolbi_crops", "train", label_fraction=0.1)       # doctest: +SKIP
    >>> ds[0]["sentinel2_l2a"].shape                                       # doctest: +SKIP
    torch.Size([16, 16, 12, 12])
    """

    _order: NDArray[np.int64] | None = None
    """Rows of the split's index, a sample each; None: all of them."""
    part: NDArray[np.int64] | None = None
    """Which of the samples that it was opened with, as `ds[10:20]` has it; None: all of them."""

    def __init__(
        self,
        name: str,
        split: str,
        *,
        root: str | Path | None = None,
        version: str | None = None,
        modalities: str | Sequence[str] | None = None,
        normalize: Normalize = "dataset",
        method: str = DEFAULT_METHOD,
        crop: Literal["center", "random"] | None = "center",
        label_fraction: float | str = 1.0,
        stratified: bool = False,
        seed: int = 42,
        max_samples: int | None = None,
        nodata: float = 0.0,
        channels_first: bool = False,
        transforms: Transform | None = None,
    ) -> None:
        if isinstance(name, str) and name.startswith(SCHEME):
            address = HubAddress.parse(name)
            if address.name is None:
                raise LoadError(f"{name} names no dataset: hf://{address.repo}/DATASET")
            name, root = address.name, address.root
        self._arguments: dict[str, Any] = {
            "name": name, "split": split, "modalities": modalities, "normalize": normalize,
            "method": method, "crop": crop, "label_fraction": label_fraction,
            "stratified": stratified, "seed": seed, "max_samples": max_samples, "nodata": nodata,
            "channels_first": channels_first, "transforms": transforms,
        }  # fmt: skip
        check_arguments({**self._arguments, "root": root, "version": version}, LoadError)
        eval_root = open_root(Settings.load(), root)
        self._root = eval_root.address
        self._given_root = root
        opening = require_opening(eval_root, name)
        if version is not None:
            require_version(opening, version, eval_root)
        try:
            with cured(opening):
                self._open(eval_root, opening)
        except IntegrityError:
            now = require_metadata(eval_root, name)
            if version is not None or is_same(now, opening):
                raise
            with cured(now):
                self._open(eval_root, now)  # published at this moment
        self._order = self._draw()

    def _open(self, eval_root: EvalRoot, opening: Metadata) -> None:
        """Open a certain version of the dataset: see `core.entry.opening`."""
        self._opening, given = opening, self._arguments
        split, crop = given["split"], given["crop"]
        if split not in SPLITS:
            raise LoadError(f"no split {brief(split, 60)}; there are {', '.join(SPLITS)}")
        if crop not in ("center", "random", None):
            raise LoadError(f"no crop {brief(crop, 60)}; there are 'center', 'random' and None")
        self.name, self.split = given["name"], split
        if self._root.startswith(SCHEME):
            require_public(opening)
        self._store = eval_root.dataset(self.name)
        self._inputs = self._choose(given["modalities"])
        self._normalizers = {
            modality.name: self._normalizer(modality, given["method"]) for modality in self._inputs
        }
        self._cut = split_cut(self._opening.config, split)
        if crop is None:
            self._cut = replace(self._cut, sides=None)
        # Where every crop is a sample there is nothing to choose.
        self._random_crop = crop == "random" and self._cut.sides is not None
        self.channels_first, self._transforms = given["channels_first"], given["transforms"]
        self._index = self._read_index()
        self._refuse_filled_up()
        self._samples = self._open_samples()

    # -------------------------------------------------------------------------------- opening

    def _choose(self, modalities: str | Sequence[str] | None) -> list[ModalityInput]:
        known = {modality.name: modality for modality in self._opening.config.modalities}
        given = modalities if isinstance(modalities, list | tuple | NoneType) else [modalities]
        wanted = list(known) if given is None else list(given)
        unknown = [
            str(name)[:60] for name in wanted if not (isinstance(name, str) and name in known)
        ]
        if unknown or not wanted:
            raise LoadError(
                f"{self._opening.name} has no modality {', '.join(unknown) or '(none asked for)'}; "
                f"it has {', '.join(known)}"
            )
        return [known[name] for name in wanted]

    def _normalizer(self, modality: ModalityInput, method: str) -> Normalizer:
        stats = self.statistics(modality.name)
        if stats is None:
            return Normalizer(None, None)
        missing = tuple(
            (modality.bands.index(band), value)
            for band, values in self._opening.nodata.get(modality.name, {}).items()
            for value in values
        )
        nodata = self._arguments["nodata"]
        return make_normalizer(method, modality.bands, stats, modality.decibels, missing, nodata)

    def statistics(self, modality: str) -> Statistics | None:
        """Band statistics that a modality is normalised with; None where it isn't.

        Raises:
            LoadError: there are none, or no such modality.
        """
        self._choose([modality])
        normalize = self._arguments["normalize"]
        if normalize is None:
            return None
        if isinstance(normalize, Mapping):
            if modality not in normalize:
                raise LoadError(f"normalize= has no statistics for {modality}")
            given: Statistics = normalize[modality]
            return given
        if normalize == "dataset":
            return self._opening.norm_stats[modality]
        if normalize == "pretrained":
            return pretrained_stats(modality)
        raise LoadError(
            f"no normalize={brief(normalize, 60)}; there are 'dataset', 'pretrained', None, and "
            "statistics of your own by modality and band"
        )

    def _read_index(self) -> SplitIndex:
        path = self._store.layout.path / self._opening.splits[self.split].index
        modalities = [modality.name for modality in self._opening.config.modalities]
        return self._store.read_fixed(path, lambda: SplitIndex(path, self.name, modalities))

    def _refuse_filled_up(self) -> None:
        """Check that Pad and crop size don't make samples of small windows too large for memory."""
        index = self._index
        window = int(index.heights.max(initial=1)), int(index.widths.max(initial=1))
        parts = (*self._inputs, self._opening.config.label)
        pads = [padded_size(part.pad_of(self.split), *window) for part in parts]
        height, width = max(self._cut.size(*window), *pads, key=math.prod)
        depth = max(
            len(m.bands) * int(index.timesteps[m.name].max(initial=0)) for m in self._inputs
        )
        n_bytes = 4 * height * width * depth
        if n_bytes > _MOST_FILLED_BYTES and height * width > window[0] * window[1]:
            raise LoadError(
                f"samples of {self.name} are filled up to {height} x {width} pixels, "
                f"{n_bytes >> 30} GiB each, where windows have {window[0]} x {window[1]}; correct "
                "its Pad or crop size, and ingest it again"
            )

    def _open_samples(self) -> "PackedSamples | SourceSamples":
        if self._opening.spec.copy_mode != "index":
            return PackedSamples(self._store, self._opening, self._index)
        # The source side, with all that decoding needs; other datasets do without.
        what = f"{self.name} (copy: index), whose samples are decoded from {self._opening.source},"
        with optional_part("ingest", what):
            from eval_ingest.loading.from_source import SourceSamples
        return SourceSamples(self._opening, self._index)

    def _draw(self) -> NDArray[np.int64] | None:
        """The rows that are asked for, or None for all of them in order."""
        given = self._arguments
        share = share_of(given["label_fraction"], self._opening)
        if share != 1 and self.split != "train":
            raise LoadError(
                f"label_fraction is for the train split; {self.split} is always used whole"
            )
        strata = self._strata if given["stratified"] else None
        return drawn(len(self), share, given["max_samples"], given["seed"], strata)

    def _strata(self) -> NDArray[np.int64]:
        """A stratum per row: of a sample that is cut at random, that of the one in the middle."""
        targets = (self._stored_target(row, self._fixed_corner(row)) for row in range(len(self)))
        return strata_of(targets, self.task)

    def __getstate__(self) -> tuple[Any, ...]:
        given = (self._root, self._given_root, self._opening, self._arguments)
        return *given, self._order, self.part

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        # Opening again costs milliseconds; the maps themselves can't travel. What it is opened by
        # does, so that a worker reads the version that its loader counts, whatever was published
        # since.
        self._root, self._given_root, opening, self._arguments, order, self.part = state
        try:
            self._open(open_root(Settings.load(), self._root), opening)
        except IntegrityError as error:
            if is_replaced(self._store, opening):
                raise version_is_gone(opening) from error
            raise
        self._order = order

    # --------------------------------------------------------------------------------- asking

    def __len__(self) -> int:
        return len(self._index) if self._order is None else len(self._order)

    def __repr__(self) -> str:
        return shown.as_text(self)

    def _repr_html_(self) -> str:
        return shown.as_html(self)

    @property
    def arguments(self) -> dict[str, Any]:
        """What it was opened with, `root` too where it was given."""
        root = {} if self._given_root is None else {"root": str(self._given_root)}
        return {**self._arguments, **root}

    @cached_property
    def windows(self) -> SampleWindows:
        """Where and when each sample is: CRS, bounds, outline and times, as a table.

        Raises:
            LoadError: the window index isn't the one that this version was made with.
        """
        # Its columns need Arrow's compute functions, which take 0.2 s to import.
        from eval_ingest.store.outcomes import read_outcome

        index = read_outcome(self._store, "window_index")
        if index is None or index.fingerprint != self.metadata.fingerprints.get("window_index"):
            raise LoadError(
                f"the window index of {self.name} is missing, or newer than what is published; "
                f"run: eval-ingest ingest {self.name}"
            )
        rows = [self._row(i) for i in range(len(self))]
        keys = [(self._index.groups[row], self._index.names[row]) for row in rows]
        return SampleWindows(index.table, self.split, keys, self._footprints(rows))

    def _footprints(self, rows: Sequence[int]) -> NDArray[np.int64]:
        """Of each sample (N, 4), in pixels of its window: see `core.crops.Cut.footprint`."""
        pads = {modality.pad_of(self.split) for modality in self._inputs}
        sizes = self._index.sizes(rows)
        if self._random_crop or not (pads - {None} or self._cut.sides or self._cut.grid):
            return np.column_stack([np.zeros_like(sizes), sizes])
        footprint = functools.cache(partial(self._cut.footprint, pads))
        pairs = zip(map(tuple, sizes.tolist()), map(self._fixed_corner, rows), strict=True)
        return np.array([footprint(*at) for at in pairs], np.int64).reshape(-1, 4)

    def plot(
        self, i: int, prediction: Any = None, *, modality: str | None = None
    ) -> "SampleFigure":
        """A sample as a picture: its pixels, its label in the dataset's colours, and a legend.

        With crop="random" the middle of its window is shown, each time.

        Args:
            i: which sample.
            prediction: drawn beside the label: classes or numbers in the target's shape, or one
                score a class before it, (C, H, W) or (C,); a tensor or an array.
            modality: which one is shown; default: the first. Optical ones in true colour, radar as
                first band, last band and their difference.

        Returns:
            A matplotlib figure, which notebooks show; `.savefig("sample.png")` elsewhere.

        Raises:
            LoadError: no such modality, or the prediction has another shape.
        """
        from eval_ingest.loading.plot import plot_sample

        [wanted] = self._choose([self._inputs[0].name if modality is None else modality])
        row = self._row(i)
        corner = self._fixed_corner(row)
        stored = {wanted.name: np.asarray(self._stored(row, wanted, corner))}
        stored["target"] = self._target(self._stored_target(row, corner)).numpy()
        title = f"{self.name} {self.split} {i}: {self._index.window(row)}"
        return plot_sample(stored, wanted, self.task, title, prediction)

    def value_range(self, modality: str) -> tuple[float, float]:
        """The lowest and highest value of a modality as its samples have it, in train windows."""
        [wanted] = self._choose([modality])
        known = self._opening.norm_stats[modality]
        ends = np.array([[known[band][key] for band in wanted.bands] for key in ("min", "max")])
        if wanted.decibels:
            ends = 10 ** (ends / 10)
        out = torch.empty((2, 1, len(wanted.bands)))
        scaled = replace(self._normalizers[modality], missing=())
        scaled.apply(ends[:, None].astype(np.float32), out)
        return float(out.min()), float(out.max())

    def sides(self, i: int = 0) -> tuple[tuple[int, int], tuple[int, int]]:
        """Height and width of sample i, and of its window, in pixels."""
        row = self._row(i)
        window = self._index.size(row)
        return self._cut.size(*window), window

    def shape(self, i: int = 0) -> dict[str, tuple[int, ...]]:
        """The shape of each modality's pixels in sample i, without reading them."""
        row = self._row(i)
        found = dict(zip(self.bands, self._shapes_of(row), strict=False))
        if not self.channels_first:
            return found
        return {name: tuple(s[axis] for axis in CHANNELS_FIRST) for name, s in found.items()}

    @cached_property
    def metadata(self) -> Metadata:
        """All that is recorded about the dataset: metadata.json.

        Raises:
            OutdatedError: another version was published since this one was opened.
        """
        found = require_metadata(self._store.root, self.name)
        if not is_same(found, self._opening):
            raise version_is_gone(self._opening)
        return found

    @property
    def version(self) -> str:
        """The fingerprint of what is loaded, which `version=` takes."""
        return self._opening.fingerprint

    @property
    def task(self) -> Task:
        """What is predicted."""
        return self._opening.config.task

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
        return self._index.window(self._row(i))

    def key(self, i: int) -> tuple[str, Corner | None]:
        """What tells sample i from all others: its window, and where in it the crop begins.

        None where the window has but one sample.
        """
        row = self._row(i)
        return self._index.window(row), self._index.corner(row)

    def _row(self, i: Any) -> int:
        try:
            i = operator.index(i)
        except TypeError:
            raise TypeError(
                f"{brief(i, 60)} is no sample of {self.name} {self.split}: they are numbered 0 to "
                f"{len(self) - 1}; a split is opened by EvalDataset({self.name!r}, split=...), and "
                f"a modality is in a sample: ds[0][{self._inputs[0].name!r}]"
            ) from None
        if not -len(self) <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)} in {self.name} {self.split}")
        i %= len(self)
        return i if self._order is None else int(self._order[i])

    @overload
    def __getitem__(self, i: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, i: slice | Sequence[int] | NDArray[Any]) -> "EvalDataset": ...

    def __getitem__(
        self, i: int | slice | Sequence[int] | NDArray[Any]
    ) -> "dict[str, Any] | EvalDataset":
        if isinstance(i, slice):
            return self._some(range(len(self))[i])
        if isinstance(i, list | tuple) or getattr(i, "ndim", 0) == 1:
            chosen = np.asarray(i)
            if chosen.dtype != bool:
                return self._some(i)
            if len(chosen) != len(self):
                raise IndexError(f"a mask of {len(chosen)} for {len(self)} samples of {self.name}")
            return self._some(np.flatnonzero(chosen))
        row = self._row(i)
        return self._sample(row, self._corner(row))

    def _some(self, chosen: Any) -> "EvalDataset":
        """A dataset of some of the samples, in the order in which they are given."""
        some = object.__new__(type(self))
        some.__dict__ |= self.__dict__  # maps too: nothing is opened again
        some.__dict__.pop("windows", None)
        some._order = np.array([self._row(i) for i in chosen], np.int64)
        numbers = np.arange(len(self)) if self.part is None else self.part
        some.part = numbers[np.array([int(i) for i in chosen], np.int64)]
        return some

    def _sample(self, row: int, corner: Corner) -> dict[str, Any]:
        self._read_ahead([row], [corner])
        sample: dict[str, Any] = {}
        for modality in self._inputs:
            stored = self._stored(row, modality, corner)
            sample[modality.name] = recycler.empty(stored.shape)
            self._normalizers[modality.name].apply(stored, sample[modality.name])
        sample["timestamps"] = {
            modality.name: torch.from_numpy(self._index.timestamps(modality.name, row))
            for modality in self._inputs
        }
        sample["target"] = self._target(self._stored_target(row, corner))
        sample["window"] = self._index.window(row)
        if self._cut.grid is not None:
            sample["crop"] = corner
        self._turn(sample, CHANNELS_FIRST)
        return sample if self._transforms is None else self._transforms(sample)

    def _turn(self, pixels: dict[str, Any], axes: tuple[int, ...]) -> None:
        """Put the axes of all modalities in another order, where that is asked for."""
        if self.channels_first:
            for name in self.bands:
                pixels[name] = pixels[name].permute(axes)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[i] for i in range(len(self)))

    def __getitems__(self, indices: Sequence[int]) -> Sequence[dict[str, Any]]:
        """Samples for a DataLoader; of equal shape, they lie in one batch already."""
        rows = [self._row(i) for i in indices]
        corners = self._corners(rows)
        self._read_ahead(rows, _pairs(corners))
        batch = self._batch(rows, corners)
        return self._one_by_one(rows, corners) if batch is None else Samples(batch)

    def _one_by_one(self, rows: Sequence[int], corners: NDArray[np.int64]) -> list[dict[str, Any]]:
        samples = [self._sample(*at) for at in zip(rows, _pairs(corners), strict=True)]
        # What transforms give is theirs: it may well be of one shape.
        return samples if self._transforms is not None else [Ragged(sample) for sample in samples]

    def _fixed_corner(self, row: int) -> Corner:
        """Where the sample begins in its window, if nothing is left to chance: see `_corner`."""
        given = self._index.corner(row)
        if given is None:
            [given] = self._cut.corners(*self._index.size(row))
        return given

    def _corner(self, row: int, chance: torch.Generator | None = None) -> Corner:
        """Where the sample begins in its window: given, in the middle, or at random."""
        if not self._random_crop:
            return self._fixed_corner(row)
        top, left = self._cut.spare(*self._index.size(row))
        return (
            int(torch.randint(top + 1, (), generator=chance)),
            int(torch.randint(left + 1, (), generator=chance)),
        )

    def _corners(
        self, rows: Sequence[int], chance: torch.Generator | None = None
    ) -> NDArray[np.int64]:
        """The same of several (N, 2)."""
        found = np.zeros((len(rows), 2), np.int64)
        if self._index.corners is not None or self._random_crop:
            found[:] = [self._corner(row, chance) for row in rows] or found
        elif self._cut.sides is not None or self._cut.grid is not None:
            sizes = self._index.sizes(rows)
            for size in set(map(tuple, sizes.tolist())):
                [found[(sizes == size).all(axis=1)]] = self._cut.corners(*size)
        return found

    def _read_ahead(self, rows: Sequence[int], corners: Sequence[Corner]) -> None:
        names = [modality.name for modality in self._inputs]
        self._samples.read_ahead(rows, corners, self._cut.height, names)

    def _stored(self, row: int, modality: ModalityInput, corner: Corner) -> NDArray[Any]:
        """A sample's pixels as they are stored."""
        return self._cut.pixels(self._samples.array(row, modality.name), corner, modality.name)

    def _stored_target(self, row: int, corner: Corner) -> NDArray[Any]:
        if self._index.targets is not None:
            return np.asarray(self._index.targets[row])
        target = self._samples.array(row, TARGET)
        return self._cut.target(target, corner) if target.ndim else target

    def _target(self, stored: NDArray[Any]) -> torch.Tensor:
        kind = np.int64 if self.task.kind.has_classes else np.float32
        return torch.from_numpy(np.array(stored, dtype=kind))

    # ------------------------------------------------------------------------------- batching

    def batches(
        self,
        batch_size: int,
        bucket: bool = False,
        shard: tuple[int, int] = (0, 1),
        device: str | torch.device | None = None,
    ) -> Iterator[dict[str, Any]]:
        """All samples in order, in batches as `collate` makes them.

        Where samples agree in shape, stored pixels are converted and normalised straight into
        their place in the batch, on several threads. With `bucket`, samples of equal shape come
        together, so that none is padded: `batch["window"]` tells which they are. With `shard`
        (k, n) only every n-th batch from the k-th on, so that n ranks share a split.

        With `device`, stored integers are carried there, where they are converted, normalised and
        masked while the batch before is worked on; all tensors of a batch are there.

        Raises:
            LoadError: the batch size, the shard or the device can't be.
        """
        if not _is_shard(shard):
            raise LoadError(f"shard is {shard!r}; it must be (k, n) with 0 <= k < n")
        first, ranks = shard
        batch_size = _check_batch_size(batch_size)
        check_arguments({"bucket": bucket}, LoadError)
        every = list(range(len(self))) if self._order is None else self._order.tolist()
        turns = [
            bucketed[start : start + batch_size]
            for bucketed in (self._buckets(every) if bucket else [every])
            for start in range(0, len(bucketed), batch_size)
        ][first::ranks]
        asked = self._asked_for(turns, self._chance())
        if device is None:
            yield from self._made(asked)
        else:
            try:
                carrier = Carrier(torch.device(device), self._normalizers)
            except (RuntimeError, TypeError) as error:  # torch's: no such device, no driver
                raise LoadError(f"device={device!r} can't be had: {words_of(error)}") from error
            yield from carrier.batches(self._made(asked, carrier))

    def _chance(self) -> torch.Generator | None:
        """Where random crops of `batches` come from: torch's state when they begin, and no more.

        They are made in another thread, or ahead of the caller, who draws from that state as well.
        """
        if not self._random_crop:
            return None
        return torch.Generator().manual_seed(int(torch.randint(1 << 62, ())))

    def _made(
        self,
        asked: Iterable[tuple[list[int], NDArray[np.int64]]],
        carrier: Carrier | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Batches of these rows and corners; a carrier makes their pixels where it brings them."""
        for rows, corners in asked:
            # Without a name here, which would keep its memory from the next one.
            yield self._batch(rows, corners, carrier) or collate(self._one_by_one(rows, corners))

    def _asked_for(
        self, turns: Iterable[list[int]], chance: torch.Generator | None
    ) -> Iterator[tuple[list[int], NDArray[np.int64]]]:
        """Rows with their corners, whose samples are being read, those of the next ones too."""
        coming = []
        for rows in turns:
            coming.append((rows, corners := self._corners(rows, chance)))
            self._read_ahead(rows, _pairs(corners))
            if len(coming) > self._samples.reads_in_background:
                yield coming.pop(0)
        yield from coming

    def _buckets(self, rows: list[int]) -> list[list[int]]:
        """Rows by the shape of their samples, in order within a bucket."""
        found: dict[tuple[tuple[int, ...], ...], list[int]] = {}
        for row in rows:
            found.setdefault(self._shapes_of(row), []).append(row)
        return list(found.values())

    def _batch(
        self, rows: list[int], corners: NDArray[np.int64], carrier: Carrier | None = None
    ) -> dict[str, Any] | None:
        """Some rows as one batch; None if they differ in shape, or are each transformed."""
        if self._transforms is not None:
            return None
        index, chosen = self._index, np.array(rows, np.int64)
        steps = {m.name: index.timesteps[m.name][chosen] for m in self._inputs}
        windows = set(map(tuple, index.sizes(rows).tolist()))
        if len({self._sizes_of(*window) for window in windows}) != 1 or not all(
            (found == found[0]).all() for found in steps.values()
        ):
            return None
        batch: dict[str, Any] = {
            modality.name: self._pixels(modality, rows, corners, carrier)
            for modality in self._inputs
        }
        batch["timestamps"] = {
            name: torch.from_numpy(index.stacked_timestamps(name, chosen)) for name in steps
        }
        batch["timesteps"] = {
            name: torch.from_numpy(found.astype(np.int64)) for name, found in steps.items()
        }
        batch["target"] = self._target(self._stored_targets(rows, corners))
        batch["window"] = index.windows(chosen)
        if self._cut.grid is not None:
            batch["crop"] = _pairs(corners)
        self._turn(batch, (0, *(axis + 1 for axis in CHANNELS_FIRST)))
        return batch

    def _sizes_of(self, height: int, width: int) -> tuple[tuple[int, int], ...]:
        """Height and width of each modality, and of a target of pixels, by those of the window."""
        pads = [modality.pad_of(self.split) for modality in self._inputs]
        if self.task.kind.per_pixel:
            pads.append(self._opening.config.label.pad_of(self.split))
        return tuple(self._cut.size_with(pad, height, width) for pad in pads)

    def _shapes_of(self, row: int) -> tuple[tuple[int, ...], ...]:
        """The shape of each modality's pixels in a sample, and of a target of pixels."""
        sizes, count = self._sizes_of(*self._index.size(row)), len(self._inputs)
        pixels = (
            (*size, int(self._index.timesteps[modality.name][row]), len(modality.bands))
            for size, modality in zip(sizes, self._inputs, strict=False)
        )
        return *pixels, *sizes[count:]

    def _pixels(
        self,
        modality: ModalityInput,
        rows: list[int],
        corners: NDArray[np.int64],
        carrier: Carrier | None,
    ) -> torch.Tensor:
        """Normalised pixels of samples of equal shape: no stored pixel is copied on the way."""
        if carrier is not None:
            pairs = zip(rows, _pairs(corners), strict=True)
            stored = [self._stored(row, modality, corner) for row, corner in pairs]
            return carrier.pixels(modality.name, stored)
        normalizer, places = self._normalizers[modality.name], _pairs(corners)
        first = self._stored(rows[0], modality, places[0])
        out = recycler.empty((len(rows), *first.shape))
        pad = modality.pad_of(self.split)
        runs = self._runs(rows, corners, modality.name, pad) if normalizer.is_affine else None

        def fill(part: range) -> None:
            if runs is not None:
                normalizer.gather(runs, part, out)
                return
            for k in part:
                normalizer.apply(self._stored(rows[k], modality, places[k]), out[k])

        in_parallel(fill, len(rows), first.size)
        return out

    def _runs(
        self, rows: list[int], corners: NDArray[np.int64], name: str, pad: Pad | None
    ) -> list[Runs] | None:
        """Where the samples of a batch can be gathered from; None: each is made on its own."""
        size = self._cut.rectangle(self._index.sizes(rows), corners, pad)
        if size is None or not isinstance(self._samples, PackedSamples):
            return None
        return self._samples.runs(rows, corners, size, name)

    def _stored_targets(self, rows: list[int], corners: NDArray[np.int64]) -> NDArray[Any]:
        if self._index.targets is not None:
            return np.asarray(self._index.targets[rows])
        pad = self._opening.config.label.pad_of(self.split)
        per_pixel = self.task.kind.per_pixel
        runs = self._runs(rows, corners, TARGET, pad) if per_pixel else None
        if runs is None:
            pairs = zip(rows, _pairs(corners), strict=True)
            return np.stack([self._stored_target(*at) for at in pairs])
        out = np.empty((len(rows), runs[0].rows, runs[0].items), runs[0].dtype)
        for some in runs:
            gather_as_is(some, out)
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
        workers unless samples are large, or decoded from the source. Anything given here wins,
        every argument of DataLoader can be given, and `loader.why` says what was chosen and why.
        Train is shuffled, unless a sampler says the order. What DataLoader takes for workers alone,
        such as prefetch_factor, makes some.
        """
        check_arguments({"num_workers": num_workers}, LoadError)
        if batch_size is not None:
            batch_size = _check_batch_size(batch_size)
        size = self._sample_bytes()
        orders = [name for name in ("sampler", "batch_sampler") if kwargs.get(name) is not None]
        why = []
        if kwargs.get("batch_sampler") is None:
            fitting = 1 << (max(_BATCH_BYTES // size, 1).bit_length() - 1)
            kwargs["batch_size"] = batch_size or min(fitting, 256)
            reason = "as given" if batch_size else (
                f"a sample is {size / 2**20:.2f} MiB as float32, a batch "
                f"about {kwargs['batch_size'] * size / 2**20:.0f} MiB"
            )  # fmt: skip
            why.append(f"batch_size {kwargs['batch_size']}: {reason}")
        elif batch_size is not None:
            raise LoadError("batch_size and batch_sampler exclude each other: it makes the batches")
        mapped = isinstance(self._samples, PackedSamples) and size < 32 << 20
        workers = num_workers
        reason = "as given"
        if workers is None:
            asking = [name for name in _OF_WORKERS if kwargs.get(name)]
            workers = 0 if mapped and not asking else min(4, os.cpu_count() or 1)
            if not mapped:
                reason = "samples are large or decoded from the source: worth handing over"
            elif asking:
                reason = f"{asking[0]} is for workers alone"
            else:
                reason = "reading the memory map is faster than handing tensors between processes"
        why.append(f"num_workers {workers}: {reason}")
        if shuffle is not None or not orders:
            kwargs["shuffle"] = self.split == "train" if shuffle is None else shuffle
            reason = "as given" if shuffle is not None else f"the split is {self.split}"
            why.append(f"shuffle {kwargs['shuffle']}: {reason}")
        else:
            why.append(f"order: by the {orders[0]} that was given")
        kwargs.setdefault("collate_fn", collate)
        loader: DataLoader[dict[str, Any]] = DataLoader(self, num_workers=workers, **kwargs)
        loader.why = "; ".join(why)
        return loader

    def _sample_bytes(self) -> int:
        """Of the first sample's pixels as float32; at least 1."""
        if not len(self):
            return 1
        shapes = self._shapes_of(self._row(0))[: len(self._inputs)]
        return max(4 * sum(map(math.prod, shapes)), 1)
