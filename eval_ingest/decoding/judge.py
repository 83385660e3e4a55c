"""One window: its metadata parsed, its rasters decoded into a sample, and judged.

The values are those of rslearn's ModelDataset; only the order of axes and of bands is ours.
"""

import contextlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from eval_ingest.core.copy_config import rslearn_config
from eval_ingest.core.crops import starts
from eval_ingest.core.resolved import (
    BandSet,
    LabelInput,
    Layer,
    MaskInput,
    ModalityInput,
    ResolvedConfig,
    size_text,
)
from eval_ingest.core.task import IGNORE_LABEL, Task
from eval_ingest.core.validate import Problem
from eval_ingest.decoding.beside import (
    check_beside,
    check_content,
    check_crs_of,
    check_unread,
    is_opened,
)
from eval_ingest.decoding.fallback import InMemory, read_features, read_raster
from eval_ingest.decoding.geotiff import decode_geotiff
from eval_ingest.decoding.grid import Grid, band_set_dirname
from eval_ingest.decoding.isolation import Result, isolated
from eval_ingest.decoding.limits import (
    MAX_CROPS,
    WINDOW_BYTES,
    Budget,
    most_bytes_of,
    parse_json,
    too_large,
)
from eval_ingest.decoding.machine import blame
from eval_ingest.decoding.masks import apply_mask, hidden_pixels
from eval_ingest.decoding.metadata import (
    Interval,
    WindowMetadata,
    items_interval,
    parse_items,
    parse_metadata,
)
from eval_ingest.decoding.numpy_raster import decode_numpy
from eval_ingest.decoding.problems import Unreadable
from eval_ingest.decoding.rasters import (
    StoredRaster,
    assemble,
    choose_reads,
    is_all,
    nodata_of,
    plan_reads,
)
from eval_ingest.decoding.sidecars import (
    GROUP_COUNTS,
    GeotiffSidecar,
    NumpySidecar,
    parse_group_counts,
    steps_of_group,
)
from eval_ingest.decoding.targets import feature_target, raster_target, vector_target
from eval_ingest.errors import words_of
from eval_ingest.settings import MOST_WINDOW_MIB
from eval_ingest.sources.base import WindowFiles, WindowReader
from eval_ingest.sources.listing import MOST_FILES

if TYPE_CHECKING:
    from eval_ingest.decoding.features import Features

JUDGED_BYTES = MOST_WINDOW_MIB << 20
"""That a window may have which was found valid by a run with limits of its own."""

_RSLEARN_S = 300.0
"""That rslearn may take for one layer of a window, and to be imported before the first."""


@dataclass
class ModalitySample:
    """A window's pixels of one modality."""

    pixels: NDArray[Any]
    """(H, W, T, C) in the stored type, bands in the modality's order."""
    timestamps: list[Interval] | None
    """Start and end per timestep; None if the rasters don't say."""
    nodata: NDArray[np.float64] | None = None
    """(T, C) what the rasters declare to be no data, NaN where that is nothing; None: nowhere."""


@dataclass
class WindowSample:
    """A window as read: what is missing is told in `problems`."""

    files: WindowFiles
    metadata: WindowMetadata | None = None
    layers: list[str] = field(default_factory=list)
    """Completed item groups of the layers that are read, such as `sentinel2.3`."""
    modalities: dict[str, ModalitySample] = field(default_factory=dict)
    target: NDArray[Any] | None = None
    """(H, W) or scalar; int64 class ids with -1 invalid, or float32 with NaN invalid."""
    crop_targets: list[float] = field(default_factory=list)
    """Where the target is one of a window and its crops are samples: of each crop, grid by grid."""
    problems: list[Problem] = field(default_factory=list)


