"""What the index says about a window: its row, from what was read of it."""

import json
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from eval_ingest.core.columns import arrow, encoded, floats, matrix, row_numbers
from eval_ingest.core.crops import split_cut
from eval_ingest.core.digest import label_digest, pixel_digest
from eval_ingest.core.footprints import outlines
from eval_ingest.core.index import moments_struct
from eval_ingest.core.nodata import find_nodata, measure_without, occurring
from eval_ingest.core.norm import count_nodata, measure
from eval_ingest.core.padding import apply_pad
from eval_ingest.core.resolved import ModalityInput, ResolvedConfig
from eval_ingest.core.task import IGNORE_LABEL, Task
from eval_ingest.decoding.judge import WindowSample
from eval_ingest.decoding.machine import blame
from eval_ingest.decoding.metadata import WindowMetadata, read_metadata
from eval_ingest.sources.base import WindowFiles, WindowReader
from eval_ingest.store.shards import target_dtype


def index_row(sample: WindowSample, config: ResolvedConfig, judged_by: str) -> dict[str, Any]:
    """The row of one window; its geometry is added later, for all windows at once.

    `judged_by` is kept with an invalid one.
    """
    files, metadata = sample.files, sample.metadata
    row: dict[str, Any] = {
        "group": files.group,
        "name": files.name,
        "layers": sample.layers,
        "n_files": len(files.files),
        "n_bytes": files.n_bytes,
        "source_digest": files.digest,
        "status": "invalid" if sample.problems else "valid",
        "judged_by": judged_by if sample.problems else None,
        "problems": [
            {"code": found.code, "detail": found.detail[:500]} for found in sample.problems
        ],
    }
    if metadata is not None:
        row |= _metadata_columns(metadata)
    arrays: dict[str, NDArray[Any]] = {}
    moments: dict[str, NDArray[np.float64]] = {}
    for modality in config.modalities:
        found = sample.modalities.get(modality.name)
        row[f"{modality.name}.timesteps"] = found.pixels.shape[2] if found else 0
        if found is None:
            continue
        arrays[modality.name] = found.pixels
        pixels = found.pixels
        if config.statistics_pads:
            pixels = apply_pad(pixels, modality.pad_of("train"), None)
        columns, moments[modality.name] = _pixel_columns(pixels, found.nodata, modality)
        row |= columns
        if found.timestamps is not None:
            row[f"{modality.name}.timestamps"] = [
                {"start": start, "end": end} for start, end in found.timestamps
            ]
    row["pixel_digest"] = pixel_digest(arrays, moments)
    return row | _label_columns(sample, config)


def _pixel_columns(
    pixels: NDArray[Any], nodata: NDArray[np.float64] | None, modality: ModalityInput
) -> tuple[dict[str, Any], NDArray[np.float64]]:
    """What the pixels of a modality (H, W, T, C) hold, and their moments."""
    name, decibels = modality.name, modality.decibels
    moments = measure(pixels, decibels=decibels)
    missing = None
    if nodata is not None:
        missing = find_nodata(pixels, nodata, None if decibels else moments)
    if missing is not None:
        moments = measure_without(pixels, missing, moments, decibels=decibels)
    values = occurring(pixels, nodata, missing)
    columns = {
        f"{name}.moments": moments_struct(moments),
        f"{name}.nodata": count_nodata(pixels, moments, decibels=decibels, missing=missing),
        f"{name}.nodata_values": [float(part) for pair in values for part in pair],
    }
    return columns, moments


def metadata_row(
    reader: WindowReader, files: WindowFiles, wanted: Callable[[WindowMetadata], bool]
) -> dict[str, Any] | None:
    """The row of a window of which nothing but metadata.json is read, for a dry run.

    Returns None if it isn't wanted.
    """
    row = {"group": files.group, "name": files.name, "status": "valid", "problems": []}
    metadata = read_metadata(reader, files)
    if metadata is None:
        return row | {"status": "invalid"}
    return row | _metadata_columns(metadata) if wanted(metadata) else None


def _metadata_columns(metadata: WindowMetadata) -> dict[str, Any]:
    start, end = metadata.time_range or (None, None)
    grid = metadata.grid
    return {
        "crs": grid.crs,
        "x_resolution": grid.x_resolution,
        "y_resolution": grid.y_resolution,
        "bounds": list(grid.bounds),
        "height": grid.height,
        "width": grid.width,
        "time_start": start,
        "time_end": end,
        "options": json.dumps(metadata.options, sort_keys=True),
    }


