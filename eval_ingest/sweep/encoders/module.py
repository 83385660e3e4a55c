"""A model that is being trained, as an encoder: frozen while it is looked at, then as it was.

Where models come from by name is registry.py.
"""

import contextlib
import random
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import torch

from eval_ingest.errors import SweepError
from eval_ingest.loading import EvalDataset
from eval_ingest.loading.normalize import DEFAULT_METHOD
from eval_ingest.sweep.encoders.base import Embeddings
from eval_ingest.sweep.encoders.olmoearth import OlmoEarthEncoder

Adapter = Callable[[Any, dict[str, Any], EvalDataset], "Embeddings | torch.Tensor"]
"""`adapter(model, batch, dataset)`: the model's embeddings of a batch whose tensors are on the
device, normalised as EvalDataset does it unless something else is asked for. A tensor (B, h, w, D)
is taken as patches, one (B, D) as pooled."""


class ModuleEncoder:
    """A module and its adapter, with the attributes of an Encoder."""

    fingerprint = ""
    weights = "the model as it is now"
    normalize: Literal["dataset", "pretrained"] | None = "dataset"
    method = DEFAULT_METHOD
    """Both as EvalDataset has them, whose batches the model is being trained on."""

    def __init__(self, model: Any, adapter: Adapter, patch_size: int, device: torch.device) -> None:
        self.name, self.patch_size = type(model).__name__, patch_size
        self._model, self._adapter, self.device = model, adapter, device

    def embed(self, batch: dict[str, Any], dataset: EvalDataset) -> Embeddings:
        """What the adapter makes of the batch."""
        found = self._adapter(self._model, batch, dataset)
        if isinstance(found, torch.Tensor):
            found = Embeddings(found) if found.ndim == 4 else Embeddings(None, found)
        return found


def encoder_of(model: Any, adapter: Adapter | None, patch_size: int, device: torch.device) -> Any:
    """The encoder that a model, or what contains one, is.

    Raises:
        SweepError: it needs an adapter.
    """
    if adapter is not None:
        return ModuleEncoder(model, adapter, patch_size, device)
    if callable(getattr(model, "embed", None)) and hasattr(model, "patch_size"):
        return model
    inner = getattr(model, "encoder", model)
    if hasattr(inner, "tokenization_config"):  # OlmoEarth's, of either package
        return OlmoEarthEncoder(
            inner, type(model).__name__, ModuleEncoder.weights, patch_size, device
        )
    raise SweepError(
        f"how samples go through a {type(model).__name__} isn't known; give evaluate() "
        "adapter=f, where f(model, batch, dataset) returns patches (B, h, w, D) or pooled (B, D)"
    )


@contextlib.contextmanager
def undisturbed(model: Any, device: torch.device) -> Iterator[None]:
    """Evaluation mode for a while; then modes, gradients and random states are as they were."""
    modules = list(model.modules()) if isinstance(model, torch.nn.Module) else []
    modes = [module.training for module in modules]
    states = random.getstate(), np.random.get_state(legacy=False)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        for module in modules:
            module.training = False
        try:
            yield
        finally:
            for module, mode in zip(modules, modes, strict=True):
                module.training = mode
            random.setstate(states[0])
            np.random.set_state(states[1])
            if device.type == "cuda":
                torch.cuda.empty_cache()
