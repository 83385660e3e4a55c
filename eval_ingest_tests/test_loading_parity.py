"""Every sample equals rslearn's own, value for value, for every task kind."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from eval_ingest import EvalDataset
from eval_ingest.core.padding import apply_pad
from eval_ingest.core.resolved import Pad
from eval_ingest_tests.support.comparing import compare
from eval_ingest_tests.support.factories import CASES
from eval_ingest_tests.support.oracle import rslearn_samples


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
