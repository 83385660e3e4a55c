"""Every sample equals rslearn's own, value for value, for every task kind."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch

from eval_ingest import EvalDataset
from eval_ingest.core.padding import apply_pad
from eval_ingest.core.resolved import Pad
from eval_ingest_tests.support.factories import CASES
from eval_ingest_tests.support.oracle import OracleSample, rslearn_samples


@pytest.mark.parametrize("case", CASES)
def test_samples_equal_those_of_rslearn(
    case: str, ingested: Callable[[str], Path], written: Callable[[str], Path]
) -> None:
    root = ingested(case)
    expected = {
        (s.group, s.name): s for s in rslearn_samples(root / case, written(case) / "model.yaml")
    }
    compared = 0
    for split in ("train", "val", "test"):
        dataset = EvalDataset(case, split, root=root, normalize=None, crop=None)
        for i in range(len(dataset)):
            sample = dataset[i]
            group, name = sample["window"].split("/")
            compare(dataset, sample, expected[group, name])
            compared += 1
    assert compared == len(expected)  # every window of the copy is in exactly one split
    assert compared >= 8


def compare(dataset: EvalDataset, sample: dict, expected: OracleSample) -> None:
    for modality in map(dataset.metadata.config.modality, dataset.bands):
        arrays: list[np.ndarray] = []
        stamps: list[tuple[datetime, datetime]] | None = []
        keys = [modality.name] if modality.name in expected.inputs else []
        for key in keys or [part.key for part in modality.parts]:
            if key in expected.inputs:
                arrays.append(expected.inputs[key])
                times = expected.timestamps[key]
                stamps = None if stamps is None or times is None else [*stamps, *times]
        found = sample[modality.name].numpy()
        if not arrays:
            assert found.shape[2] == 0
            continue
        wanted = np.concatenate(arrays, axis=1).transpose(2, 3, 1, 0)
        order = [expected.bands[modality.name].index(band) for band in modality.bands]
        assert found.dtype == np.float32
        assert np.array_equal(found, wanted[..., order], equal_nan=True)
        if stamps is not None:
            assert sample["timestamps"][modality.name].tolist() == [_numbers(*s) for s in stamps]
    _compare_target(sample["target"], expected.target)


def _numbers(start: datetime, end: datetime) -> list[int]:
    start, end = (t.astimezone(UTC) if t.tzinfo else t.replace(tzinfo=UTC) for t in (start, end))
    middle = start + (end - start) / 2
    return [middle.day, middle.month - 1, middle.year]


def _compare_target(found: torch.Tensor, target: dict[str, np.ndarray]) -> None:
    valid = np.squeeze(target["valid"]) > 0
    if "classes" in target or "class" in target:
        labels = np.squeeze(target.get("classes", target.get("class")))
        assert found.dtype == torch.int64
        assert np.array_equal(found.numpy(), np.where(valid, labels, -1))
    else:
        values = np.squeeze(target.get("values", target.get("value")))
        assert found.dtype == torch.float32
        assert np.array_equal(found.numpy(), np.where(valid, values, np.nan), equal_nan=True)


@pytest.mark.parametrize("mode", ["topleft", "center"])
@pytest.mark.parametrize("size", [5, 8])
@pytest.mark.parametrize("shape", [(8, 8), (12, 11), (5, 6), (4, 8), (3, 3), (9, 4), (4, 9)])
def test_padding_equals_that_of_rslearn(mode: str, size: int, shape: tuple[int, int]) -> None:
    from rslearn.train.model_context import RasterImage
    from rslearn.train.transforms.pad import Pad as Reference

    image = torch.arange(1, shape[0] * shape[1] + 1).reshape(1, 1, *shape).float()
    reference = Reference(size, mode=mode, image_selectors=["x"])
    try:
        expected = reference({"x": RasterImage(image)}, {})[0]["x"].image[0, 0].numpy()
    except AssertionError:  # it can't cut off at the end only
        assert mode == "topleft" and max(shape) > size
        return
    found = apply_pad(image[0, 0].numpy(), Pad(size=size, center=mode == "center"))
    assert np.array_equal(found, expected)
