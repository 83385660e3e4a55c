"""`python benchmarks/gpu.py`: batches brought to a GPU, beside the limit of its bus.

Runs in under five minutes, with torch and numpy alone: the project needn't be installed.
Made-up samples (64 x 64 pixels, 12 timesteps, 12 bands, uint16) lie in a memory map, as packed ones
do. They go to a small transformer in two ways, ours and the usual one; told are samples and bytes
a second, their part of what the bus can do, and the share of the time that the model waits.
"""

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

SHAPE = (64, 64, 12, 12)
PATCH, WIDTH = 8, 384


def _on_device() -> Any:
    """loading/on_device.py by its path: the package around it imports more than is needed."""
    path = Path(__file__).parents[1] / "eval_ingest" / "loading" / "on_device.py"
    spec = importlib.util.spec_from_file_location("on_device", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Scaling:
    """What of loading.normalize.Normalizer is used."""

    scale: np.ndarray[Any, Any]
    offset: np.ndarray[Any, Any]
    then: str = ""
    decibels: bool = False
    bounds: None = None
    missing: tuple[tuple[int, float], ...] = ((0, 0.0),)
    nodata: float = 0.0


class Model(nn.Module):
    """A small transformer over the patches of the mean image."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(SHAPE[3], WIDTH, PATCH, stride=PATCH)
        layer = nn.TransformerEncoderLayer(WIDTH, 6, 4 * WIDTH, batch_first=True, dropout=0.0)
        self.blocks = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, H, W, T, C) as (B, D)."""
        tokens = self.project(pixels.mean(3).permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)
        found: torch.Tensor = self.blocks(tokens).mean(1)
        return found


def bus_limit(device: torch.device, n_bytes: int = 256 << 20) -> float:
    """Bytes a second from pinned memory, the best of ten copies."""
    pinned = device.type == "cuda"
    host = torch.empty(n_bytes, dtype=torch.uint8, pin_memory=pinned)
    there = torch.empty(n_bytes, dtype=torch.uint8, device=device)
    best = float("inf")
    for _ in range(10):
        _wait(device)
        started = time.perf_counter()
        there.copy_(host, non_blocking=True)
        _wait(device)
        best = min(best, time.perf_counter() - started)
    return n_bytes / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def carried(samples: Any, size: int, carrier: Any) -> Iterator[torch.Tensor]:
    """Our way: stored integers from pinned memory, one batch ahead, normalised there."""
    starts = range(0, len(samples), size)
    made = ({"pixels": carrier.pixels("m", list(samples[k : k + size]))} for k in starts)
    for batch in carrier.batches(made):
        yield batch["pixels"]


def moved(samples: Any, size: int, scaling: Scaling, device: torch.device) -> Iterator[Any]:
    """The usual way: float32, normalised on the host, copied when it is needed."""
    for k in range(0, len(samples), size):
        stored = samples[k : k + size]
        pixels = stored.astype(np.float32) * scaling.scale + scaling.offset
        pixels[..., 0][stored[..., 0] == 0] = scaling.nodata
        yield torch.from_numpy(pixels).to(device)


def timed(batches: Iterator[torch.Tensor], model: nn.Module | None, device: torch.device,
          n_bytes: int) -> dict[str, float]:  # fmt: skip
    """Samples and bytes a second, and the share of the time in which the model had nothing."""
    _wait(device)
    count, busy, started = 0, 0.0, time.perf_counter()
    marks = []
    for pixels in batches:
        count += len(pixels)
        if model is None:
            continue
        first, last = _mark(device), None
        model(pixels)
        last = _mark(device)
        marks.append((first, last))
    _wait(device)
    seconds = time.perf_counter() - started
    busy = sum(_between(first, last) for first, last in marks)
    found = {"samples_per_s": count / seconds, "gb_per_s": count * n_bytes / seconds / 1e9}
    return found if model is None else {**found, "model_waits": 1 - busy / seconds}


def _mark(device: torch.device) -> Any:
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def _between(first: Any, last: Any) -> float:
    found = last - first if isinstance(first, float) else first.elapsed_time(last) / 1e3
    return float(found)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, print, and return what was found."""
    parser = argparse.ArgumentParser(prog="python benchmarks/gpu.py", description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--samples", type=int, default=8192)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--depth", type=int, default=6, help="of the transformer")
    options = parser.parse_args(arguments)
    device, module = torch.device(options.device), _on_device()
    rng = np.random.default_rng(0)
    scaling = Scaling(
        rng.uniform(1e-4, 1e-3, SHAPE[3]).astype(np.float32), np.full(SHAPE[3], 0.1, np.float32)
    )
    model = Model(options.depth).to(device).eval()
    if device.type == "cuda":
        model = model.to(torch.bfloat16)
    ends = {}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "samples.npy"
        samples = np.lib.format.open_memmap(path, "w+", np.uint16, (options.samples, *SHAPE))
        few = rng.integers(0, 9000, (64, *SHAPE)).astype(np.uint16)
        for k in range(0, options.samples, 64):
            samples[k : k + 64] = few[: options.samples - k]
        stored = int(np.prod(SHAPE)) * 2
        carrier = module.Carrier(device, {"m": scaling})
        ours: Callable[[], Iterator[Any]] = lambda: carried(samples, options.batch, carrier)  # noqa: E731
        theirs: Callable[[], Iterator[Any]] = lambda: moved(  # noqa: E731
            samples, options.batch, scaling, device
        )
        one, other = next(ours()).float().cpu(), next(theirs()).cpu()
        ends["largest_difference"] = float((one - other).abs().max())
        ends["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        ends["bus_gb_per_s"] = bus_limit(device) / 1e9
        as_type = torch.bfloat16 if device.type == "cuda" else torch.float32
        for name, way, width in (("carried", ours, stored), ("moved", theirs, 2 * stored)):
            timed(way(), None, device, width)  # warm: the page cache, and pinned memory
            alone = timed(way(), None, device, width)
            alone["of_the_bus"] = alone["gb_per_s"] / ends["bus_gb_per_s"]
            ends[name] = alone
            with_model = (pixels.to(as_type) for pixels in way())
            ends[f"{name}_with_model"] = timed(with_model, model, device, width)
        ready = [torch.zeros(options.batch, *SHAPE, device=device, dtype=as_type)]
        ends["model_alone"] = timed(iter(ready * 20), model, device, stored)
    print(json.dumps(ends, indent=2))
    return ends


if __name__ == "__main__":
    main(sys.argv[1:])
