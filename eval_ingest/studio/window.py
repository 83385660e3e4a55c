"""One window: its metadata parsed, its rasters decoded into a sample, and judged.

The values are those of rslearn's ModelDataset; only the order of axes and of bands is ours.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from eval_ingest.core import kernels
from eval_ingest.core.resolved import (
    BandSet,
    InputPart,
    LabelInput,
    Layer,
    ModalityInput,
    Pad,
    ResolvedConfig,
)
from eval_ingest.core.task import IGNORE_LABEL, Task, TaskKind
from eval_ingest.core.validate import Problem
from eval_ingest.errors import SourceError
from eval_ingest.studio.decode import Grid, band_set_dirname, decode_geotiff
from eval_ingest.studio.geotiff import RasterProblem
from eval_ingest.studio.source import WindowFiles, WindowReader

Interval = tuple[datetime, datetime]

_MALFORMED = (LookupError, TypeError, ValueError, AttributeError, OverflowError)
"""What JSON of an unexpected form leads to where values are taken out of it."""

_PLAIN_CRS = re.compile(r"EPSG:[1-9][0-9]{3,4}")


@dataclass
class WindowMetadata:
    """What metadata.json says."""

    crs: str
    x_resolution: float
    """CRS units per pixel."""
    y_resolution: float
    bounds: tuple[int, int, int, int]
    """x0, y0, x1, y1 in pixels."""
    time_range: Interval | None
    options: dict[str, Any]

    @property
    def grid(self) -> Grid:
        """The window's pixel grid."""
        return Grid(self.crs, self.x_resolution, self.y_resolution, self.bounds)

    @property
    def height(self) -> int:
        """Rows of pixels."""
        return self.bounds[3] - self.bounds[1]

    @property
    def width(self) -> int:
        """Columns of pixels."""
        return self.bounds[2] - self.bounds[0]


@dataclass
class ModalitySample:
    """A window's pixels of one modality."""

    pixels: NDArray[Any]
    """(H, W, T, C) in the stored type, bands in the modality's order, before padding."""
    timestamps: list[Interval] | None
    """Start and end per timestep; None if the rasters don't say."""


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
    problems: list[Problem] = field(default_factory=list)


@dataclass
class _Raster:
    """Stored pixels (H, W, T, bands of the file), and which of the bands are wanted in turn."""

    pixels: NDArray[Any]
    order: tuple[int, ...]


class _Unreadable(Exception):
    """Stops reading a window; carries the problem."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.problem = Problem(code, detail)


def read_window(
    source: WindowReader,
    files: WindowFiles,
    config: ResolvedConfig,
    wanted: Callable[[WindowMetadata], bool] = lambda _: True,
) -> WindowSample | None:
    """Read and judge a window. Broken data becomes problems; only a lost source raises.

    Returns None for a window that isn't wanted, before any raster is read.

    Raises:
        SourceError: a file has gone or changed since it was listed.
    """
    reader = _WindowReader(source, files, config)
    sample = WindowSample(files)
    sample.layers = [
        f"{layer.name}.{item_group}" if item_group else layer.name
        for layer in config.layers
        for item_group in files.completed(layer.name)
    ]
    try:
        sample.metadata = reader.metadata()
        if not wanted(sample.metadata):
            return None
        reader.check_items()
    except _Unreadable as stop:
        sample.problems.append(stop.problem)
        return sample
    grid = sample.metadata.grid
    for modality in config.modalities:
        try:
            found = reader.modality(modality, grid)
            if found is not None:
                sample.modalities[modality.name] = found
                sample.problems += _judge_pixels(modality, found.pixels)
        except _Unreadable as stop:
            sample.problems.append(stop.problem)
    try:
        sample.target = reader.target(grid)
        sample.problems += _judge_target(config.task, sample.target)
    except _Unreadable as stop:
        sample.problems.append(stop.problem)
    crop = config.crop_size
    height, width = sample_size(config, sample.metadata.height, sample.metadata.width)
    if crop is not None and min(height, width) < crop:
        detail = f"{height} x {width} pixels, the crop is {crop}; set crop_size (--crop-size)"
        sample.problems.append(Problem("smaller_than_crop", detail))
    return sample


def read_metadata(source: WindowReader, files: WindowFiles) -> WindowMetadata | None:
    """A window's metadata alone; None if it is missing or broken."""
    try:
        path = files.by_path["metadata.json"]
        return parse_metadata(json.loads(source.read(files.group, files.name, path)))
    except (KeyError, ValueError, RecursionError, _Unreadable):
        return None


