"""What an encoder is, and encoders by name.

| name | encoder |
|---|---|
| `pixels` | per-band statistics of the pixels: what any model must beat |
| `olmoearth:nano` | OlmoEarth v1.2 nano with weights from the Hugging Face hub |
| `olmoearth:v1-base@/path` | another version and size, weights from a local folder or .pth file |
| `olmoearth:nano@random` | random initialisation: how far the architecture alone goes |
| `module:factory` | your own: see Encoder |
"""

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch

from eval_ingest.errors import SweepError
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
    | method | and how: one of `core.norm.METHODS`, such as "norm_no_clip_2_std" |

    and `embed(batch, dataset)`, called without gradients. `batch` is a dict as EvalDataset's
    `collate` makes it (`batch["sentinel2_l2a"]` is float32 (B, H, W, T, C) on the CPU, of which
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


def load_encoder(spec: str, patch_size: int, device: torch.device) -> Encoder:
    """The encoder of that name; see the top of this file for the names.

    Raises:
        SweepError: there is no such encoder, or it can't be loaded.
    """
    check_encoder(spec)
    if spec == "pixels":
        from eval_ingest.sweep.pixels import Pixels

        return Pixels(patch_size)
    if spec.startswith("olmoearth:"):
        # Slow to import, and only here needed.
        from eval_ingest.sweep.olmoearth import load_olmoearth

        return load_olmoearth(spec, patch_size, device)
    return _custom(spec, patch_size, device)


def check_encoder(spec: str) -> None:
    """Refuse names that can't be an encoder, before any weights are loaded.

    Raises:
        SweepError: the name isn't one of the forms above, or a package, module or factory isn't
            there.
    """
    if spec == "pixels":
        return
    kind, _, rest = spec.partition(":")
    if not (kind and rest):
        raise SweepError(
            f"no encoder {spec!r}; there are pixels, olmoearth:SIZE (olmoearth:nano@random, "
            "olmoearth:base@/path/to/weights), and module:factory for your own"
        )
    if kind == "olmoearth":
        from eval_ingest.sweep.olmoearth import OlmoEarthSpec

        OlmoEarthSpec.parse(spec)
        if importlib.util.find_spec("olmoearth_pretrain_minimal") is None:
            raise SweepError(
                f"{spec} needs olmoearth-pretrain-minimal; "
                'install it: pip install "eval-ingest[olmoearth]"'
            )
    else:
        _factory(spec)


_ATTRIBUTES = ("name", "fingerprint", "weights", "patch_size", "normalize", "method", "embed")


def _factory(spec: str) -> Callable[..., Any]:
    """What a `module:factory` names."""
    module_name, _, factory_name = spec.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a console script doesn't look in the current folder
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise SweepError(
            f"encoder {spec}: importing {module_name} failed ({error}); it must be installed, or "
            f"be {module_name.replace('.', '/')}.py in the current folder {os.getcwd()}"
        ) from error
    except Exception as error:  # anybody's own code
        raise SweepError(
            f"encoder {spec}: importing {module_name} failed with {type(error).__name__}: {error}"
        ) from error
    factory: Callable[..., Any] | None = getattr(module, factory_name, None)
    if factory is None or not callable(factory):
        public = [name for name in vars(module) if not name.startswith("_")]
        raise SweepError(
            f"encoder {spec}: {module_name} has no function {factory_name}; "
            f"it has {', '.join(public[:12]) or 'nothing'}"
        )
    return factory


def _custom(spec: str, patch_size: int, device: torch.device) -> Encoder:
    factory, factory_name = _factory(spec), spec.partition(":")[2]
    try:
        encoder = factory(patch_size=patch_size, device=device)
    except Exception as error:
        raise SweepError(
            f"encoder {spec}: {factory_name}(patch_size={patch_size}, device={str(device)!r}) "
            f"failed with {type(error).__name__}: {error}"
        ) from error
    missing = [name for name in _ATTRIBUTES if not hasattr(encoder, name)]
    if missing:
        raise SweepError(
            f"encoder {spec}: what {factory_name} returned lacks {', '.join(missing)}; "
            "see eval_ingest.sweep.encoders.Encoder"
        )
    made: Encoder = encoder
    return made