def read_window(
    source: WindowReader,
    files: WindowFiles,
    config: ResolvedConfig,
    wanted: Callable[[WindowMetadata], bool] = lambda _: True,
    window_bytes: int = WINDOW_BYTES,
) -> WindowSample | None:
    """Read and judge a window. Broken data becomes problems; only a lost source raises.

    Returns None for a window that isn't wanted, before any raster is read.

    Args:
        source: reads the window's files.
        files: which there are.
        config: what is read of them.
        wanted: tells by the metadata whether the window is.
        window_bytes: that its files, and its pixels unpacked, may have.

    Raises:
        SourceError: a file has gone or changed since it was listed.
        MachineError: this machine can't read on, whatever the data.
    """
    try:
        return _read_window(_WindowReader(source, files, config, Budget(window_bytes)), wanted)
    except (MemoryError, ImportError) as error:
        blame(error)
        raise


def _read_window(
    reader: "_WindowReader", wanted: Callable[[WindowMetadata], bool]
) -> WindowSample | None:
    files, config = reader.files, reader.config
    sample = WindowSample(files)
    sample.layers = [
        f"{layer.name}.{item_group}" if item_group else layer.name
        for layer in config.layers
        for item_group in files.completed(layer.name)
    ]
    with _told(sample):
        sample.metadata = reader.metadata()
        if not wanted(sample.metadata):
            return None
        reader.check_files(sample.metadata.grid)
        reader.check_items()
    if sample.metadata is None or sample.problems:
        return sample
    grid = sample.metadata.grid
    for modality in config.modalities:
        with _told(sample):
            found = reader.modality(modality, grid)
            if found is not None:
                sample.modalities[modality.name] = found
                _check_pixels(modality, found.pixels)
    with _told(sample):
        target = reader.target(grid)
        if not config.task.kind.per_pixel:
            sample.crop_targets = reader.crop_targets(grid)
        sample.target = target
        _check_target(config.task, target)
        if not sample.problems:
            check_unread(files, reader.done, reader.read)
    return sample


@contextlib.contextmanager
def _told(sample: WindowSample) -> Iterator[None]:
    """What can't be read is a problem of the window."""
    try:
        yield
    except Unreadable as stop:
        sample.problems.append(stop.problem)


class _RasterFile(NamedTuple):
    """What a raster's file holds."""

    pixels: NDArray[Any]
    """(H, W, T, C) in the stored type."""
    times: list[Interval] | None
    nodata: float | None
    """As it declares itself, or else config.json."""