def choose_reads(files: WindowFiles, part: InputPart, what: str) -> list[tuple[str, int]]:
    """The item groups (layer, number) that rslearn would read for an input.

    Where it would pick one of several at random, the first is taken. `what` names the input.
    """
    available: list[tuple[str, int]] = []
    lacking: list[str] = []
    for read in part.reads:
        completed = files.completed(read.layer)
        if read.item_group is None:
            # rslearn insists on item group 0 and then takes all that are completed.
            if 0 in completed:
                available += [(read.layer, item_group) for item_group in completed]
            else:
                lacking.append(read.layer)
        elif read.item_group in completed:
            available.append((read.layer, read.item_group))
        else:
            lacking.append(read.specifier)
    if lacking and (part.stack or not available):
        if not part.required:
            return []
        raise _Unreadable("layer_not_completed", f"{what}: {', '.join(lacking)} not completed")
    return available if part.stack else available[:1]


def not_there_yet(files: WindowFiles, config: ResolvedConfig) -> str:
    """What a window lacks as far as its list of files tells; "" if nothing."""
    if "metadata.json" not in files.by_path:
        return "metadata.json is not there"
    try:
        for modality in config.modalities:
            for part in modality.parts:
                choose_reads(files, part, modality.name)
        if not choose_reads(files, config.label.part, "label"):
            return "no label layer is completed"
    except _Unreadable as stop:
        return stop.problem.detail
    return ""


