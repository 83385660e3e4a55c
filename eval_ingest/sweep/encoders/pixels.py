"""The honest baselines: statistics of the pixels, and a random layer; nothing is learned."""

from typing import Any, Literal

import torch

from eval_ingest.loading import EvalDataset
from eval_ingest.sweep.encoders.base import Embeddings

VERSION = 2

_WIDTH, _SEED = 128, 0
"""Of the random layer."""

MAX_TIMESTEPS = 12
"""Up to so many timesteps, each one's mean is a feature of its own."""


class _Standardised:
    """What reads standardised pixels."""

    normalize: Literal["dataset", "pretrained"] | None = "dataset"
    method = "standardize"

    def __init__(self, patch_size: int, device: object = None) -> None:
        """On the CPU, whatever the device."""
        self.patch_size = patch_size


class Pixels(_Standardised):
    """Per patch and band: mean, standard deviation, minimum and maximum over space and time.

    Where a dataset has 2 to 12 timesteps, also the mean at each timestep: what phenology needs.
    Timesteps that a sample lacks take its mean over time. Bands are standardised, so a feature
    is 0 on average, which is also what stands for a modality that a window lacks.
    """

    name = "pixels"
    fingerprint = f"pixels-{VERSION}"
    weights = "none"

    def embed(self, batch: dict[str, Any], dataset: EvalDataset) -> Embeddings:
        """Features (B, h, w, D) in the order of the dataset's modalities; pooled: their mean."""
        slots = dataset.metadata.num_timesteps
        slots = slots if 2 <= slots <= MAX_TIMESTEPS else 0
        features = [
            _statistics(batch[name], batch["timesteps"][name], self.patch_size, slots)
            for name in dataset.bands
        ]
        patches = torch.cat(features, dim=-1)
        return Embeddings(patches, patches.mean((1, 2)))


def _statistics(
    pixels: torch.Tensor, timesteps: torch.Tensor, patch_size: int, slots: int
) -> torch.Tensor:
    """Features (B, h, w, (4 + slots) C) of pixels (B, H, W, T, C) with so many real timesteps."""
    batch, height, width, steps, bands = pixels.shape
    h, w, p = height // patch_size, width // patch_size, patch_size
    if steps == 0:
        return pixels.new_zeros(batch, h, w, (4 + slots) * bands)
    pixels = pixels.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    cells = pixels.view(batch, h, p, w, p, steps, bands)
    means = cells.sum(2).sum(3) / p**2
    low, high = cells.amin(2).amin(3), cells.amax(2).amax(3)  # all (B, h, w, T, C)
    squares = pixels.square_().view_as(cells).sum(2).sum(3) / p**2

    real = (torch.arange(steps) < timesteps[:, None]).view(batch, 1, 1, steps, 1)
    count = timesteps.clamp(min=1).view(batch, 1, 1, 1)
    some = (timesteps > 0).view(batch, 1, 1, 1)
    if not real.all():
        low = low.masked_fill(~real, float("inf"))
        high = high.masked_fill(~real, float("-inf"))
        means, squares = means * real, squares * real
    mean = means.sum(3) / count
    std = (squares.sum(3) / count - mean.square()).clamp(min=0).sqrt()
    overall = [mean, std, low.amin(3).where(some, 0.0), high.amax(3).where(some, 0.0)]
    if slots:
        series = mean[:, :, :, None].repeat(1, 1, 1, slots, 1)
        used = min(slots, steps)
        series[:, :, :, :used] = torch.where(
            real[:, :, :, :used], means[:, :, :, :used], series[:, :, :, :used]
        )
        overall.append(series.flatten(3))
    return torch.cat(overall, dim=-1)


class RandomPatches(_Standardised):
    """A random layer over the pixels of each patch, averaged over time, and a ReLU.

    Such features are known to do well at times: Rahimi and Recht, Random Features for Large-Scale
    Kernel Machines (2007).
    """

    name = "random"
    fingerprint = f"random-1-{_WIDTH}-{_SEED}"
    weights = f"random initialisation (seed {_SEED})"

    def embed(self, batch: dict[str, Any], dataset: EvalDataset) -> Embeddings:
        """Patches (B, h, w, 128)."""
        p, images = self.patch_size, []
        for name in dataset.bands:
            count = batch["timesteps"][name].clamp(min=1)[:, None, None, None]
            images.append(batch[name].nan_to_num().sum(3) / count)
        image = torch.cat(images, dim=-1)
        cells = image.unfold(1, p, p).unfold(2, p, p).flatten(3)
        generator = torch.Generator().manual_seed(_SEED)
        weight = torch.randn(cells.shape[-1], _WIDTH, generator=generator) / cells.shape[-1] ** 0.5
        bias = torch.randn(_WIDTH, generator=generator)
        return Embeddings(torch.relu(cells @ weight + bias))
