"""Bilinear upsampling from patches to pixels, with corners aligned, and its gradient.

A linear layer shared by all pixels of upsampled embeddings gives the same as upsampling what the
layer gives per patch, as both are linear and the weights of a pixel add up to 1: so embeddings
needn't be upsampled. For one window the pixels are U_h @ values @ U_w.T, and a gradient G of them
goes back as U_h.T @ G @ U_w. Probes and training are elsewhere (probes.py).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch


def bilinear_weights(patches: int, pixels: int) -> torch.Tensor:
    """(pixels, patches) float32, of torch's interpolate(mode="bilinear", align_corners=True).

    >>> bilinear_weights(2, 3)
    tensor([[1.0000, 0.0000],
            [0.5000, 0.5000],
            [0.0000, 1.0000]])
    """
    step = (patches - 1) / max(pixels - 1, 1)
    at = torch.arange(pixels, dtype=torch.float64)[:, None] * step
    return (1 - (at - torch.arange(patches)).abs()).clamp(min=0).float()


@dataclass(frozen=True)
class Grid:
    """Windows that have as many patches each, in as many rows and columns."""

    rows: torch.Tensor
    """(S h w,) long: where the patches are among all rows; window by window, row by row."""
    height: int
    """h: rows of patches"""
    width: int
    """w: columns of patches"""
    patch: int
    """p: pixels per side of a patch"""

    def upsample(self, values: torch.Tensor) -> torch.Tensor:
        """Pixels (S h w, p * p, X), by patch, from what patches have, (S h w, X)."""
        h, w, p, x = self.height, self.width, self.patch, values.shape[1]
        tall = self._tall(values) @ values.view(-1, h, w * x)
        wide = self._wide(values) @ tall.view(-1, w, x)
        pixels = wide.view(-1, h, p, w, p, x).transpose(2, 3)
        return pixels.reshape(-1, p * p, x)

    def gradient(self, pixels: torch.Tensor) -> torch.Tensor:
        """From the gradient of pixels (S h w, p * p, X) to that of the patches (S h w, X)."""
        h, w, p, x = self.height, self.width, self.patch, pixels.shape[2]
        wide = pixels.view(-1, h, w, p, p, x).transpose(2, 3).reshape(-1, w * p, x)
        tall = (self._wide(pixels).T @ wide).view(-1, h * p, w * x)
        return (self._tall(pixels).T @ tall).view(-1, x)

    def _tall(self, like: torch.Tensor) -> torch.Tensor:
        return bilinear_weights(self.height, self.height * self.patch).to(like)

    def _wide(self, like: torch.Tensor) -> torch.Tensor:
        return bilinear_weights(self.width, self.width * self.patch).to(like)


def grids(
    first: torch.Tensor, grid: torch.Tensor, patch: int, values_per_pixel: int, most: int
) -> Iterator[Grid]:
    """Windows by the size of their grids, in pieces.

    Args:
        first: (N,) long: the first row of a window.
        grid: (N, 2) long: rows and columns of its patches.
        patch: pixels per side of a patch.
        values_per_pixel: that are made at a time.
        most: values of a piece, if a window has no more.
    """
    for h, w in torch.unique(grid, dim=0).tolist():
        starts = first[(grid == torch.tensor([h, w])).all(1)]
        at_once = max(most // (h * w * patch**2 * values_per_pixel), 1)
        for k in range(0, len(starts), at_once):
            some = starts[k : k + at_once]
            yield Grid((some[:, None] + torch.arange(h * w)).flatten(), h, w, patch)
