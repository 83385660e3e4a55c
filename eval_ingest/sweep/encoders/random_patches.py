"""A small model with random weights: what features that nobody learned give."""

from typing import Any, Literal

import torch

from eval_ingest.loading import EvalDataset
from eval_ingest.sweep.encoders.base import Embeddings

WIDTH, SEED = 128, 0


class RandomPatches:
    """A random layer over the pixels of each patch, averaged over time, and a ReLU.

    Such features are known to do well at times: Rahimi and Recht, Random Features for Large-Scale
    Kernel Machines (2007).
    """

    name = "random"
    fingerprint = f"random-1-{WIDTH}-{SEED}"
    weights = f"random initialisation (seed {SEED})"
    normalize: Literal["dataset", "pretrained"] | None = "dataset"
    method = "standardize"

    def __init__(self, patch_size: int, device: object = None) -> None:
        """On the CPU, whatever the device."""
        self.patch_size = patch_size

    def embed(self, batch: dict[str, Any], dataset: EvalDataset) -> Embeddings:
        """Patches (B, h, w, 128)."""
        p, images = self.patch_size, []
        for name in dataset.bands:
            count = batch["timesteps"][name].clamp(min=1)[:, None, None, None]
            images.append(batch[name].nan_to_num().sum(3) / count)
        image = torch.cat(images, dim=-1)
        cells = image.unfold(1, p, p).unfold(2, p, p).flatten(3)
        generator = torch.Generator().manual_seed(SEED)
        weight = torch.randn(cells.shape[-1], WIDTH, generator=generator) / cells.shape[-1] ** 0.5
        bias = torch.randn(WIDTH, generator=generator)
        return Embeddings(torch.relu(cells @ weight + bias))