@dataclass
class _WindowReader:
    source: WindowReader
    files: WindowFiles
    config: ResolvedConfig
    budget: Budget
    done: set[str] = field(default_factory=set)
    """The files that were read, and looked at as what they are."""
    items: dict[str, Any] = field(default_factory=dict)
    """By layer, its item groups as items.json has them."""
    has_data: bool = False
    """Some raster of the modality holds more than the nodata value that it declares."""
    features: dict[tuple[str, int], "Features"] = field(default_factory=dict)
    """By layer and item group."""
    packed: dict[str, tuple["_RasterFile", list[int]]] = field(default_factory=dict)
    """By folder, rasters that hold several item groups, and the timesteps of each of these."""

    def read(self, path: str) -> bytes:
        """A file's bytes, if it isn't larger than such a file may be."""
        file = self.files.by_path[path]
        most = most_bytes_of(path, self.budget.total)
        if file.size > most:
            raise too_large(f"{path} has {file.size:,} bytes", most)
        self.done.add(path)
        return self.source.read(self.files.group, self.files.name, file)

    def _json(self, path: str, code: str) -> Any:
        return parse_json(self.read(path), path, code)

    def metadata(self) -> WindowMetadata:
        data = self._present("metadata.json", "metadata_missing")
        return parse_metadata(parse_json(data, "metadata.json", "metadata_unreadable"))

    def check_files(self, grid: Grid) -> None:
        """Refuse what is too large, or would make GDAL read something else, before any of it is."""
        if len(self.files.files) > MOST_FILES:
            detail = f"it has {len(self.files.files):,} files, more than {MOST_FILES:,}"
            raise Unreadable("window_too_large", detail)
        if self.files.n_bytes > self.budget.total:
            raise too_large(f"its files have {self.files.n_bytes:,} bytes", self.budget.total)
        if grid.width * grid.height > self.budget.total:
            size = f"bounds of {grid.width} x {grid.height} pixels"
            raise too_large(size, self.budget.total)
        for cut in self.config.grids:
            sides = zip((grid.height, grid.width), cut.sides, strict=True)
            crops = math.prod(len(starts(*side, cut.overlap)) for side in sides)
            if crops > MAX_CROPS:
                raise Unreadable(
                    "window_too_large",
                    f"it has {crops:,} crops of {size_text(cut.size)} pixels, more than "
                    f"{MAX_CROPS:,}",
                )
        check_beside(self.files, self.read)

    def modality(self, modality: ModalityInput, grid: Grid) -> ModalitySample | None:
        """Stack all parts along time; None if the modality is optional and absent."""
        stack: list[StoredRaster] = []
        times: list[Interval | None] = []
        self.has_data = False
        for part in modality.parts:
            for layer, item_group in choose_reads(self.files, part, modality.name):
                raster, stamps = self._raster(
                    self.config.layer(layer), item_group, modality.bands, grid
                )
                stack.append(raster)
                times += stamps
        if not stack:
            return None
        if not self.has_data:
            raise Unreadable("input_nodata", f"{modality.name} is its nodata value everywhere")
        pixels = assemble(stack, np.dtype(modality.dtype))
        if modality.mask is not None:
            apply_mask(pixels, self._mask(modality.mask, grid), modality.mask, modality.name)
        known = [time for time in times if time is not None]
        return ModalitySample(
            pixels,
            known if len(known) == len(times) else None,
            nodata_of(stack, len(modality.bands), modality.dtype),
        )

    def _mask(self, mask: MaskInput, grid: Grid) -> NDArray[Any]:
        """The raster (H, W, T) that hides pixels."""
        chosen = choose_reads(self.files, mask.part, f"mask {mask.part.key}")
        found = [
            self._raster(self.config.layer(layer), item_group, (mask.band,), grid)[0]
            for layer, item_group in chosen
        ]
        return np.concatenate([r.pixels[..., r.order[0]] for r in found], axis=2)

    def _raster(
        self, layer: Layer, item_group: int, bands: tuple[str, ...], grid: Grid
    ) -> tuple["StoredRaster", list[Interval | None]]:
        """Pixels of the bands, and the timesteps' intervals."""
        result: NDArray[Any] | None = None
        stamps: list[Interval | None] = []
        declared: list[float | None] = [None] * len(bands)
        reads, lacking = plan_reads(layer.band_sets, bands)
        if lacking:
            raise Unreadable("raster_bands", f"{layer.name} lacks {', '.join(lacking)}")
        for band_set, sources, places in reads:
            pixels, times, nodata = self._band_set(layer.name, item_group, band_set, grid)
            if result is None:
                stamps = self._or_items(times, layer.name, item_group, pixels.shape[2])
            if len(sources) == len(bands):
                return StoredRaster(pixels, sources, (nodata,) * len(bands)), stamps
            for place in places:
                declared[place] = nodata
            if result is None:
                result = np.zeros((*pixels.shape[:3], len(bands)), pixels.dtype)
            elif result.shape[:3] != pixels.shape[:3]:
                raise Unreadable(
                    "raster_bands",
                    f"{layer.name}, {' '.join(band_set.bands)}: other timesteps than the other "
                    "band sets",
                )
            result = result.astype(np.promote_types(result.dtype, pixels.dtype), copy=False)
            result[..., list(places)] = pixels[..., list(sources)]
        assert result is not None, "some band is wanted"
        return StoredRaster(result, tuple(range(len(bands))), tuple(declared)), stamps

    def _band_set(
        self, layer: str, item_group: int, band_set: BandSet, grid: Grid
    ) -> "_RasterFile":
        """What is stored of one band set's item group."""
        if not band_set.decoded:
            return self._through_rslearn(layer, item_group, band_set)
        packed = self.config.packs_layers
        folder = f"layers/{layer}.{item_group}" if item_group and not packed else f"layers/{layer}"
        base = f"{folder}/{band_set_dirname(band_set.bands)}"
        if packed:
            raster = self._unpacked(base, item_group, band_set, grid)
        else:
            raster = self._file(base, band_set, grid)
        empty = packed and not raster.pixels.size
        self.has_data = self.has_data or empty or not is_all(raster.pixels, raster.nodata)
        return raster

    def _unpacked(self, base: str, item_group: int, band_set: BandSet, grid: Grid) -> "_RasterFile":
        """An item group's timesteps of a raster that holds several: one read a layer."""
        if base not in self.packed:
            counts = parse_group_counts(self._present(f"{base}/{GROUP_COUNTS}"), base)
            self.packed[base] = self._file(base, band_set, grid), counts
        (pixels, times, nodata), counts = self.packed[base]
        steps = steps_of_group(counts, item_group, pixels.shape[2], base)
        return _RasterFile(pixels[:, :, steps], None if times is None else times[steps], nodata)

    def _present(self, path: str, code: str = "raster_missing") -> bytes:
        """A file's bytes; without it, the window is invalid by that code."""
        if path not in self.files.by_path:
            raise Unreadable(code, f"{path} is not there")
        return self.read(path)

    def _file(self, base: str, band_set: BandSet, grid: Grid) -> "_RasterFile":
        """What a band set's folder holds, on the window's grid."""
        path = f"{base}/data.npy" if band_set.numpy else f"{base}/geotiff.tif"
        data = self._present(path)
        try:
            read = self._numpy if band_set.numpy else self._geotiff
            raster = read(base, data, grid)
        except Unreadable as stop:
            raise Unreadable(stop.code, f"{path}: {stop.detail}") from stop
        self.budget.spend(raster.pixels.nbytes, path)
        timesteps, channels = raster.pixels.shape[2:]
        if raster.times is not None and len(raster.times) != timesteps:
            raise Unreadable(
                "raster_bands", f"{base}: {len(raster.times)} timestamps for {timesteps} timesteps"
            )
        if channels != len(band_set.bands):
            raise Unreadable(
                "raster_bands",
                f"{path} has {channels} x {timesteps} bands x timesteps, config.json says "
                f"{len(band_set.bands)} bands",
            )
        found = raster.pixels.dtype
        if found != band_set.dtype and found.name != band_set.dtype:  # asking its name takes long
            detail = f"{path} is {found.name}, config.json says {band_set.dtype}"
            raise Unreadable("raster_dtype", detail)
        if raster.nodata is None and band_set.nodata_value is not None:
            return raster._replace(nodata=band_set.nodata_value)
        return raster

    def _numpy(self, base: str, data: bytes, grid: Grid) -> "_RasterFile":
        path = f"{base}/metadata.json"
        text = self._present(path)
        check_crs_of(parse_json(text, path, "raster_unreadable"), path)
        sidecar = NumpySidecar.parse(text)
        pixels = decode_numpy(data, sidecar, grid, self.budget.left)
        return _RasterFile(pixels, sidecar.intervals, sidecar.nodata_value)

    def _geotiff(self, base: str, data: bytes, grid: Grid) -> "_RasterFile":
        path = f"{base}/metadata.json"
        there = path in self.files.by_path
        sidecar = GeotiffSidecar.parse(self.read(path) if there else b"{}")
        pixels, header = decode_geotiff(data, grid, self.budget.left)
        height, width, bands = pixels.shape
        pixels = pixels.reshape(height, width, *sidecar.shape(bands)).swapaxes(2, 3)
        return _RasterFile(pixels, sidecar.intervals, header.nodata)

    def _or_items(
        self, times: list[Interval] | None, layer: str, item_group: int, timesteps: int
    ) -> list[Interval | None]:
        """A sidecar's intervals, or the item's time range for a single timestep without them."""
        if times is not None:
            return list(times)
        if timesteps == 1:
            return [self._item_interval(layer, item_group)]
        raise Unreadable("raster_bands", f"{layer}: {timesteps} timesteps without timestamps")

    def check_items(self) -> None:
        """rslearn reads items.json with every raster, and fails on one that is damaged."""
        if "items.json" in self.files.by_path:
            self.items = parse_items(self._json("items.json", "metadata_unreadable"))

    def _item_interval(self, layer: str, item_group: int) -> Interval | None:
        if layer not in self.items:
            return None
        return items_interval(self.items[layer], item_group)

    def _through_rslearn(self, layer: str, item_group: int, band_set: BandSet) -> "_RasterFile":
        """Whatever the fast path doesn't know, rslearn reads: other formats, other storages."""
        pixels, times = self._by_rslearn(read_raster, layer, item_group, band_set.bands)
        assert pixels is not None
        self.budget.spend(pixels.nbytes, layer)
        self.has_data = True  # what is nodata there, only the pixels tell
        return _RasterFile(pixels, times, band_set.nodata_value)

    def _by_rslearn(
        self, function: Callable[..., Result], layer: str, item_group: int, *more: Any
    ) -> Result:
        config, found = rslearn_config(self.config), self._json("metadata.json", "")
        described = {"group": self.files.group, "name": self.files.name}
        described |= {key: found[key] for key in ("projection", "bounds")}
        stored = InMemory(json.dumps(config), described, self._checked_layer(layer, item_group))
        try:
            return isolated.run(function, stored, layer, item_group, *more, seconds=_RSLEARN_S)
        except Unreadable as stop:
            broken_label = function.__name__ == "read_features" and stop.code == "raster_unreadable"
            code = "label_unreadable" if broken_label else stop.code
            raise Unreadable(code, f"{layer}: {stop.detail}") from stop

    def _checked_layer(self, layer: str, item_group: int) -> dict[str, bytes]:
        """The files that rslearn may open, looked at."""
        folders = {f"layers/{layer}.{item_group}" if item_group else f"layers/{layer}"}
        if self.config.packs_layers:
            folders.add(f"layers/{layer}")
        here = {
            path for folder in folders for path in self._by_layer.get(folder, ()) if is_opened(path)
        }
        check_content(here - self.done, self.read)
        return {path: self.read(path) for path in here}

    @cached_property
    def _by_layer(self) -> dict[str, list[str]]:
        """The files below each folder of an item group."""
        found: dict[str, list[str]] = {}
        for path in self.files.by_path:
            found.setdefault("/".join(path.split("/", 2)[:2]), []).append(path)
        return found

    def target(self, grid: Grid) -> NDArray[Any]:
        """The target, without padding: (H, W) or scalar."""
        label = self.config.label
        task = self.config.task
        chosen = choose_reads(self.files, label.part, "label")
        if not chosen:
            raise Unreadable("label_missing", "no label layer is completed")
        if task.kind.per_pixel:
            return self._raster_target(label, chosen, task, grid)
        within = (found.within(grid.bounds) for found in self._features(chosen, grid))
        return vector_target(chain.from_iterable(within), task)

    def crop_targets(self, grid: Grid) -> list[float]:
        """The targets of every crop, of each of the configuration's grids in turn.

        A crop that no labelled feature reaches into has none: -1 or NaN.
        """
        if not self.config.grids:
            return []
        from eval_ingest.decoding.features import first_of_crops

        chosen = choose_reads(self.files, self.config.label.part, "label")
        features, task = self._features(chosen, grid), self.config.task
        value_of = partial(feature_target, task=task)
        none = IGNORE_LABEL if task.kind.has_classes else np.nan
        grids = (
            first_of_crops(chain.from_iterable(features), grid, cut, value_of, none)
            for cut in self.config.grids
        )
        return [*chain.from_iterable(grids)]

    def _raster_target(
        self, label: LabelInput, chosen: list[tuple[str, int]], task: Task, grid: Grid
    ) -> NDArray[Any]:
        if len(chosen) != 1 or label.band is None:
            raise Unreadable("raster_bands", f"{len(chosen)} label rasters; one is needed")
        layer, item_group = chosen[0]
        raster, _ = self._raster(self.config.layer(layer), item_group, (label.band,), grid)
        if raster.pixels.shape[2] != 1:
            raise Unreadable("raster_bands", f"the label has {raster.pixels.shape[2]} timesteps")
        stored = raster.pixels[:, :, 0, raster.order[0]]
        if task.kind.has_classes and stored.dtype.kind == "f" and not np.isfinite(stored).all():
            raise Unreadable("label_out_of_range", "NaN, or infinity, where class ids belong")
        with np.errstate(invalid="ignore"):
            target = raster_target(stored.astype(label.dtype), task)
        if label.mask is not None:
            hidden = hidden_pixels(self._mask(label.mask, grid), label.mask)
            target[hidden[:, :, 0]] = IGNORE_LABEL if task.kind.has_classes else np.nan
        return target

    def _features(self, chosen: list[tuple[str, int]], grid: Grid) -> list["Features"]:
        """The features of item groups, parsed once for the window and all its crops."""
        for layer, item_group in chosen:
            if (layer, item_group) not in self.features:
                read = self._geojson if self.config.layer(layer).geojson else self._other_features
                self.features[layer, item_group] = read(layer, item_group, grid)
        return [self.features[read] for read in chosen]

    def _other_features(self, layer: str, item_group: int, grid: Grid) -> "Features":
        import shapely

        from eval_ingest.decoding.features import Features

        _, found = self._by_rslearn(read_features, layer, item_group)
        return Features([shapely.from_wkb(wkb) for wkb, _ in found], [p for _, p in found])

    def _geojson(self, layer: str, item_group: int, grid: Grid) -> "Features":
        from eval_ingest.decoding.features import Features

        folder = f"layers/{layer}.{item_group}" if item_group else f"layers/{layer}"
        path = f"{folder}/data.geojson"
        data = self._present(path, "label_missing")
        collection = parse_json(data, path, "label_unreadable")
        check_crs_of(collection, path, "label_unreadable")
        try:
            return Features.parse(collection, grid)
        except Exception as error:  # geometry libraries raise many types on broken shapes
            blame(error)
            raise Unreadable("label_unreadable", f"{path}: {words_of(error)}") from error


