"""Pixels and labels as pictures: values in, colours 0 to 1 out.

What belongs here: which bands and which timestep are shown, how values are stretched, and which
colour a class has. What doesn't: drawing (loading/plot.py, report/).
"""

import colorsys
from collections.abc import Mapping
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from eval_ingest.core.norm import to_decibels
from eval_ingest.core.resolved import ModalityInput
from eval_ingest.core.task import Task

Color: TypeAlias = tuple[float, float, float]
"""Red, green, blue, 0 to 1."""

Key = TypeVar("Key")

MAX_PIXELS = 400
"""Larger pictures are thinned out to about this many pixels a side."""

NO_DATA = 0.93
"""The grey of pixels without data."""

_RADAR_DB = 8.0
"""Less contrast than this is mostly speckle."""

_RED_GREEN_BLUE = {"sentinel2_l2a": ("B04", "B03", "B02"), "landsat": ("B4", "B3", "B2")}

_PALETTE = (
    # Okabe and Ito (2008), then Tol's "muted": told apart with any kind of colour vision.
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0),
    (204, 121, 167), (51, 34, 136), (136, 204, 238), (68, 170, 153), (17, 119, 51), (153, 153, 51),
    (221, 204, 119), (204, 102, 119), (136, 34, 85), (170, 68, 153),
)  # fmt: skip


def class_colors(task: Task) -> list[Color]:
    """A colour per class: the dataset's own, else one that no other class has."""
    own = {known.color for known in task.classes}
    spare = iter([color for color in _PALETTE if color not in own])
    colors: list[Color] = []
    for k, known in enumerate(task.classes):
        color = known.color or next(spare, None)
        if color is None:  # beyond the palette: hues by the golden angle, in three lightnesses
            colors.append(colorsys.hsv_to_rgb(k * 0.618034 % 1, 0.75, (0.55, 0.75, 0.95)[k % 3]))
        else:
            colors.append((color[0] / 255, color[1] / 255, color[2] / 255))
    return colors


def shown_bands(modality: ModalityInput) -> list[int]:
    """The three bands that are shown as red, green and blue, by their places in the sample."""
    wanted = [b for b in _RED_GREEN_BLUE.get(modality.name, ()) if b in modality.bands]
    if len(wanted) == 3:
        return [modality.bands.index(band) for band in wanted]
    return (list(range(len(modality.bands))) * 3)[:3]


def caption(modality: ModalityInput) -> str:
    """What a picture of the modality shows."""
    names = [modality.bands[k] for k in shown_bands(modality)]
    if modality.decibels:
        first, last = modality.bands[0], modality.bands[-1]
        return f"false colour: {first}, {last} and their difference in dB, mean over time"
    true = tuple(names) == _RED_GREEN_BLUE.get(modality.name)
    what = f"true colour: {' '.join(names)}" if true else f"bands {', '.join(names)}"
    return f"{what}, the clearest timestep"


def composite(pixels: NDArray[Any], modality: ModalityInput) -> NDArray[np.float32]:
    """Stored pixels (H, W, T, C) as (H, W, 3) of the clearest timestep, not stretched yet.

    Radar: the first and last band in dB and their difference, mean over time. NaN without data.
    """
    if not pixels.shape[2]:
        return np.full((*pixels.shape[:2], 3), np.nan, np.float32)
    if modality.decibels:
        # The mean over time takes most of the speckle away.
        known = pixels > 0
        with np.errstate(all="ignore"):
            power = np.where(known, pixels, 0).sum(axis=2) / known.sum(axis=2)
            decibels = to_decibels(np.where(known.any(axis=2), power, np.nan))
        first, last = decibels[..., 0], decibels[..., -1]
        return np.stack([first, last, first - last], axis=-1).astype(np.float32)
    image = pixels[:, :, clearest(pixels, modality), shown_bands(modality)].astype(np.float32)
    return np.where((image == 0).all(axis=-1, keepdims=True), np.nan, image)


def clearest(pixels: NDArray[Any], modality: ModalityInput) -> int:
    """The timestep of (H, W, T, C) with most pixels, and among those the darkest: least cloud."""
    visible = pixels[..., shown_bands(modality)]
    with_data = (visible != 0).any(axis=-1).mean(axis=(0, 1))
    brightness = np.nan_to_num(visible, nan=0).mean(axis=(0, 1, 3))
    complete = with_data >= 0.98 * with_data.max()
    return int(np.argmin(np.where(complete, brightness, np.inf)))


def stretched(
    images: Mapping[Key, NDArray[np.float32]], decibels: bool
) -> dict[Key, NDArray[np.float32]]:
    """Images 0 to 1 between the 2nd and 98th percentile of all of them, so that they compare.

    The channels of optical images share one width: colours stay true, and a channel that hardly
    varies doesn't show its noise alone. Those of radar, whose units differ, reach over 8 decibels
    at least.
    """
    sampled = np.concatenate([np.zeros((0, 3)), *(i.reshape(-1, 3)[::7] for i in images.values())])
    sampled = sampled[np.isfinite(sampled).all(axis=1)]
    if not len(sampled):
        return {key: np.full_like(image, NO_DATA) for key, image in images.items()}
    low, high = np.percentile(sampled, [2, 98], axis=0)
    width = np.maximum(high - low, _RADAR_DB if decibels else 1e-6)
    if decibels:
        low = (low + high - width) / 2
    else:
        width = np.full(3, width.max())
        low = np.where(high - low <= 1e-6, low - width / 2, low)

    def shown(image: NDArray[np.float32]) -> NDArray[np.float32]:
        bright = np.clip((image - low) / width, 0, 1) ** 0.8
        return np.asarray(np.nan_to_num(bright, nan=NO_DATA), np.float32)

    return {key: shown(image) for key, image in images.items()}


def thinned(array: NDArray[Any]) -> NDArray[Any]:
    """Every so many rows and columns of a picture (H, W, ...) that is larger than needed."""
    step = max(1, -(-max(array.shape[:2], default=1) // MAX_PIXELS))
    return array[::step, ::step] if array.ndim >= 2 else array


def greyed(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """A picture (H, W, 3) in pale greys, to lay a label over."""
    grey = image.mean(axis=-1, keepdims=True) * 0.55 + 0.4
    return np.repeat(grey, 3, axis=-1).astype(np.float32)


def innermost(mask: NDArray[np.bool_]) -> tuple[int, int]:
    """A pixel (row, column) that lies deep in a mask that isn't empty: what erosion leaves last.

    >>> innermost(np.pad(np.ones((3, 3), bool), ((0, 4), (2, 0))))
    (1, 3)
    """
    inside = np.pad(mask, 1)
    while True:
        left = inside[1:-1, :-2] & inside[1:-1, 2:] & inside[:-2, 1:-1] & inside[2:, 1:-1]
        if not (left & inside[1:-1, 1:-1]).any():
            row, column = np.argwhere(inside)[0] - 1
            return int(row), int(column)
        inside = np.pad(left & inside[1:-1, 1:-1], 1)
