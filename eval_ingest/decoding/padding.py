"""rslearn's Pad: the one place that pads samples and targets."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval_ingest.core.resolved import (
    Pad,
    ResolvedConfig,
)
from eval_ingest.core.task import IGNORE_LABEL


def padded_target(target: NDArray[Any], config: ResolvedConfig) -> NDArray[Any]:
    """A target (H, W), padded by what stands for no label; a scalar as it is."""
    if not target.ndim:
        return target
    fill = IGNORE_LABEL if config.task.kind.has_classes else np.nan
    return apply_pad(target, config.label.pad, fill)


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
