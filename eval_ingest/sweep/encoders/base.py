"""What an encoder is: embeddings of samples, by a model that isn't trained."""

from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch

from eval_ingest.loading import EvalDataset


class Embeddings(NamedTuple):
    """What an encoder makes of a batch; one of the two may be None if it isn't needed."""

    patches: torch.Tensor | None
    """float (B, h, w, D): one vector per patch; needed for tasks with a label per pixel."""
    pooled: torch.Tensor | None = None
    """float (B, D): one vector per window; default the mean of the patches."""


@runtime_checkable
class Encoder(Protocol):
    """A frozen encoder. Your own is `module:factory`, where

        factory(patch_size: int, device: torch.device) -> Encoder

    is importable from the current folder or installed. It has these attributes:

    | attribute | meaning |
    |---|---|
    | name | for tables and plots |
    | fingerprint | a text that changes whenever the embeddings would: hash the weights |
    | weights | where the weights are from, in words; part of every result row |
    | patch_size | pixels per side of a patch; sample sizes must be multiples of it |
    | normalize | what EvalDataset is to do: "dataset", "pretrained" or None |
    | device | if it has this one: where batches are wanted; default the CPU |
    | method | and how: one of `core.norm.METHODS`, such as "norm_no_clip_2_std" |

    and `embed(batch, dataset)`, called without gradients. `batch` is a dict as EvalDataset's
    `collate` makes it (`batch["sentinel2_l2a"]` is float32 (B, H, W, T, C), of which
    the first `batch["timesteps"]["sentinel2_l2a"][b]` timesteps are real); all samples of a batch
    have the same shape. `dataset` is the EvalDataset, for `dataset.bands`.

    >>> class FirstImage:
    ...     name, fingerprint, weights = "first image", "first-image-1", "none"
    ...     normalize, method = "dataset", "norm_no_clip_2_std"
    ...     def __init__(self, patch_size, device):
    ...         self.patch_size = patch_size
    ...     def embed(self, batch, dataset):
    ...         p = self.patch_size
    ...         pixels = batch["sentinel2_l2a"][:, :, :, 0]
    ...         grid = pixels.unfold(1, p, p).unfold(2, p, p)
    ...         return Embeddings(grid.mean((-1, -2)))
    >>> isinstance(FirstImage(4, torch.device("cpu")), Encoder)
    True
    """

    name: str
    fingerprint: str
    weights: str
    patch_size: int
    normalize: Literal["dataset", "pretrained"] | None
    method: str

    def embed(self, batch: dict[str, Any], dataset: EvalDataset) -> Embeddings:
        """Embed one batch."""
        ...
