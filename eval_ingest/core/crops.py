"""What of a window a sample is: all of it, its centre, or one of its crops; padded.

The one place that cuts. Loading cuts pixels and targets by it, indexing counts labels by it.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval_ingest.core.padding import apply_pad, fill_up, padded_size
from eval_ingest.core.resolved import SPLITS, CropGrid, Pad, ResolvedConfig, sides_of
from eval_ingest.core.task import IGNORE_LABEL

Corner = tuple[int, int]
"""Row and column of a crop's first pixel in its window."""


def starts(length: int, side: int, overlap: int) -> list[int]:
    """Where the crops begin along one side of a window, in pixels.

    One after the other with the overlap between them; the last one is shifted inward, so that it
    ends with the window. A side that is shorter than a crop has one, which goes beyond its end.

    >>> starts(15, 8, 2)
    [0, 6, 7]
    """
    last = length - side
    if last <= 0:
        return [0]
    return [*range(0, last, side - overlap), last]


def corners(height: int, width: int, grid: CropGrid) -> list[Corner]:
    """Every crop of a window, in rslearn's order: column by column, downward.

    >>> corners(4, 6, CropGrid(size=3))
    [(0, 0), (1, 0), (0, 3), (1, 3)]
    """
    rows, columns = (
        starts(*sizes, grid.overlap) for sizes in zip((height, width), grid.sides, strict=True)
    )
    return [(top, left) for left in columns for top in rows]


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
    sides: tuple[int, int] | None = None
    """Height and width of the one crop that is the sample; None: all of the window."""

    @cached_property
    def pad(self) -> Pad | None:
        """The modalities' Pad."""
        pads = (modality.pad_of(self.split) for modality in self.config.modalities)
        return next((pad for pad in pads if pad is not None), None)

    @cached_property
    def _pads_first(self) -> bool:
        return self.sides is not None and self.pad is not None and self.pad.size >= max(self.sides)

    def corners(self, height: int, width: int) -> list[Corner]:
        """Where the samples of a window of that size lie."""
        if self.grid is not None:
            return corners(height, width, self.grid)
        # An odd pixel is cut off at the front, as rslearn's centred Pad does.
        top, left = ((spare + 1) // 2 for spare in self.spare(height, width))
        return [(top, left)]

    def spare(self, height: int, width: int) -> tuple[int, int]:
        """By how many rows and columns the one crop can be moved."""
        if self.sides is None:
            return 0, 0
        if self._pads_first:
            height, width = padded_size(self.pad, height, width)
        return max(height - self.sides[0], 0), max(width - self.sides[1], 0)

    @property
    def _sides(self) -> tuple[int, int] | None:
        """Of what is cut before it is padded."""
        return self.grid.sides if self.grid is not None else self.sides

    @property
    def height(self) -> int | None:
        """Of what is cut from a window; None: all of it."""
        return None if self._sides is None or self._pads_first else self._sides[0]

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of a sample of a window of that size."""
        return self.size_with(self.pad, height, width)

    def size_with(self, pad: Pad | None, height: int, width: int) -> tuple[int, int]:
        """The same of a modality, or a target, that has this Pad: another than the first one's."""
        sides = self._sides
        if sides is None:
            return padded_size(pad, height, width)
        return sides if self._pads_first else padded_size(pad, *sides)

    def rectangle(
        self, windows: NDArray[Any], corners: NDArray[Any], pad: Pad | None
    ) -> tuple[int, int] | None:
        """Height and width of samples that are rectangles of windows; None: filled up, or unlike.

        Args:
            windows: height and width of each sample's (N, 2).
            corners: where in it each begins (N, 2).
            pad: of what is cut.
        """
        if pad is not None or self._pads_first:
            return None
        if self._sides is None and (windows != windows[0]).any():
            return None
        rows, columns = self._sides or map(int, windows[0])
        room = windows - corners - (rows, columns)
        return (rows, columns) if min(room.min(), corners.min()) >= 0 else None

    def footprint(
        self, pads: Collection[Pad | None], window: tuple[int, int], corner: Corner
    ) -> tuple[int, int, int, int]:
        """Top, left, bottom and right of what of a window lies in a sample, in its pixels.

        Where nothing does, since all of it is filled up, that is no more than the window's end.

        Args:
            pads: of the sample's modalities.
            window: its height and width.
            corner: where the sample is cut.
        """
        # Cut as pixels are: what is seen then is so by whatever is done to them.
        marks = [np.broadcast_to(at, window) for at in np.ogrid[: window[0], : window[1]]]
        cut = [[self._cut(mark, corner, pad, -1) for pad in pads] for mark in marks]
        seen = [np.concatenate([one[one >= 0] for one in found]) for found in cut]
        if not seen[0].size:
            return (*window, *window)
        (top, bottom), (left, right) = ((int(one.min()), int(one.max()) + 1) for one in seen)
        return top, left, bottom, right

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
        sides = self._sides
        if sides is not None and self._pads_first:
            return apply_pad(stored, pad, fill)[_slices(corner, sides)]
        if sides is not None:
            stored = fill_up(stored[_slices(corner, sides)], sides, fill)
        return apply_pad(stored, pad, fill)


def _slices(corner: Corner, sides: tuple[int, int]) -> tuple[slice, slice]:
    rows, columns = (slice(start, start + side) for start, side in zip(corner, sides, strict=True))
    return rows, columns


def count_samples(
    config: ResolvedConfig, splits: NDArray[np.str_], heights: NDArray[Any], widths: NDArray[Any]
) -> NDArray[np.int64]:
    """How many samples each window has, by its split and size."""
    counts = np.ones(len(splits), np.int64)
    for split, grid in config.all_crops.items():
        here = splits == split
        for lengths, side in zip((heights, widths), grid.sides, strict=True):
            last = np.maximum(lengths[here].astype(np.int64) - side, 0)
            counts[here] *= 1 - -last // (side - grid.overlap)
    return counts


def split_cut(config: ResolvedConfig, split: str) -> Cut:
    """How a split's samples are cut."""
    grid = config.all_crops.get(split)
    if grid is not None or config.crop_size is None:
        return Cut(config, split, grid)
    return Cut(config, split, sides=sides_of(config.crop_size))


def cuts_of(config: ResolvedConfig, splits: Sequence[str] | NDArray[np.str_]) -> NDArray[np.intp]:
    """Which of `config.cuts` the samples of windows in these splits are."""
    numbers = {split: config.cut_of(split) for split in SPLITS}
    return np.array([numbers.get(str(split), 0) for split in splits], np.intp)
