"""The innermost loops of decoding, measuring and loading, compiled from _kernels.c.

They let go of the GIL, so threads scale. Where they weren't built (no C compiler) or don't fit the
data, libtiff, numpy and torch do the same at a third of the speed, and give the same values: of
normalised pixels, to the last digit but one, since some processors round once and others twice.
"""

from collections.abc import Sequence, Set
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

try:
    from eval_ingest.core import _kernels
except ImportError:  # an installation without a C compiler
    _kernels = None  # type: ignore[assignment]

_gather: Any = getattr(_kernels, "gather", None)
"""None, too, in a source tree whose build is older than this function."""
_SCALED = {"uint8": "u", "uint16": "H", "int16": "h", "float32": "f"}
_MEASURED = {"uint8": "u", "uint16": "H", "int16": "h"}


def are_compiled() -> bool:
    """False if everything goes the slow way."""
    return _kernels is not None


class Blocks(NamedTuple):
    """Where the strips or tiles of a TIFF lie, and how the pixels are cut into them."""

    offsets_at: int
    """Position of the table of offsets in the file."""
    offset_bytes: int
    """Bytes of each: 2, 4 or 8, little-endian."""
    sizes_at: int
    size_bytes: int
    n_blocks: int
    height: int
    """Rows of the image."""
    row_bytes: int
    """Bytes of a row of the image."""
    block_height: int
    block_row_bytes: int
    tiled: bool
    """Tiles have all their rows, also at the bottom; strips end with the image."""


def decode_lzw(data: bytes, blocks: Blocks, out: NDArray[Any]) -> bool:
    """Decode a TIFF's LZW blocks, without predictor, into a contiguous array of its pixels.

    Returns False, with anything in `out`, for a stream that isn't exactly as the specification
    (TIFF 6.0, section 13) has it: what it is worth, libtiff has to say.
    """
    return _kernels is not None and _kernels.decode_lzw(data, *blocks, out)


def interleave(rasters: Sequence[NDArray[Any]], order: Sequence[int], out: NDArray[Any]) -> bool:
    """Copy rasters (H, W, 1, stored bands) side by side into `out` (H, W, T, C).

    Band c of the result is band `order[c]` of each raster. Returns False where rasters differ in
    type or shape or aren't contiguous; `out` is as it was then.
    """
    first = rasters[0]
    if _kernels is None or first.shape[3] > 256 or not out.size or not out.flags.c_contiguous:
        return False
    for raster in rasters:
        if (
            raster.dtype != out.dtype
            or raster.shape != first.shape
            or raster.shape[2] != 1
            or not raster.flags.c_contiguous
        ):
            return False
    pixels = first.shape[0] * first.shape[1]
    _kernels.interleave(list(rasters), bytes(order), pixels, out.itemsize, out)
    return True


def measure(rows: NDArray[Any]) -> NDArray[np.float64] | None:
    """Count, sum, sum of squares, minimum and maximum (5, C) of rows (N, C); exact.

    Returns None for types other than integers of 8 or 16 bits.
    """
    kind = _MEASURED.get(rows.dtype.name)
    if _kernels is None or kind is None or not rows.flags.c_contiguous:
        return None
    moments = np.empty((5, rows.shape[1]))
    return moments if _kernels.measure(rows, kind, rows.shape[1], moments) else None


def scale(
    stored: NDArray[Any],
    factor: NDArray[np.float32] | None,
    offset: NDArray[np.float32] | None,
    out: NDArray[np.float32],
) -> bool:
    """Write `stored * factor + offset` as float32 into a contiguous `out` of the same shape.

    `factor` and `offset` hold a number for each of the last values of `stored`, T x C of them, say;
    without them values are only converted. The multiply-add rounds once, as torch.addcmul does.
    Returns False where the type or the strides of `stored` aren't among those that are known.
    """
    kind = _SCALED.get(stored.dtype.name)
    if _kernels is None or kind is None or not out.flags.c_contiguous:
        return False
    width = 1 if factor is None else len(factor)
    return _kernels.scale(stored, kind, width, factor, offset, out)


class Runs(NamedTuple):
    """Rectangles of equal size in a file that is mapped into memory, one a sample."""

    memory: NDArray[np.uint8]
    """The file's bytes."""
    dtype: np.dtype[Any]
    starts: NDArray[np.int64]
    """First byte of each."""
    places: NDArray[np.int64]
    """Which sample of the batch each is, in ascending order."""
    rows: int
    """Of each."""
    row_bytes: int
    """From one row to the next."""
    items: int
    """Values of a row, side by side."""

    def part(self, some: range) -> "Runs":
        """Those of some samples of the batch."""
        here = slice(*np.searchsorted(self.places, (some.start, some.stop)))
        return self._replace(starts=self.starts[here], places=self.places[here])


def can_gather(dtypes: Set[str], as_is: bool) -> bool:
    """True if `gather` knows files of these types, or `gather_as_is` gives one array of them."""
    return _gather is not None and (len(dtypes) == 1 if as_is else dtypes <= _SCALED.keys())


def gather(
    runs: Runs,
    factor: NDArray[np.float32] | None,
    offset: NDArray[np.float32] | None,
    out: NDArray[np.float32],
) -> None:
    """Do what `scale` does for all samples of a batch (N, ...), each into its place in `out`.

    Raises:
        ValueError: a sample isn't in the file or the batch; nothing is written.
    """
    _gather_each(runs, _SCALED[runs.dtype.name], runs.items, factor, offset, out)


def gather_as_is(runs: Runs, out: NDArray[Any]) -> None:
    """The same without a conversion: `out` has the file's type."""
    _gather_each(runs, "b", runs.items * runs.dtype.itemsize, None, None, out.view(np.uint8))


def _gather_each(
    runs: Runs,
    kind: str,
    items: int,
    factor: NDArray[np.float32] | None,
    offset: NDArray[np.float32] | None,
    out: NDArray[Any],
) -> None:
    width = 1 if factor is None else len(factor)
    memory, _, starts, places, rows, row_bytes, _ = runs
    if not _gather(
        memory, kind, starts, places, rows, row_bytes, items, width, factor, offset, out
    ):
        raise ValueError("samples lie outside their file or their batch")
