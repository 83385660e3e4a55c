"""Samples to batches, also where windows differ in size or number of timesteps."""

from collections.abc import Sequence
from typing import Any

import torch

from eval_ingest.core.task import IGNORE_LABEL
from eval_ingest.errors import LoadError, brief


class Samples(Sequence[dict[str, Any]]):
    """Samples that are views of one batch, so that `collate` need not copy them."""

    def __init__(self, batch: dict[str, Any]) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return len(self.batch["window"])

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        return {
            key: {m: stack[i] for m, stack in value.items()} if key == "timestamps" else value[i]
            for key, value in self.batch.items()
            if key != "timesteps"
        }


class Ragged(dict[str, Any]):
    """A sample of a batch whose samples differ in shape: torch's own collate can't stack those."""

    def __copy__(self) -> "Ragged":
        # What torch's default collate does first, before it fails with words of its own.
        raise LoadError(
            "samples of this batch differ in height, width or number of timesteps, and torch's own "
            "collate can't stack them: use ds.loader(), or DataLoader(ds, "
            "collate_fn=eval_ingest.collate), which fills them up, or ds.batches(n, bucket=True)"
        )


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Stack samples; where shapes differ, pad at the end of H, W and T to the largest.

    Pixels and timestamps are padded with zeros, class targets with -1, others with NaN.
    `batch["timesteps"][modality]` (long, B) tells how many timesteps of each sample are real.

    Raises:
        LoadError: there are no samples, or not the same in each.
    """
    if isinstance(samples, Samples):
        return samples.batch
    if not isinstance(samples, list | tuple) or not all(
        isinstance(sample, dict) and sample.keys() == samples[0].keys() for sample in samples
    ):
        raise LoadError(
            f"a batch is made of a list of samples that hold the same, not of {brief(samples, 60)}"
        )
    if not samples:
        raise LoadError("there are no samples to make a batch of")
    batch: dict[str, Any] = {}
    for key in samples[0]:
        values = [sample[key] for sample in samples]
        if key == "timestamps":
            batch[key] = {m: _stack([value[m] for value in values], 0) for m in values[0]}
            batch["timesteps"] = {
                m: torch.tensor([len(value[m]) for value in values]) for m in values[0]
            }
        elif key == "target":
            fill = float("nan") if values[0].is_floating_point() else IGNORE_LABEL
            batch[key] = _stack(values, fill)
        elif isinstance(values[0], torch.Tensor):
            batch[key] = _stack(values, 0)
        else:
            batch[key] = values
    return batch


def _stack(tensors: Sequence[torch.Tensor], fill: float) -> torch.Tensor:
    if all(tensor.shape == tensors[0].shape for tensor in tensors):
        return torch.stack(list(tensors))
    shape = [max(sizes) for sizes in zip(*(tensor.shape for tensor in tensors), strict=True)]
    result = tensors[0].new_full((len(tensors), *shape), fill)
    for place, tensor in zip(result, tensors, strict=True):
        place[tuple(slice(size) for size in tensor.shape)] = tensor
    return result
