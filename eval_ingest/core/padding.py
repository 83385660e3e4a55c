"""rslearn's Pad: the one place that pads samples and targets."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval_ingest.core.resolved import Pad


def padded_size(pad: Pad | None, height: int, width: int) -> tuple[int, int]:
    """Height and width after padding, in pixels."""
    size = [height, width]
    for axis, before, after in _pad_steps(height, width, pad) if pad is not None else ():
        size[axis] += before + after
    return size[0], size[1]


def apply_pad(pixels: NDArray[Any], pad: Pad | None, fill: float | None = 0) -> NDArray[Any]:
    """rslearn's Pad on the first two axes (H, W): fill around, or crop where larger.

    With `fill` None nothing is filled around: what Pad leaves of the pixels.
    """
    if pad is None:
        return pixels
    for axis, before, after in _pad_steps(pixels.shape[0], pixels.shape[1], pad):
        if before < 0 or after < 0:
            keep = slice(-before, pixels.shape[axis] + after)
            pixels = pixels[(slice(None),) * axis + (keep,)]
        elif fill is not None and (before or after):
            pixels = _filled(pixels, axis, before, after, fill)
    return pixels


def fill_up(pixels: NDArray[Any], sides: tuple[int, int], fill: float) -> NDArray[Any]:
    """Add rows at the bottom and columns at the right, up to these; nothing is cut off."""
    for axis, side in enumerate(sides):
        missing = side - pixels.shape[axis]
        if missing > 0:
            pixels = _filled(pixels, axis, 0, missing, fill)
    return pixels


def _filled(pixels: NDArray[Any], axis: int, before: int, after: int, fill: float) -> NDArray[Any]:
    around = [(0, 0)] * pixels.ndim
    around[axis] = (before, after)
    return np.pad(pixels, around, constant_values=fill)


def _pad_steps(height: int, width: int, pad: Pad) -> list[tuple[int, int, int]]:
    """(axis, before, after) in turn, axis 0 for rows and 1 for columns; negative: cut off.

    Where rslearn 0.1.19 centres and a window is lower than the size, it adds the missing rows as
    columns. Samples must equal its own, so the same is done here.
    """
    rows, columns = pad.size - height, pad.size - width
    upper, left = (rows // 2, columns // 2) if pad.center else (0, 0)
    return [(1, left, columns - left), (1 if upper > 0 else 0, upper, rows - upper)]
