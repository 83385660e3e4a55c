"""Every sample equals rslearn's own, value for value, for every task kind."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import torch

from eval_ingest import EvalDataset
from eval_ingest_tests.factories import CASES
from eval_ingest_tests.oracle import OracleSample, rslearn_samples


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
            _compare(dataset, sample, expected[group, name])
            compared += 1
    assert compared == len(expected)  # every window of the copy is in exactly one split
    assert compared >= 8


def _compare(dataset: EvalDataset, sample: dict, expected: OracleSample) -> None:
    for modality in dataset.metadata.config.modalities:
        arrays, stamps = [], []
        keys = [modality.name] if modality.name in expected.inputs else []
        for key in keys or [part.key for part in modality.parts]:
            if key in expected.inputs:
                arrays.append(expected.inputs[key])
                stamps += expected.timestamps[key] or []
        found = sample[modality.name].numpy()
        if not arrays:
            assert found.shape[2] == 0
            continue
        wanted = np.concatenate(arrays, axis=1).transpose(2, 3, 1, 0)
        order = [expected.bands[modality.name].index(band) for band in modality.bands]
        assert found.dtype == np.float32
        assert np.array_equal(found, wanted[..., order], equal_nan=True)
        assert sample["timestamps"][modality.name].tolist() == [_numbers(*s) for s in stamps]
    _compare_target(sample["target"], expected.target)


def _numbers(start: datetime, end: datetime) -> list[int]:
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
