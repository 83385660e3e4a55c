"""rslearn's Mask: what a raster hides of an image, or of a label."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval_ingest.core.resolved import MaskInput
from eval_ingest.decoding.problems import Unreadable


def hidden_pixels(mask: NDArray[Any], wanted: MaskInput) -> NDArray[np.bool_]:
    """True where the mask (H, W, T), as stored, hides a pixel; compared as rslearn reads it."""
    with np.errstate(invalid="ignore"):
        values = mask.astype(wanted.dtype)
    if wanted.shows:
        return ~np.isin(values, wanted.shows)
    return np.isin(values, wanted.hides)


def apply_mask(pixels: NDArray[Any], mask: NDArray[Any], wanted: MaskInput, what: str) -> None:
    """Set pixels (H, W, T, C) to the mask's value where the mask (H, W, 1 or T) hides them.

    Raises:
        Unreadable: the mask has another number of timesteps.
    """
    if mask.shape[2] not in (1, pixels.shape[2]):
        raise Unreadable(
            "raster_bands",
            f"the mask of {what} has {mask.shape[2]} timesteps for {pixels.shape[2]}",
        )
    hidden = np.broadcast_to(hidden_pixels(mask, wanted), pixels.shape[:3])
    pixels[hidden] = wanted.value