@dataclass
class _WindowReader:
    source: WindowReader
    files: WindowFiles
    config: ResolvedConfig
    items: dict[str, Any] = field(default_factory=dict)
    """By layer, its item groups as items.json has them."""
    has_data: bool = False
    """Some raster of the modality holds more than the nodata value that it declares."""

    def _bytes(self, path: str) -> bytes:
        return self.source.read(self.files.group, self.files.name, self.files.by_path[path])

    def _json(self, path: str, code: str) -> Any:
        try:
            return json.loads(self._bytes(path))
        except (ValueError, RecursionError) as error:
            raise _Unreadable(code, f"{path} is not JSON: {error}") from error

    def metadata(self) -> WindowMetadata:
        if "metadata.json" not in self.files.by_path:
            raise _Unreadable("metadata_missing", "metadata.json is not there")
        return parse_metadata(self._json("metadata.json", "metadata_unreadable"))

    def modality(self, modality: ModalityInput, grid: Grid) -> ModalitySample | None:
        """Stack all parts along time; None if the modality is optional and absent."""
        stack: list[_Raster] = []
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
            raise _Unreadable("input_nodata", f"{modality.name} is its nodata value everywhere")
        pixels = _assemble(stack, np.dtype(modality.dtype))
        known = [time for time in times if time is not None]
        return ModalitySample(pixels, known if len(known) == len(times) else None)

    def _raster(
        self, layer: Layer, item_group: int, bands: tuple[str, ...], grid: Grid
    ) -> tuple["_Raster", list[Interval | None]]:
        """Pixels of the bands, and the timesteps' intervals."""
        if self.config.data_storage != "per_item_group" or not all(
            b.geotiff for b in layer.band_sets
        ):
            return self._through_rslearn(layer, item_group, bands, grid)
        folder = f"layers/{layer.name}.{item_group}" if item_group else f"layers/{layer.name}"
        result: NDArray[Any] | None = None
        stamps: list[Interval | None] = []
        reads, lacking = _plan_reads(layer.band_sets, bands)
        for band_set, sources, places in reads:
            base = f"{folder}/{band_set_dirname(band_set.bands)}"
            pixels, times = self._geotiff(base, len(band_set.bands), band_set.dtype, grid)
            if len(sources) == len(bands):
                stamps = self._or_items(times, layer.name, item_group, pixels)
                return _Raster(pixels, sources), stamps
            if result is None:
                result = np.zeros((*pixels.shape[:3], len(bands)), pixels.dtype)
                stamps = self._or_items(times, layer.name, item_group, pixels)
            elif result.shape[:3] != pixels.shape[:3]:
                raise _Unreadable(
                    "raster_bands", f"{base}: other timesteps than the other band sets"
                )
            result = result.astype(np.promote_types(result.dtype, pixels.dtype), copy=False)
            result[..., list(places)] = pixels[..., list(sources)]
        if result is None or lacking:
            raise _Unreadable("raster_bands", f"{layer.name} lacks {', '.join(lacking)}")
        return _Raster(result, tuple(range(len(bands)))), stamps

    def _geotiff(
        self, base: str, n_bands: int, dtype: str, grid: Grid
    ) -> tuple[NDArray[Any], list[Interval] | None]:
        """(H, W, T, C) of one band set's file and its sidecar's intervals."""
        path = f"{base}/geotiff.tif"
        if path not in self.files.by_path:
            raise _Unreadable("raster_missing", f"{path} is not there")
        channels: int | None = None
        timesteps, times = 1, None
        sidecar = f"{base}/metadata.json"
        if sidecar in self.files.by_path:
            channels, timesteps, times = _parse_sidecar(self._bytes(sidecar), sidecar)
        if times is not None and len(times) != timesteps:
            raise _Unreadable(
                "raster_bands", f"{sidecar}: {len(times)} timestamps for {timesteps} timesteps"
            )
        try:
            pixels, header = decode_geotiff(self._bytes(path), grid)
        except RasterProblem as problem:
            raise _Unreadable(problem.code, f"{path}: {problem.detail}") from problem
        channels = channels or pixels.shape[2]
        if channels != n_bands or pixels.shape[2] != channels * timesteps:
            raise _Unreadable(
                "raster_bands",
                f"{path} has {pixels.shape[2]} bands, config.json and sidecar say "
                f"{n_bands} x {timesteps} timesteps",
            )
        if header.dtype != dtype:
            raise _Unreadable("raster_dtype", f"{path} is {header.dtype}, config.json says {dtype}")
        self.has_data = self.has_data or not _is_all(pixels, header.nodata)
        height, width = pixels.shape[:2]
        if timesteps == 1:
            return pixels[:, :, None, :], times
        return pixels.reshape(height, width, channels, timesteps).swapaxes(2, 3), times

    def _or_items(
        self, times: list[Interval] | None, layer: str, item_group: int, pixels: NDArray[Any]
    ) -> list[Interval | None]:
        """A sidecar's intervals, or the item's time range for a single timestep without them."""
        timesteps = pixels.shape[2]
        if times is not None:
            if len(times) != timesteps:
                raise _Unreadable(
                    "raster_bands", f"{layer}: {len(times)} timestamps for {timesteps} timesteps"
                )
            return list(times)
        if timesteps == 1:
            return [self._item_interval(layer, item_group)]
        raise _Unreadable("raster_bands", f"{layer}: {timesteps} timesteps without timestamps")

    def check_items(self) -> None:
        """rslearn reads items.json with every raster, and fails on one that is damaged."""
        if "items.json" in self.files.by_path:
            self.items = parse_items(self._json("items.json", "metadata_unreadable"))

    def _item_interval(self, layer: str, item_group: int) -> Interval | None:
        if layer not in self.items:
            return None
        return items_interval(self.items[layer], item_group)

    def _through_rslearn(
        self, layer: Layer, item_group: int, bands: Sequence[str], grid: Grid
    ) -> tuple["_Raster", list[Interval | None]]:
        """Whatever the fast path doesn't know, rslearn reads: other formats, other storages."""
        from eval_ingest.studio.fallback import read_raster

        try:
            pixels, times = read_raster(
                self.source.url, self.files.group, self.files.name, layer.name, item_group, bands
            )
        except RasterProblem as problem:
            raise _Unreadable(problem.code, problem.detail) from problem
        self.has_data = True  # what is nodata there, only the pixels tell
        stamps = self._or_items(times, layer.name, item_group, pixels)
        return _Raster(pixels, tuple(range(len(bands)))), stamps

    def target(self, grid: Grid) -> NDArray[Any]:
        """The target, without padding: (H, W) or scalar."""
        label = self.config.label
        task = self.config.task
        chosen = choose_reads(self.files, label.part, "label")
        if not chosen:
            raise _Unreadable("label_missing", "no label layer is completed")
        if task.kind.per_pixel:
            return self._raster_target(label, chosen, task, grid)
        features = [
            feature
            for layer, item_group in chosen
            for feature in self._features(layer, item_group, grid)
        ]
        return vector_target(features, task)

    def _raster_target(
        self, label: LabelInput, chosen: list[tuple[str, int]], task: Task, grid: Grid
    ) -> NDArray[Any]:
        if len(chosen) != 1 or label.band is None:
            raise _Unreadable("raster_bands", f"{len(chosen)} label rasters; one is needed")
        layer, item_group = chosen[0]
        raster, _ = self._raster(self.config.layer(layer), item_group, (label.band,), grid)
        if raster.pixels.shape[2] != 1:
            raise _Unreadable("raster_bands", f"the label has {raster.pixels.shape[2]} timesteps")
        stored = raster.pixels[:, :, 0, raster.order[0]]
        if task.kind.has_classes and stored.dtype.kind == "f" and not np.isfinite(stored).all():
            raise _Unreadable("label_out_of_range", "NaN, or infinity, where class ids belong")
        with np.errstate(invalid="ignore"):
            return raster_target(stored.astype(label.dtype), task)

    def _features(self, layer: str, item_group: int, grid: Grid) -> list[dict[str, Any]]:
        """Properties of the features that intersect the window, in file order."""
        if self.config.data_storage != "per_item_group" or not self.config.layer(layer).geojson:
            from eval_ingest.studio.fallback import read_features

            try:
                return read_features(
                    self.source.url, self.files.group, self.files.name, layer, item_group
                )
            except RasterProblem as problem:
                raise _Unreadable(problem.code, problem.detail) from problem
        from eval_ingest.studio.features import features_within

        folder = f"layers/{layer}.{item_group}" if item_group else f"layers/{layer}"
        path = f"{folder}/data.geojson"
        if path not in self.files.by_path:
            raise _Unreadable("label_missing", f"{path} is not there")
        try:
            return features_within(self._json(path, "label_unreadable"), grid)
        except SourceError:
            raise
        except _Unreadable:
            raise
        except Exception as error:  # geometry libraries raise many types on broken shapes
            raise _Unreadable(
                "label_unreadable", f"{path}: {type(error).__name__}: {error}"
            ) from error


