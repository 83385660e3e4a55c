"""What must be equal: samples and rslearn's, one ingest and another."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from eval_ingest import EvalDataset
from eval_ingest_tests.support.oracle import OracleSample


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


def published(root: Path) -> dict[str, bytes]:
    """The files of an ingested dataset that hold values, without those that name the source."""
    folder = root / "crops"
    names = [*folder.rglob("*.npy"), *(p for p in (folder / "windows").rglob("*") if p.is_file())]
    return {str(path.relative_to(folder)): path.read_bytes() for path in names}


def index_values(root: Path, name: str = "crops") -> Any:
    """window_index but for the digests, which hold modification times or checksums."""
    table = pq.read_table(root / name / "window_index.parquet")
    return table.drop_columns(["source_digest"]).to_pylist()


def assert_same_ingest(root: Path, reference: Path) -> None:
    assert index_values(root) == index_values(reference)
    expected, found = published(reference), published(root)
    # Shards are named after digests.
    assert sorted(Path(p).name for p in found) == sorted(Path(p).name for p in expected)
    assert sorted(found.values()) == sorted(expected.values())
    assert {p for p in found if p.startswith("windows/")} == {
        p for p in expected if p.startswith("windows/")
    }
