"""Moments of pixels, the statistics made from them, and the normalisation methods."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from eval_ingest.core import kernels

MOMENTS = ("count", "sum", "sum_of_squares", "min", "max")

_BLOCK_VALUES = 1 << 15
"""Values converted to float64 at a time: 256 KiB, which stay in the processor's cache."""

DECIBEL_FLOOR = 1e-10
"""Linear power below this is taken for this before the logarithm."""


def to_decibels(linear: NDArray[Any]) -> NDArray[np.float32]:
    """Linear power to decibels, 10 * log10(max(x, 1e-10)), as float32 of the same shape."""
    floored: NDArray[np.float32] = np.maximum(linear, np.float32(DECIBEL_FLOOR), dtype=np.float32)
    np.log(floored, out=floored)  # numpy vectorises log, but not log10
    floored *= np.float32(10 / np.log(10))
    return floored


def measure(pixels: NDArray[Any], *, decibels: bool = False) -> NDArray[np.float64]:
    """Moments per band of pixels (..., C): array (5, C) in the order of MOMENTS.

    Only finite pixels count. With `decibels`, pixels are linear power: they are converted first,
    and pixels that are not positive hold no measurement and don't count.
    A band without any counted pixel has count 0, sums 0, min +inf and max -inf.
    """
    rows = pixels.reshape(-1, pixels.shape[-1])
    if decibels:
        measured = rows > 0
        rows = to_decibels(rows)
        if not measured.all():
            rows = np.where(measured, rows, np.float32(np.nan))
    if rows.dtype.kind == "f" and not np.isfinite(rows.sum(dtype=np.float64)):
        return _measure_finite(rows)
    return _measure_all(rows)


def count_nodata(
    pixels: NDArray[Any],
    moments: NDArray[np.float64],
    *,
    decibels: bool = False,
    missing: NDArray[np.bool_] | None = None,
) -> int:
    """How many of the places of pixels (..., C) hold no data in any band: 0, or not finite.

    Args:
        pixels: as given to `measure`.
        moments: what `measure` gave; mostly they tell already that there is none.
        decibels: as given to `measure`.
        missing: of the pixels' shape: where they are what is declared to be no data.
    """
    places: int = pixels.size // max(pixels.shape[-1], 1)
    if moments[0].max(initial=0) == places and (decibels or (moments[3] > 0).any()):
        return 0
    data = pixels > 0 if decibels else pixels != 0
    if pixels.dtype.kind == "f":
        data &= np.isfinite(pixels)
    if missing is not None:
        data &= ~missing
    return places - int(np.count_nonzero(data.any(axis=-1)))