def _is_all(pixels: NDArray[Any], nodata: float | None) -> bool:
    """True if every pixel has the nodata value; zeros and NaN are judged by `_judge_pixels`."""
    if not nodata or pixels.flat[0] != nodata:
        return False
    return bool((pixels == nodata).all())


@lru_cache(maxsize=1024)
def _plan_reads(
    band_sets: tuple[BandSet, ...], bands: tuple[str, ...]
) -> tuple[list[tuple[BandSet, tuple[int, ...], tuple[int, ...]]], list[str]]:
    """Which band sets to read for some bands, and the bands that none has.

    Of each its bands that are wanted, and their places among those that are wanted; a band is
    taken from the first set that has it.
    """
    reads = []
    wanted = {band: place for place, band in enumerate(bands)}
    for band_set in band_sets:
        here = [(wanted.pop(b), k) for k, b in enumerate(band_set.bands) if b in wanted]
        if here:
            here.sort()
            reads.append((band_set, tuple(k for _, k in here), tuple(place for place, _ in here)))
    return reads, list(wanted)


def parse_metadata(raw: Any) -> WindowMetadata:
    """Check and convert the content of a window's metadata.json."""
    try:
        projection = raw["projection"]
        crs = projection["crs"]
        resolutions = projection["x_resolution"], projection["y_resolution"]
        options = raw.get("options") or {}
        times = raw.get("time_range")
        time_range = _interval(times) if times else None
        bounds = raw["bounds"]
        known = _is_crs(crs)
    except _MALFORMED as error:
        raise _Unreadable(
            "metadata_unreadable", f"metadata.json: {type(error).__name__}: {error}"
        ) from error
    if not known:
        raise _Unreadable("metadata_unreadable", f"the CRS is {str(crs)[:80]!r}")
    if not isinstance(options, dict):
        raise _Unreadable("metadata_unreadable", f"options are {type(options).__name__}, not a map")
    if not all(_is_number(r) and r != 0 for r in resolutions):
        raise _Unreadable("metadata_unreadable", f"resolutions are {str(resolutions)[:80]}")
    whole = (
        isinstance(bounds, list)
        and len(bounds) == 4
        and all(isinstance(b, int) and not isinstance(b, bool) for b in bounds)
    )
    if not whole or bounds[2] <= bounds[0] or bounds[3] <= bounds[1]:
        raise _Unreadable("bounds_invalid", f"bounds are {str(bounds)[:80]}")
    if max(bounds[2] - bounds[0], bounds[3] - bounds[1]) > 65536 or max(map(abs, bounds)) >= 2**53:
        raise _Unreadable("bounds_invalid", f"bounds {bounds} span more than 65536 pixels")
    x0, y0, x1, y1 = bounds
    x_resolution, y_resolution = map(float, resolutions)
    return WindowMetadata(crs, x_resolution, y_resolution, (x0, y0, x1, y1), time_range, options)


