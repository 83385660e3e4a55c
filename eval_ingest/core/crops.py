"""What of a window a sample is: all of it, its centre, or one of its crops; padded.

The one place that cuts. Loading cuts pixels and targets by it, indexing counts labels by it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval_ingest.core.padding import apply_pad, fill_up, padded_size
from eval_ingest.core.resolved import SPLITS, CropGrid, Pad, ResolvedConfig
from eval_ingest.core.task import IGNORE_LABEL

Corner = tuple[int, int]
"""Row and column of a crop's first pixel in its window."""


def starts(length: int, grid: CropGrid) -> list[int]:
    """Where the crops begin along one side of a window, in pixels.

    One after the other with the overlap between them; the last one is shifted inward, so that it
    ends with the window. A side that is shorter than a crop has one, which goes beyond its end.

    >>> starts(15, CropGrid(size=8, overlap=2))
    [0, 6, 7]
    """
    last = length - grid.size
    if last <= 0:
        return [0]
    return [*range(0, last, grid.size - grid.overlap), last]


def corners(height: int, width: int, grid: CropGrid) -> list[Corner]:
    """Every crop of a window, in rslearn's order: column by column, downward.

    >>> corners(4, 6, CropGrid(size=3))
    [(0, 0), (1, 0), (0, 3), (1, 3)]
    """
    rows = starts(height, grid)
    return [(top, left) for left in starts(width, grid) for top in rows]


@dataclass(frozen=True)
class Cut:
    """How a split's samples are cut from windows: rslearn's crop, then its Pad.

    A crop that is no larger than what Pad gives is taken after it, so that samples have its size.
    What a window lacks of a crop is filled up with zeros at its bottom and right, one of the places
    where rslearn puts it.
    """

    config: ResolvedConfig
    split: str
    grid: CropGrid | None = None
    """Every crop is a sample."""
    side: int | None = None
    """Of the one crop that is the sample; None: all of the window."""

    @cached_property
    def pad(self) -> Pad | None:
        """The modalities' Pad."""
        pads = (modality.pad_of(self.split) for modality in self.config.modalities)
        return next((pad for pad in pads if pad is not None), None)

    @cached_property
    def _pads_first(self) -> bool:
        return self.side is not None and self.pad is not None and self.pad.size >= self.side

    def corners(self, height: int, width: int) -> list[Corner]:
        """Where the samples of a window of that size lie."""
        if self.grid is not None:
            return corners(height, width, self.grid)
        # An odd pixel is cut off at the front, as rslearn's centred Pad does.
        top, left = ((spare + 1) // 2 for spare in self.spare(height, width))
        return [(top, left)]

    def spare(self, height: int, width: int) -> tuple[int, int]:
        """By how many rows and columns the one crop can be moved."""
        if self.side is None:
            return 0, 0
        if self._pads_first:
            height, width = padded_size(self.pad, height, width)
        return max(height - self.side, 0), max(width - self.side, 0)

    @property
    def _side(self) -> int | None:
        """Of what is cut before it is padded."""
        return self.grid.size if self.grid is not None else self.side

    def crop_slices(self, corner: Corner) -> tuple[slice, slice]:
        """The rows and columns of a window's arrays that a sample is made of."""
        side = self._side
        if side is None or self._pads_first:
            return slice(None), slice(None)
        return slice(corner[0], corner[0] + side), slice(corner[1], corner[1] + side)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of a sample of a window of that size."""
        side = self._side
        if side is None:
            return padded_size(self.pad, height, width)
        return (side, side) if self._pads_first else padded_size(self.pad, side, side)

    def pixels(self, stored: NDArray[Any], corner: Corner, modality: str) -> NDArray[Any]:
        """A sample of a window's pixels (H, W, ...); a view of them where nothing is added."""
        return self._cut(stored, corner, self.config.modality(modality).pad_of(self.split), 0)

    def target(self, stored: NDArray[Any], corner: Corner) -> NDArray[Any]:
        """A sample of a window's target (H, W); what is added has no label."""
        fill = IGNORE_LABEL if self.config.task.kind.has_classes else np.nan
        return self._cut(stored, corner, self.config.label.pad_of(self.split), fill)

    def _cut(
        self, stored: NDArray[Any], corner: Corner, pad: Pad | None, fill: float
    ) -> NDArray[Any]:
        side = self._side
        if self._pads_first:
            rows, columns = (slice(start, start + (side or 0)) for start in corner)
            return apply_pad(stored, pad, fill)[rows, columns]
        part = stored[self.crop_slices(corner)]
        return apply_pad(part if side is None else fill_up(part, side, fill), pad, fill)


def count_samples(
    config: ResolvedConfig, splits: NDArray[np.str_], heights: NDArray[Any], widths: NDArray[Any]
) -> NDArray[np.int64]:
    """How many samples each window has, by its split and size."""
    counts = np.ones(len(splits), np.int64)
    for split, grid in config.all_crops.items():
        here = splits == split
        counts[here] = _count(heights[here], grid) * _count(widths[here], grid)
    return counts


def _count(lengths: NDArray[Any], grid: CropGrid) -> NDArray[np.int64]:
    """How many crops lie along sides of these lengths."""
    last = np.maximum(lengths.astype(np.int64) - grid.size, 0)
    return np.asarray(1 - -last // (grid.size - grid.overlap))


def split_cut(config: ResolvedConfig, split: str) -> Cut:
    """How a split's samples are cut."""
    grid = config.all_crops.get(split)
    return Cut(config, split, grid, None if grid is not None else config.crop_size)


def cuts_of(config: ResolvedConfig, splits: Sequence[str] | NDArray[np.str_]) -> NDArray[np.intp]:
    """Which of `config.cuts` the samples of windows in these splits are."""
    numbers = {split: config.cut_of(split) for split in SPLITS}
    return np.array([numbers.get(str(split), 0) for split in splits], np.intp)
