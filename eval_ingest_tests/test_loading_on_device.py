"""Batches made on a device: the CPU takes the same way, but for pinned memory and the stream."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import gpu
from eval_ingest import EvalDataset
from eval_ingest.core.norm import METHODS
from eval_ingest.loading.normalize import Normalizer, make_normalizer
from eval_ingest.loading.on_device import Carrier, ahead
from eval_ingest_tests.support.fake_evals import write_fake

CPU = torch.device("cpu")
BANDS = ("a", "b", "c")
STATS = {
    band: {"mean": 900.0 + 300 * k, "std": 250.0 + k, "min": 3.0, "max": 4000.0}
    for k, band in enumerate(BANDS)
}


def stored_pixels(kind: Any, seed: int = 0) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 4000, (4, 8, 8, 2, 3)).astype(kind)
    pixels[0, 0, 0, 0] = 7  # declared to be no data
    if pixels.dtype.kind == "f":
        pixels[1, 1, 1, 1, 0] = np.nan
    return pixels


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int16, np.uint32, np.int32, np.float32])
@pytest.mark.parametrize("method", [*METHODS, None])
@pytest.mark.parametrize("decibels", [False, True])
def test_a_device_normalises_as_the_host_does(
    kind: Any, method: str | None, decibels: bool
) -> None:
    made = (
        Normalizer(None, None, decibels=decibels)
        if method is None
        else make_normalizer(method, BANDS, STATS, decibels)
    )
    missing: tuple[Any, ...] = ((0, 7.0),)
    if np.dtype(kind).kind == "f":
        missing += ((2, None), (0, None))
    normalizer = replace(made, missing=missing, nodata=-5.0)
    pixels = stored_pixels(kind)
    expected = torch.empty(pixels.shape)
    normalizer.apply(pixels, expected)
    found = Carrier(CPU, {"m": normalizer}).pixels("m", list(pixels))
    assert found.dtype == torch.float32
    step = 1 / 255 if made.then == "int" and decibels else 0  # a number on the edge of two steps
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5 + step, equal_nan=True)
    assert found[0, 0, 0, 0, 0] == -5


@pytest.mark.parametrize("kind", ["segmentation", "scalar_regression"])
@pytest.mark.parametrize("steps", [(3,), (2, 4)])
def test_batches_of_a_device_are_those_of_the_host(
    kind: str, steps: tuple[int, ...], tmp_path: Path
) -> None:
    write_fake(tmp_path, "one", kind, counts=(23, 4, 4), steps=steps)
    for arguments in ({}, {"normalize": None}, {"channels_first": True}):
        dataset = EvalDataset("one", "train", root=tmp_path, **arguments)  # type: ignore[arg-type]
        for more in ({}, {"bucket": True}, {"shard": (1, 2)}):
            host = list(dataset.batches(5, **more))  # type: ignore[arg-type]
            there = list(dataset.batches(5, device="cpu", **more))  # type: ignore[arg-type]
            assert len(host) == len(there)
            for expected, found in zip(host, there, strict=True):
                assert expected.keys() == found.keys() and expected["window"] == found["window"]
                assert torch.equal(expected["target"], found["target"])
                for name in dataset.bands:
                    assert torch.allclose(expected[name], found[name], rtol=1e-5, atol=1e-5)
                    assert torch.equal(expected["timestamps"][name], found["timestamps"][name])
                    assert torch.equal(expected["timesteps"][name], found["timesteps"][name])


def test_what_is_made_ahead_comes_in_order_and_its_errors_too() -> None:
    def numbers() -> Any:
        yield from range(3)
        raise ValueError("no more")

    found = []
    with pytest.raises(ValueError, match="no more"):
        for number in ahead(numbers()):
            found.append(number)
    assert found == [0, 1, 2] and list(ahead(iter([]))) == []
    stopped = ahead(iter(range(9)))
    assert next(stopped) == 0
    stopped.close()  # its thread ends


def test_the_benchmark_runs_without_a_device(capsys: pytest.CaptureFixture[str]) -> None:
    found = gpu.main(["--device", "cpu", "--samples", "6", "--batch", "3", "--depth", "1"])
    assert found["largest_difference"] < 1e-5
    assert found["carried"]["samples_per_s"] > 0 and found["bus_gb_per_s"] > 0
    assert 0 <= found["carried_with_model"]["model_waits"] <= 1
    assert '"moved"' in capsys.readouterr().out
