"""Pixels that hold no data: the value that their raster declares for that, or no number at all.

They count in no statistic, and are 0 after normalisation. Which value is declared is read in
decoding/; here is where it occurs, and what statistics are without it.
"""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval_ingest.core.norm import measure

Mask = NDArray[np.bool_]


@lru_cache(maxsize=256)
def as_stored(values: tuple[float | None, ...], dtype: str) -> NDArray[np.float64]:
    """Declared values as pixels of that type hold them; NaN for none, and where they can't."""
    kind = np.dtype(dtype)
    known = np.array([np.nan if value is None else value for value in values], np.float64)
    if kind.kind == "f":
        with np.errstate(over="ignore"):
            return known.astype(kind).astype(np.float64)
    limits = np.iinfo(kind)
    with np.errstate(invalid="ignore"):
        fits = (known == np.trunc(known)) & (known >= limits.min) & (known <= limits.max)
    return np.where(fits, known, np.nan)


def find_nodata(
    pixels: NDArray[Any], nodata: NDArray[np.float64], moments: NDArray[np.float64] | None
) -> Mask | None:
    """Where pixels (H, W, T, C) are the value declared for their timestep and band; None: nowhere.

    Args:
        pixels: as stored.
        nodata: (T, C), NaN where none is declared.
        moments: of the pixels as they are, with which most windows need no second look.
    """
    wanted = ~np.isnan(nodata)
    if moments is not None:
        wanted &= (nodata >= moments[3]) & (nodata <= moments[4])
    if not wanted.any():
        return None
    found = np.zeros(pixels.shape, bool)
    for band in np.flatnonzero(wanted.any(axis=0)):
        steps = np.flatnonzero(wanted[:, band])
        values = nodata[steps, band].astype(pixels.dtype)
        found[..., steps, band] = pixels[..., steps, band] == values
    return found if found.any() else None


def measure_without(
    pixels: NDArray[Any], missing: Mask, moments: NDArray[np.float64], *, decibels: bool
) -> NDArray[np.float64]:
    """Moments (5, C) of pixels (..., C), as `measure` gives them, without those that are missing.

    Args:
        pixels: as stored.
        missing: of their shape.
        moments: of all of them.
        decibels: as given to `measure`.
    """
    if pixels.dtype.kind == "f" or decibels:
        kind = np.result_type(pixels.dtype, np.float32)
        return measure(np.where(missing, np.nan, pixels).astype(kind), decibels=decibels)
    zero, limits = pixels.dtype.type(0), np.iinfo(pixels.dtype)
    gone = measure(np.where(missing, pixels, zero))
    result = moments.copy()
    result[0] -= missing.reshape(-1, pixels.shape[-1]).sum(axis=0)
    result[1:3] -= gone[1:3]
    result[3] = measure(np.where(missing, pixels.dtype.type(limits.max), pixels))[3]
    result[4] = measure(np.where(missing, pixels.dtype.type(limits.min), pixels))[4]
    empty = result[0] == 0
    result[3, empty], result[4, empty] = np.inf, -np.inf
    return result


def occurring(
    pixels: NDArray[Any], nodata: NDArray[np.float64] | None, missing: Mask | None
) -> list[tuple[int, float]]:
    """(band, value) of what occurs in pixels (H, W, T, C); NaN for what isn't finite."""
    found: set[tuple[int, float]] = set()
    if missing is not None and nodata is not None:
        steps, bands = np.nonzero(missing.any(axis=(0, 1)))
        found |= {(int(c), float(nodata[t, c])) for t, c in zip(steps, bands, strict=True)}
    pairs = sorted(found)
    if pixels.dtype.kind == "f" and not np.isfinite(pixels.sum(dtype=np.float64)):
        odd = np.flatnonzero(~np.isfinite(pixels).all(axis=(0, 1, 2)))
        pairs += [(int(c), np.nan) for c in odd]
    return pairs
