"""Batches that are converted, normalised and masked on a device, from integers as they are stored.

Stored integers are half as many bytes on the bus as float32. They go from pinned memory on a stream
of their own, while the model is at the batch before. Here is how one travels and what is done where
it arrives; which samples make a batch is for dataset.py. This module needs torch and numpy alone,
so that benchmarks/gpu.py runs where nothing else is installed.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from eval_ingest.loading.normalize import Normalizer

Item = TypeVar("Item")

_THREADS = 8
"""That gather a batch into pinned memory, of which one alone fills a fifth of a fast bus."""
_FLOOR = 1e-10
"""Of linear power, as in core.norm.to_decibels."""
_EXACT = {torch.uint16: torch.float32, torch.uint32: torch.float64, torch.uint64: torch.float64}
"""What unsigned integers, of which torch can do little, are compared as."""


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """Items, of which the next is made, in a thread, while one is looked at."""
    done = object()
    with ThreadPoolExecutor(1, "eval_ingest_ahead") as maker:
        pending = maker.submit(next, items, done)
        while (item := pending.result()) is not done:
            pending = maker.submit(next, items, done)
            yield item  # type: ignore[misc]


class Carrier:
    """Brings batches to a device.

    Args:
        device: where to; on the CPU, nothing is pinned and there is no stream.
        normalizers: by modality.
    """

    def __init__(self, device: torch.device, normalizers: "Mapping[str, Normalizer]") -> None:
        self.device = device
        self._normalizers = normalizers
        self._constants: dict[str, tuple[torch.Tensor, torch.Tensor] | None] = {
            name: _constants(normalizer, device) for name, normalizer in normalizers.items()
        }
        self._threads = ThreadPoolExecutor(min(os.cpu_count() or 1, _THREADS))
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def batches(self, made: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Batches that are made by `pixels`, one ahead; what they hold else is brought here."""
        for batch, arrival in ahead(self._brought(batch) for batch in made):
            if arrival is not None:
                here = torch.cuda.current_stream(self.device)
                here.wait_event(arrival)  # not for the stream, where the next batch is on its way
                for tensor in _tensors(batch):
                    tensor.record_stream(here)  # its memory isn't used again before
            yield batch

    def pixels(self, name: str, stored: Sequence[NDArray[Any]]) -> torch.Tensor:
        """Normalised pixels (B, H, W, T, C) of samples of equal shape and type."""
        first = stored[0]
        pinned = self._stream is not None
        batch = torch.empty(
            (len(stored), *first.shape), dtype=_torch_type(first), pin_memory=pinned
        )
        list(self._threads.map(np.copyto, batch.numpy(), stored))
        with self._on_stream():
            there = batch.to(self.device, non_blocking=True)
            return normalised(there, self._normalizers[name], self._constants[name])

    def _brought(self, batch: dict[str, Any]) -> tuple[dict[str, Any], torch.cuda.Event | None]:
        with self._on_stream():
            found = _mapped(batch, lambda tensor: tensor.to(self.device, non_blocking=True))
        if self._stream is None:
            return found, None
        arrival = torch.cuda.Event()  # type: ignore[no-untyped-call]
        arrival.record(self._stream)  # type: ignore[no-untyped-call]
        return found, arrival

    def _on_stream(self) -> Any:
        if self._stream is None:
            return contextlib.nullcontext()
        return torch.cuda.stream(self._stream)


def normalised(
    stored: torch.Tensor,
    normalizer: "Normalizer",
    constants: tuple[torch.Tensor, torch.Tensor] | None,
) -> torch.Tensor:
    """Stored pixels (..., C) as float32, where they are: equal to Normalizer.apply to rounding."""
    values = stored.to(torch.float32)
    if constants is not None:
        first, second = constants
        if normalizer.decibels:
            values = values.clamp(min=_FLOOR).log10().mul_(10)
        if normalizer.bounds is not None:
            values = values.sub(first).div_(second).mul_(255).clamp_(0, 255).floor_().div_(255)
        else:
            values = torch.addcmul(second, values, first)
            if normalizer.then == "clip":
                values.clamp_(0, 1)
    for band, value in normalizer.missing:
        part = stored[..., band]
        part = part.to(_EXACT.get(part.dtype, part.dtype))
        hit = ~part.isfinite() if value is None else part == value
        values[..., band].masked_fill_(hit, normalizer.nodata)
    return values


def _constants(
    normalizer: "Normalizer", device: torch.device
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Scale and offset, or lower bounds and widths, per band; None: nothing is to be done."""
    if normalizer.bounds is not None:
        low, width = normalizer.bounds
        return low.to(device), width.to(device)
    if normalizer.scale is None or normalizer.offset is None:
        return None
    scale, offset = (torch.from_numpy(v) for v in (normalizer.scale, normalizer.offset))
    return scale.to(device), offset.to(device)


def _torch_type(array: NDArray[Any]) -> torch.dtype:
    return torch.from_numpy(np.empty(0, array.dtype)).dtype


def _mapped(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: _mapped(inner, change) for key, inner in value.items()}
    return value


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _tensors(inner)