def sample_arrays(sample: WindowSample, config: ResolvedConfig) -> dict[str, NDArray[Any]]:
    """A valid window's arrays as packed: per modality (H, W, T, C), and `target`."""
    assert sample.metadata is not None and sample.target is not None, "the window isn't valid"
    arrays = {}
    for modality in config.modalities:
        found = sample.modalities.get(modality.name)
        if found is None:
            height, width = sample.metadata.grid.height, sample.metadata.grid.width
            arrays[modality.name] = np.zeros(
                (height, width, 0, len(modality.bands)), modality.dtype
            )
        else:
            arrays[modality.name] = found.pixels
    arrays["target"] = sample.target
    return arrays


def _check_pixels(modality: ModalityInput, pixels: NDArray[Any]) -> None:
    """Raise for pixels that are wholly nodata, or wholly not finite."""
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).any():
        raise Unreadable("input_not_finite", f"{modality.name} has no finite pixel")
    # Most often, a pixel tells, or a row.
    if not (pixels[:1, :1].any() or pixels[:1].any() or pixels.any()):
        raise Unreadable("input_nodata", f"{modality.name} is 0 everywhere")


def _check_target(task: Task, target: NDArray[Any]) -> None:
    """Raise for a target without any label, or with a class that isn't there."""
    if not task.kind.has_classes:
        if not np.isfinite(target).any():
            raise Unreadable("label_all_invalid", "no valid label value")
        return
    low, high = int(target.min()), int(target.max())
    if high >= task.num_classes or low < IGNORE_LABEL:
        bad = high if high >= task.num_classes else low
        what = f"class {bad} where there are {task.num_classes} classes"
        raise Unreadable("label_out_of_range", what)
    if high == IGNORE_LABEL:
        raise Unreadable("label_all_invalid", "no pixel has a valid class")
