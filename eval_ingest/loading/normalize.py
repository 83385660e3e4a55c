"""From stored pixels to float32: one conversion and one multiply-add."""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from eval_ingest.core import kernels
from eval_ingest.core.norm import METHODS, BandStats, affine, bounds, to_decibels
from eval_ingest.errors import LoadError, brief, optional_part

DEFAULT_METHOD = "norm_no_clip_2_std"


@dataclass(frozen=True)
class Normalizer:
    """How one modality's pixels become what a model sees."""

    scale: NDArray[np.float32] | None
    """Per band; None: values are only converted to float32."""
    offset: NDArray[np.float32] | None
    then: str = ""
    """`` nothing more, `clip` to 0..1, or `int`: quantise to 256 steps in 0..1."""
    decibels: bool = False
    bounds: tuple[torch.Tensor, torch.Tensor] | None = None
    """`int` alone: lo and hi - lo per band. Stored numbers often lie on the edge of two steps, so
    that a multiply-add, which rounds, would put the largest into the last step but one."""
    missing: tuple[tuple[int, float | None], ...] = ()
    """(band, stored value) of pixels without data; None: no finite number."""
    nodata: float = 0.0
    """What these become."""
    _tiled: dict[int, tuple[NDArray[np.float32], NDArray[np.float32]]] = field(
        default_factory=dict, compare=False, repr=False
    )

    @property
    def is_affine(self) -> bool:
        """True if a multiply-add of what is stored, or less, is all that it takes; then clipped."""
        decibels = self.decibels and self.scale is not None
        return not (self.missing or self.bounds is not None or decibels)

    def apply(self, stored: NDArray[Any], out: torch.Tensor) -> None:
        """Normalise pixels (..., T, C) into a contiguous float32 tensor of the same shape."""
        if stored.shape != out.shape:
            raise ValueError(f"pixels are {stored.shape}, and their place {tuple(out.shape)}")
        if not stored.size:
            return
        self._scale(stored, out)
        for band, value in self.missing:
            part = stored[..., band]
            hit = ~np.isfinite(part) if value is None else part == part.dtype.type(value)
            out.numpy()[..., band][hit] = self.nodata

    def gather(self, runs: Iterable[kernels.Runs], part: range, out: torch.Tensor) -> None:
        """Do what `apply` does for some samples of a batch (N, H, W, T, C), if it `is_affine`."""
        factor, offset = self._per_pixel(out.shape[-2])
        for some in runs:
            kernels.gather(some.part(part), factor, offset, out.numpy())
        if self.then == "clip":
            out[part.start : part.stop].clamp_(0, 1)

    def _scale(self, stored: NDArray[Any], out: torch.Tensor) -> None:
        if self.bounds is not None:
            self._quantise(to_decibels(stored) if self.decibels else stored, out)
            return
        factor, offset = self._per_pixel(stored.shape[-2])
        if self.decibels and factor is not None:
            stored = to_decibels(stored)
        if not kernels.scale(stored, factor, offset, out.numpy()):
            out.copy_(_tensor(stored))
            if factor is not None and offset is not None:
                rows = out.view(-1, len(factor))
                torch.addcmul(torch.from_numpy(offset), rows, torch.from_numpy(factor), out=rows)
        if self.then == "clip":
            out.clamp_(0, 1)

    def _quantise(self, stored: NDArray[Any], out: torch.Tensor) -> None:
        assert self.bounds is not None, "quantising needs the bounds"
        low, width = self.bounds
        out.copy_(_tensor(stored))
        out.sub_(low).div_(width).mul_(255).clamp_(0, 255).floor_().div_(255)

    def _per_pixel(
        self, timesteps: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]] | tuple[None, None]:
        """Scale and offset of a pixel's T x C values: wide rows are what vector units like."""
        if self.scale is None or self.offset is None:
            return None, None
        found = self._tiled.get(timesteps)
        if found is None:
            found = np.tile(self.scale, timesteps), np.tile(self.offset, timesteps)
            self._tiled[timesteps] = found
        return found


def _tensor(array: NDArray[Any]) -> torch.Tensor:
    """A tensor on the array's memory; it is only read.

    By numpy, the conversion of one sample would take one thread, and twice as long on two.
    """
    if not array.flags.writeable:
        # torch warns of read-only memory, which a memory map is; nothing is ever written to it.
        view = array.view()
        interface = dict(view.__array_interface__)
        interface["data"] = (interface["data"][0], False)
        array = np.asarray(_Writable(interface, array))
    return torch.from_numpy(array)


class _Writable:
    """Presents read-only memory as writable, and keeps its owner alive."""

    def __init__(self, interface: dict[str, Any], owner: NDArray[Any]) -> None:
        self.__array_interface__ = interface
        self.owner = owner


def make_normalizer(
    method: str,
    bands: tuple[str, ...],
    stats: Mapping[str, Mapping[str, float]],
    decibels: bool,
    missing: tuple[tuple[int, float | None], ...] = (),
    nodata: float = 0.0,
) -> Normalizer:
    """The normaliser of a modality.

    Args:
        method: one of `core.norm.METHODS`.
        bands: the sample's bands in order.
        stats: per band at least mean and std.
        decibels: pixels are linear power.
        missing: see `Normalizer`.
        nodata: see `Normalizer`.

    Raises:
        LoadError: no such method, or a band without the statistics that it needs.
    """
    if method not in METHODS:
        raise LoadError(f"no normalisation method {method!r}; there are {', '.join(METHODS)}")
    unknown = [band for band in bands if band not in stats]
    if unknown:
        raise LoadError(f"no statistics for the bands {', '.join(unknown)}; use normalize=None")
    for band in bands:
        wrong = [
            v for v in stats[band].values() if type(v) is not float and not isinstance(v, Real)
        ]
        if wrong or not {"mean", "std"} <= stats[band].keys():
            raise LoadError(
                f"the statistics of band {band} are {brief(dict(stats[band]), 60)}; they must be "
                "numbers: mean and std, and min and max for methods that need them"
            )
    rule = METHODS[method]
    if rule and rule.sigmas is None and not all({"min", "max"} <= stats[b].keys() for b in bands):
        raise LoadError(
            f"{method} needs each band's minimum and maximum, which pretraining's statistics lack; "
            'use normalize="dataset"'
        )
    nan = float("nan")
    table = [
        BandStats(s["mean"], s["std"], s.get("min", nan), s.get("max", nan))
        for s in (stats[band] for band in bands)
    ]
    scale, offset = affine(method, table)
    exact = None
    if rule and rule.then == "int":
        low, width = bounds(method, table)
        exact = torch.from_numpy(low).float(), torch.from_numpy(width).float()
    return Normalizer(
        scale, offset, rule.then if rule else "", decibels, exact, missing, float(nodata)
    )


def pretrained_stats(modality: str) -> dict[str, dict[str, float]]:
    """Band statistics of OlmoEarth's pretraining, which its packages ship.

    Raises:
        LoadError: neither package is installed, or it doesn't know the modality.
    """
    config = _computed_config()
    if modality not in config:
        raise LoadError(f"OlmoEarth's pretraining has no statistics for {modality}")
    return {band: dict(stats) for band, stats in config[modality].items()}


@functools.cache
def _computed_config() -> dict[str, Any]:
    # Optional: only pretrained normalisation needs it. A trainer has the other of the two packages.
    try:
        from olmoearth_pretrain_minimal.olmoearth_pretrain_v1.data import normalize
    except ImportError:
        with optional_part("olmoearth", 'normalize="pretrained"'):
            from olmoearth_pretrain.data import normalize
    config: dict[str, Any] = normalize.load_computed_config()
    return config