def _measure_all(rows: NDArray[Any]) -> NDArray[np.float64]:
    exact = kernels.measure(rows)
    if exact is not None:
        return exact
    n, bands = rows.shape
    # Wide rows make reductions along the first axis efficient: fold neighbouring pixels into one.
    fold = math.gcd(n, 128)
    wide = np.ascontiguousarray(rows).reshape(n // fold, fold * bands)
    result = np.empty((5, bands))
    result[0] = n
    result[3] = wide.min(axis=0).reshape(fold, bands).min(axis=0)
    result[4] = wide.max(axis=0).reshape(fold, bands).max(axis=0)
    sums = np.zeros((2, fold * bands))
    height = max(_BLOCK_VALUES // (fold * bands), 1)
    block = np.empty((height, fold * bands))
    ones = np.ones(height)
    for start in range(0, len(wide), height):
        part = block[: len(wide) - start]
        np.copyto(part, wide[start : start + height])
        # A product with ones adds up columns faster than sum does.
        sums[0] += ones[: len(part)] @ part
        np.multiply(part, part, out=part)
        sums[1] += ones[: len(part)] @ part
    result[1:3] = sums.reshape(2, fold, bands).sum(axis=1)
    return result


def _measure_finite(rows: NDArray[Any]) -> NDArray[np.float64]:
    finite = np.isfinite(rows)
    values = np.where(finite, rows, 0).astype(np.float64)
    return np.stack(
        [
            finite.sum(axis=0, dtype=np.float64),
            values.sum(axis=0),
            (values * values).sum(axis=0),
            np.where(finite, rows, np.inf).min(axis=0, initial=np.inf),
            np.where(finite, rows, -np.inf).max(axis=0, initial=-np.inf),
        ]
    )


class BandStats(NamedTuple):
    """Statistics of one band over all counted pixels."""

    mean: float
    std: float
    """Population standard deviation."""
    min: float
    max: float


class BandSums:
    """Statistics per band, put together from the moments of windows, piece by piece.

    The variance is put together from the windows' own variances and the spread of their means
    (Chan, Golub and LeVeque 1983), which doesn't cancel as sum-of-squares minus square-of-sum does.
    """

    def __init__(self, bands: int) -> None:
        self._count, self._mean, self._squares = np.zeros((3, bands))
        self._low, self._high = np.full(bands, np.inf), np.full(bands, -np.inf)

    def add(self, moments: NDArray[np.float64]) -> None:
        """Add the moments (N, 5, C) of some windows."""
        count, total, squares = moments[:, 0], moments[:, 1], moments[:, 2]
        n = count.sum(axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = np.where(n > 0, total.sum(axis=0) / n, 0)
            window_mean = np.where(count > 0, total / count, 0)
            within = np.maximum(squares - total * window_mean, 0).sum(axis=0)
            between = (count * (window_mean - mean) ** 2).sum(axis=0)
            share = np.where(n > 0, n / (self._count + n), 0)
        apart = mean - self._mean
        self._squares += within + between + apart**2 * self._count * share
        self._mean += apart * share
        self._count += n
        self._low = np.minimum(self._low, moments[:, 3].min(axis=0, initial=np.inf))
        self._high = np.maximum(self._high, moments[:, 4].max(axis=0, initial=-np.inf))

    @property
    def stats(self) -> list[BandStats]:
        """Of all that was added; a band without any counted pixel has NaN everywhere."""
        with np.errstate(invalid="ignore", divide="ignore"):
            # Where all pixels are equal, rounding must not leave a tiny deviation behind.
            std = np.where(self._low == self._high, 0.0, np.sqrt(self._squares / self._count))
        values = np.array([self._mean, std, self._low, self._high])
        values[:, self._count == 0] = np.nan
        return [BandStats(*band) for band in values.T.tolist()]


def combine(moments: NDArray[np.float64]) -> list[BandStats]:
    """Statistics per band from the moments (N, 5, C) of N windows: see `BandSums`."""
    sums = BandSums(moments.shape[2])
    sums.add(moments)
    return sums.stats


@dataclass(frozen=True)
class Method:
    """A normalisation: y = (x - lo) / (hi - lo), then what `then` says."""

    sigmas: float | None
    """lo, hi = mean -+ sigmas * std; None: min and max."""
    then: str = ""
    """`` nothing, `clip` to 0..1, or `int`: clip(255 y, 0, 255), truncated to uint8, / 255."""


METHODS: dict[str, Method | None] = {
    "norm_no_clip": Method(1),
    "norm_no_clip_2_std": Method(2),
    "norm_yes_clip": Method(1, "clip"),
    "norm_yes_clip_2_std": Method(2, "clip"),
    "norm_yes_clip_3_std": Method(3, "clip"),
    "norm_yes_clip_int": Method(1, "int"),
    "norm_yes_clip_2_std_int": Method(2, "int"),
    "norm_yes_clip_3_std_int": Method(3, "int"),
    "norm_yes_clip_min_max_int": Method(None, "int"),
    "standardize": None,
    "no_norm": None,
}
"""The methods of OlmoEarth's evals, by their names there."""


def bounds(method: str, stats: list[BandStats]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Per band lo and hi - lo, with which y = (x - lo) / (hi - lo), before any clipping.

    A band that doesn't vary (hi == lo) gets an infinite width: 0 after normalisation.
    KeyError if the method isn't one of METHODS.
    """
    rule = METHODS[method]
    if method == "no_norm":
        return np.zeros(len(stats)), np.ones(len(stats))
    mean, std, least, most = np.array(stats, np.float64).T
    if rule is None:
        low, width = mean, std
    elif rule.sigmas is None:
        low, width = least, most - least
    else:
        low, width = mean - rule.sigmas * std, 2 * rule.sigmas * std
    varies = np.isfinite(width) & (width > 0)
    return np.where(varies, low, 0.0), np.where(varies, width, np.inf)


def affine(method: str, stats: list[BandStats]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Per band the scale and offset with which y = x * scale + offset, before any clipping.

    A band that doesn't vary (hi == lo) gets scale 0 and offset 0: 0 after normalisation.
    KeyError if the method isn't one of METHODS.
    """
    low, width = bounds(method, stats)
    scale = 1.0 / width
    return scale.astype(np.float32), (0.0 - low * scale).astype(np.float32)
