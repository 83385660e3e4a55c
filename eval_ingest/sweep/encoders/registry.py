"""Encoders by name.

| name | encoder |
|---|---|
| `pixels` | per-band statistics of the pixels: what any model must beat |
| `random` | a random layer over the pixels: features that nobody learned |
| `olmoearth:nano` | OlmoEarth v1.2 nano with weights from the Hugging Face hub |
| `olmoearth:v1-base@/path` | another version and size, weights from a local folder or .pth file |
| `olmoearth:nano@random` | random initialisation: how far the architecture alone goes |
| `module:factory` | your own: see Encoder in base.py |
"""

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from typing import Any

import torch

from eval_ingest.errors import SweepError, lacks, words_of
from eval_ingest.sweep.encoders.base import Encoder


def load_encoder(spec: str, patch_size: int, device: torch.device) -> Encoder:
    """The encoder of that name; see the top of this file for the names.

    Raises:
        SweepError: there is no such encoder, or it can't be loaded.
    """
    check_encoder(spec)
    if spec.startswith("olmoearth:"):
        # Slow to import, and only here needed.
        from eval_ingest.sweep.encoders.olmoearth import load_olmoearth

        return load_olmoearth(spec, patch_size, device)
    return _custom(_OURS.get(spec, spec), patch_size, device)


_OURS = {
    "pixels": "eval_ingest.sweep.encoders.pixels:Pixels",
    "random": "eval_ingest.sweep.encoders.pixels:RandomPatches",
}


def check_encoder(spec: str) -> None:
    """Refuse names that can't be an encoder, before any weights are loaded.

    Raises:
        SweepError: the name isn't one of the forms above, or a package, module or factory isn't
            there.
    """
    if spec in _OURS:
        return
    kind, _, rest = str(spec).partition(":")
    if not (kind and rest):
        raise SweepError(
            f"no encoder {spec!r}; there are {', '.join(_OURS)}, olmoearth:SIZE "
            "(olmoearth:nano@random, olmoearth:base@/path/to/weights), and module:factory for "
            "your own"
        )
    if kind == "olmoearth":
        from eval_ingest.sweep.encoders.olmoearth import OlmoEarthSpec

        OlmoEarthSpec.parse(spec)
        if importlib.util.find_spec("olmoearth_pretrain_minimal") is None:
            raise SweepError(lacks(spec, "olmoearth_pretrain_minimal", "olmoearth"))
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
    except Exception as error:  # anybody's own code
        told = f"encoder {spec}: importing {module_name} failed with {words_of(error)}"
        if isinstance(error, ImportError):
            file = f"{module_name.replace('.', '/')}.py in the current folder {os.getcwd()}"
            told += f"; it must be installed, or be {file}"
        raise SweepError(told) from error
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
            f"failed with {words_of(error)}"
        ) from error
    missing = [name for name in _ATTRIBUTES if not hasattr(encoder, name)]
    if missing:
        raise SweepError(
            f"encoder {spec}: what {factory_name} returned lacks {', '.join(missing)}; "
            "see eval_ingest.sweep.encoders.base.Encoder"
        )
    made: Encoder = encoder
    return made