@lru_cache(maxsize=1024)
def _is_crs(crs: str) -> bool:
    """True for what rslearn can make a CRS of."""
    crs.encode()  # Parquet takes no lone surrogates
    if _PLAIN_CRS.fullmatch(crs):
        return True  # whether there is one of that number, the rasters tell
    from rasterio.crs import CRS  # only for datasets whose windows carry WKT
    from rasterio.errors import CRSError

    try:
        CRS.from_string(crs)
    except CRSError:
        return False
    return True


def _is_number(value: Any) -> bool:
    """True for a finite number that isn't so large as to be a mistake."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e12


def _interval(times: Sequence[str]) -> Interval:
    start, end = (datetime.fromisoformat(text) for text in times)
    return _aware(start), _aware(end)


def _aware(time: datetime) -> datetime:
    """A time in UTC; one without a time zone is taken to be."""
    return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)


def parse_items(raw: Any) -> dict[str, Any]:
    """The item groups by layer in a window's items.json, as rslearn's WindowLayerData reads it."""
    found = {}
    try:
        for entry in raw:
            ranges = entry.get("group_time_ranges")
            groups, _ = entry["serialized_item_groups"], entry["materialized"]
            for times in ranges or ():
                if times is not None:
                    datetime.fromisoformat(times[0]), datetime.fromisoformat(times[1])
            if ranges is not None and len(ranges) != len(groups):
                raise ValueError(f"{len(ranges)} time ranges for {len(groups)} item groups")
            found[entry["layer_name"]] = groups
    except _MALFORMED as error:
        raise _Unreadable(
            "metadata_unreadable", f"items.json: {type(error).__name__}: {error}"
        ) from error
    return found


def items_interval(item_groups: Any, item_group: int) -> Interval | None:
    """From the first start to the last end of a group's items; None if they have no times."""
    import shapely  # only for rasters whose sidecars have no times

    try:
        items = item_groups[item_group]
        intervals: list[Interval] = []
        for item in items or ():
            _ = item["name"]
            geometry = item["geometry"]
            projection, times = geometry["projection"], geometry["time_range"]
            _ = projection["x_resolution"], projection["y_resolution"]
            if not _is_crs(projection["crs"]):
                raise ValueError(f"the CRS is {projection['crs']!r}")
            shapely.from_wkt(geometry["shp"])
            if times:
                start, end = datetime.fromisoformat(times[0]), datetime.fromisoformat(times[1])
                intervals.append((start, end))
            elif intervals:
                raise ValueError("an item has no time range, though the first one has")
            else:
                return None
        if not intervals:
            return None
        starts, ends = zip(*intervals, strict=True)
        return _aware(min(starts)), _aware(max(ends))
    except (*_MALFORMED, shapely.errors.ShapelyError) as error:
        raise _Unreadable(
            "metadata_unreadable", f"items.json: {type(error).__name__}: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    """The beginning of an error's text, on one line."""
    return " ".join(str(error).split())[:200]


class _Sidecar(BaseModel):
    """A raster's metadata.json, with the types that rslearn's GeotiffRasterMetadata has."""

    num_channels: int | None = None
    num_timesteps: int | None = None
    timestamps: list[tuple[datetime, datetime]] | None = None


def _parse_sidecar(data: bytes, path: str) -> tuple[int | None, int, list[Interval] | None]:
    """Channels, timesteps and intervals from a raster's metadata.json.

    Without a number of channels, all bands of the file are of one timestep.
    """
    try:
        found = _Sidecar.model_validate_json(data)
        times = None
        if found.timestamps is not None:
            times = [(_aware(start), _aware(end)) for start, end in found.timestamps]
    except (ValidationError, OverflowError) as error:
        raise _Unreadable("raster_unreadable", f"{path}: {_first_line(error)}") from error
    if found.num_timesteps is None:  # then rslearn doesn't look at num_channels either
        return None, 1, times
    channels, timesteps = found.num_channels or None, found.num_timesteps
    if timesteps < 1 or (channels or 1) < 1:
        raise _Unreadable("raster_bands", f"{path}: {channels} channels, {timesteps} timesteps")
    return channels, timesteps, times


def _assemble(stack: list[_Raster], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Join rasters along T into (H, W, T, C), bands in their wanted order."""
    first = stack[0]
    height, width = first.pixels.shape[:2]
    timesteps = sum(raster.pixels.shape[2] for raster in stack)
    result = np.empty((height, width, timesteps, len(first.order)), dtype)
    if all(raster.order == first.order for raster in stack) and kernels.interleave(
        [raster.pixels for raster in stack], first.order, result
    ):
        return result
    step = 0
    for raster in stack:
        steps = raster.pixels.shape[2]
        result[:, :, step : step + steps] = raster.pixels[..., list(raster.order)]
        step += steps
    return result


def raster_target(stored: NDArray[Any], task: Task) -> NDArray[Any]:
    """The target of a stored label raster (H, W), by the rules of rslearn's task classes.

    Segmentation: int64 class ids, -1 where the label is nodata. Regression: float32, NaN there.
    """
    if task.kind is TaskKind.SEGMENTATION:
        labels = stored.astype(np.int64)
        if task.class_id_mapping:
            mapped = labels.copy()
            for old, new in task.class_id_mapping.items():
                mapped[labels == old] = new
            labels = mapped
        if task.nodata_value is not None:
            labels[labels == int(task.nodata_value)] = IGNORE_LABEL
        return labels
    values = stored.astype(np.float32)
    if task.scale_factor != 1:
        values = values * np.float32(task.scale_factor)
    if task.nodata_value is not None:
        values = np.where(stored == task.nodata_value, np.float32(np.nan), values)
    return values


def vector_target(features: list[dict[str, Any]], task: Task) -> NDArray[Any]:
    """The target of a window from its features' properties: the first that has one counts.

    Raises a label problem if none has, or if a class is unknown and not to be skipped.
    """
    for properties in features:
        if task.property_name is None or task.property_name not in properties:
            continue
        value = properties[task.property_name]
        if task.kind is TaskKind.SCALAR_REGRESSION:
            try:
                return np.asarray(float(value) * task.scale_factor, dtype=np.float32)
            except (TypeError, ValueError) as error:
                raise _Unreadable(
                    "label_unreadable", f"{task.property_name} = {value!r} is not a number"
                ) from error
        class_id = _class_id(value, task)
        if 0 <= class_id < task.num_classes:
            return np.asarray(class_id, dtype=np.int64)
        if not task.skip_unknown_categories:
            raise _Unreadable(
                "label_out_of_range", f"{task.property_name} = {value!r} is none of the classes"
            )
    raise _Unreadable("label_missing", f"no feature has the property {task.property_name!r}")


def _class_id(value: Any, task: Task) -> int:
    if task.read_class_id:
        try:
            return int(value)
        except (TypeError, ValueError):
            return -1
    return next((k for k, known in enumerate(task.classes) if known.name == value), -1)


def sample_arrays(sample: WindowSample, config: ResolvedConfig) -> dict[str, NDArray[Any]]:
    """A valid window's arrays as packed: per modality (H, W, T, C), and `target`; padded."""
    assert sample.metadata is not None and sample.target is not None, "the window isn't valid"
    arrays = {}
    for modality in config.modalities:
        found = sample.modalities.get(modality.name)
        if found is None:
            height, width = sample.metadata.height, sample.metadata.width
            pixels = np.zeros((height, width, 0, len(modality.bands)), modality.dtype)
        else:
            pixels = found.pixels
        arrays[modality.name] = apply_pad(pixels, modality.pad)
    arrays["target"] = padded_target(sample.target, config)
    return arrays


def padded_target(target: NDArray[Any], config: ResolvedConfig) -> NDArray[Any]:
    """A target (H, W), padded by what stands for no label; a scalar as it is."""
    if not target.ndim:
        return target
    fill = IGNORE_LABEL if config.task.kind.has_classes else np.nan
    return apply_pad(target, config.label.pad, fill)


def _judge_pixels(modality: ModalityInput, pixels: NDArray[Any]) -> list[Problem]:
    """Wholly nodata or wholly not finite."""
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).any():
        return [Problem("input_not_finite", f"{modality.name} has no finite pixel")]
    if not pixels.any():
        return [Problem("input_nodata", f"{modality.name} is 0 everywhere")]
    return []


def _judge_target(task: Task, target: NDArray[Any]) -> list[Problem]:
    if not task.kind.has_classes:
        if not np.isfinite(target).any():
            return [Problem("label_all_invalid", "no valid label value")]
        return []
    low, high = int(target.min()), int(target.max())
    if high >= task.num_classes or low < IGNORE_LABEL:
        bad = high if high >= task.num_classes else low
        return [
            Problem("label_out_of_range", f"class {bad} where there are {task.num_classes} classes")
        ]
    if high == IGNORE_LABEL:
        return [Problem("label_all_invalid", "no pixel has a valid class")]
    return []


def sample_size(config: ResolvedConfig, height: int, width: int) -> tuple[int, int]:
    """Height and width of the sample of a window of that size, in pixels."""
    pad = next((m.pad for m in config.modalities if m.pad is not None), None)
    if pad is None:
        return height, width
    size = [height, width]
    for axis, before, after in _pad_steps(height, width, pad):
        size[axis] += before + after
    return size[0], size[1]


def apply_pad(pixels: NDArray[Any], pad: Pad | None, fill: float = 0) -> NDArray[Any]:
    """rslearn's Pad on the first two axes (H, W): fill around, or crop where larger."""
    if pad is None:
        return pixels
    for axis, before, after in _pad_steps(pixels.shape[0], pixels.shape[1], pad):
        if before < 0 or after < 0:
            keep = slice(-before, pixels.shape[axis] + after)
            pixels = pixels[(slice(None),) * axis + (keep,)]
        elif before or after:
            around = [(0, 0)] * pixels.ndim
            around[axis] = (before, after)
            pixels = np.pad(pixels, around, constant_values=fill)
    return pixels


def _pad_steps(height: int, width: int, pad: Pad) -> list[tuple[int, int, int]]:
    """(axis, before, after) in turn, axis 0 for rows and 1 for columns; negative: cut off.

    Where rslearn 0.1.19 centres and a window is lower than the size, it adds the missing rows as
    columns. Samples must equal its own, so the same is done here.
    """
    rows, columns = pad.size - height, pad.size - width
    upper, left = (rows // 2, columns // 2) if pad.center else (0, 0)
    return [(1, left, columns - left), (1 if upper > 0 else 0, upper, rows - upper)]
