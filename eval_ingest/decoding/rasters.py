"""Which rasters of a window make an input, and how they are put together.

How one raster is decoded is geotiff.py; what makes a window invalid is judge.py.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval_ingest.core import kernels
from eval_ingest.core.nodata import as_stored
from eval_ingest.core.resolved import (
    BandSet,
    InputPart,
    ResolvedConfig,
)
from eval_ingest.decoding.problems import Unreadable
from eval_ingest.sources.base import WindowFiles


@dataclass
class StoredRaster:
    """Stored pixels (H, W, T, bands of the file), and which of the bands are wanted in turn."""

    pixels: NDArray[Any]
    order: tuple[int, ...]
    nodata: tuple[float | None, ...] = ()
    """What is declared to be no data, of each of the wanted bands; empty: nothing is."""


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
        raise Unreadable("layer_not_completed", f"{what}: {', '.join(lacking)} not completed")
    return available if part.stack else available[:1]


def not_there_yet(files: WindowFiles, config: ResolvedConfig) -> str:
    """What a window lacks as far as its list of files tells; "" if nothing."""
    if "metadata.json" not in files.by_path:
        return "metadata.json is not there"
    try:
        for modality in config.modalities:
            for part in modality.parts:
                choose_reads(files, part, modality.name)
        for mask in (config.label.mask, *(modality.mask for modality in config.modalities)):
            if mask is not None:
                choose_reads(files, mask.part, f"mask {mask.part.key}")
        if not choose_reads(files, config.label.part, "label"):
            return "no label layer is completed"
    except Unreadable as stop:
        return stop.detail
    return ""


def is_all(pixels: NDArray[Any], nodata: float | None) -> bool:
    """True if every pixel has the nodata value; zeros and NaN are for judge.py."""
    if not nodata or pixels.flat[0] != nodata:
        return False
    return bool((pixels == nodata).all())


@lru_cache(maxsize=1024)
def plan_reads(
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


def nodata_of(stack: list[StoredRaster], bands: int, dtype: str) -> NDArray[np.float64] | None:
    """What joined rasters declare, (T, C) with NaN where that is nothing; None: nothing at all."""
    if all(value is None for raster in stack for value in raster.nodata):
        return None
    none = (None,) * bands
    parts = [
        np.broadcast_to(as_stored(raster.nodata or none, dtype), (raster.pixels.shape[2], bands))
        for raster in stack
    ]
    joined = np.concatenate(parts)
    return None if np.isnan(joined).all() else joined


def assemble(stack: list[StoredRaster], dtype: np.dtype[Any]) -> NDArray[Any]:
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
        for place, band in enumerate(raster.order):  # a band at a time: no second copy of all
            result[:, :, step : step + steps, place] = raster.pixels[..., band]
        step += steps
    return result