def _label_columns(sample: WindowSample, config: ResolvedConfig) -> dict[str, Any]:
    """What the label holds, counted in the samples that each of the configuration's cuts gives."""
    if sample.target is None:
        return {}
    columns: dict[str, Any] = {}
    if not sample.problems:
        columns["label.crc32c"] = label_digest(sample.target.astype(target_dtype(config)))
    if sample.crop_targets:
        columns["label.crop_targets"] = sample.crop_targets
    facts = [_label_facts(targets, config.task) for targets in _targets(sample, config)]
    columns["label.samples"] = [found.samples for found in facts]
    columns["label.invalid"] = [found.invalid for found in facts]
    if config.task.kind.has_classes:
        columns["label.class_counts"] = np.concatenate([found.counts for found in facts]).tolist()
    else:
        columns["label.moments"] = moments_struct(np.concatenate([f.counts for f in facts], axis=1))
    return columns


def _targets(sample: WindowSample, config: ResolvedConfig) -> Iterator[list[NDArray[Any]]]:
    """The targets of a window's samples, by cut."""
    assert sample.target is not None and sample.metadata is not None
    size = sample.metadata.grid.height, sample.metadata.grid.width
    scalars = iter(sample.crop_targets)
    for split in config.cuts:
        cut = split_cut(config, split)
        if sample.target.ndim:
            yield [cut.target(sample.target, at) for at in cut.corners(*size)]
        elif cut.grid is None:
            yield [sample.target]
        else:
            found = np.array([next(scalars) for _ in cut.corners(*size)])
            yield list(found.astype(sample.target.dtype))


class _LabelFacts(NamedTuple):
    samples: int
    """How many have a label."""
    invalid: int
    """Values without a label, of all samples."""
    counts: NDArray[Any]
    """Labels per class (C,), or moments (5, 1)."""


def _label_facts(targets: list[NDArray[Any]], task: Task) -> _LabelFacts:
    together = np.concatenate([target.reshape(-1) for target in targets])
    if not task.kind.has_classes:
        labelled = sum(bool(np.isfinite(target).any()) for target in targets)
        moments = measure(together.reshape(-1, 1))
        return _LabelFacts(labelled, together.size - int(moments[0, 0]), moments)
    inside = together[(together >= 0) & (together < task.num_classes)]
    return _LabelFacts(
        sum(bool((target != IGNORE_LABEL).any()) for target in targets),
        int((together == IGNORE_LABEL).sum()),
        np.bincount(inside, minlength=task.num_classes),
    )


_OUTLINED = 1 << 13
"""Windows whose outlines are shapes at a time: a shape takes several times the room of its text."""


def add_geometry(table: pa.Table) -> pa.Table:
    """Fill the geometry column: window outlines in longitude and latitude, as WKB.

    Windows of one CRS are transformed together, many at a time. A CRS that can't be understood
    leaves null. See `core.footprints.outlines`.
    """
    import pyproj
    import shapely

    parts: list[pa.Array] = []
    order: list[NDArray[np.int64]] = []
    resolution = [floats(table["x_resolution"]), floats(table["y_resolution"])]
    corners = matrix(table["bounds"], 4, np.nan, float) * np.column_stack(resolution * 2)
    found, names = encoded(table["crs"])
    for code, text in enumerate(names.to_pylist()):
        rows = np.flatnonzero(found == code)
        for here in (rows[k : k + _OUTLINED] for k in range(0, len(rows), _OUTLINED)):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    wkb = shapely.to_wkb(outlines(text, corners[here]))
            except pyproj.exceptions.ProjError as error:
                blame(error)  # without outlines no leakage would be noticed
                break
            parts.append(arrow(wkb.tolist(), pa.binary()))
            order.append(here)
    known = np.concatenate([np.zeros(0, np.int64), *order])
    rows = np.full(table.num_rows, len(known))
    rows[known] = np.arange(len(known))
    parts.append(pa.nulls(1, pa.binary()))
    geometry = pa.concat_arrays(parts).take(row_numbers(rows))
    return table.set_column(table.schema.get_field_index("geometry"), "geometry", geometry)
