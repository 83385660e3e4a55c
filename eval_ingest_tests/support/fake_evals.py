"""Ingested datasets written directly, without a source: as many windows as a test likes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from eval_ingest.core.entry import Metadata
from eval_ingest.core.modality import MODALITIES
from eval_ingest.core.task import TaskKind
from eval_ingest.pipeline import STAGES
from eval_ingest.store.seal import sealed_json
from eval_ingest.store.split_index import SPLIT_INDEX_FORM
from eval_ingest.store.tables import write_table


def write_fake(
    root: Path,
    name: str,
    kind: str,
    *,
    counts: tuple[int, int, int] = (60, 20, 40),
    size: int = 8,
    steps: Sequence[int] = (3,),
    bands: Sequence[str] | None = None,
    modality: str = "sentinel2_l2a",
    classes: int = 4,
    shuffled: float = 0.0,
    version: str = "fake",
    seed: int = 0,
    settings: dict[str, Any] | None = None,
) -> Path:
    """Write a dataset whose pixels carry their label's signal in every band.

    Args:
        root: the eval root.
        name: of the dataset.
        kind: a TaskKind.
        counts: windows of train, val and test.
        size: of the windows, in pixels.
        steps: timesteps of the windows, in turn.
        bands: the bands that the dataset has; default all.
        modality: of the pixels.
        classes: of class tasks.
        shuffled: share of the windows whose labels come from others; 1: nothing can be learned.
        version: the dataset's fingerprint.
        seed: of pixels and labels.
        settings: how the dataset is to be scored, as `eval` of a spec.
    """
    rng = np.random.default_rng(seed)
    task = TaskKind(kind)
    n = sum(counts)
    known = MODALITIES[modality].bands
    present = tuple(known if bands is None else bands)
    target, signal = _labels(rng, task, n, size, classes)
    timesteps = [steps[i % len(steps)] for i in range(n)]
    pixels = [
        np.clip(
            1000
            + 1000 * signal[i][:, :, None, None] * np.linspace(-1, 1, len(present))
            + rng.normal(0, 60, (size, size, timesteps[i], len(present))),
            0,
            6000,
        ).astype(np.uint16)
        for i in range(n)
    ]
    if shuffled:
        some = rng.permutation(n)[: round(shuffled * n)]
        target[some] = target[rng.permutation(some)]
    folder = root / name
    arrays = _write_shard(folder, modality, pixels, target)
    splits = _write_splits(folder, modality, counts, size, timesteps, len(present))
    values = np.concatenate([p.reshape(-1, len(present)) for p in pixels]).astype(float)
    stats = {
        band: {"mean": float(values[:, c].mean()), "std": float(values[:, c].std()),
               "min": float(values[:, c].min()), "max": float(values[:, c].max())}
        for c, band in enumerate(present)
    }  # fmt: skip
    config = {
        "task": {"kind": kind, "num_classes": classes if task.has_classes else 1,
                 "classes": [{"name": f"class_{c}"} for c in range(classes)]
                 if task.has_classes else []},
        "label": {"part": _part("label"), "band": "label" if task.per_pixel else None},
        "modalities": [{"name": modality, "bands": present, "dtype": "uint16",
                        "missing_bands": [b for b in known if b not in present],
                        "parts": [_part(modality)], "decibels": False}],
        "layers": [],
    }  # fmt: skip
    metadata = {
        "name": name, "fingerprint": version, "published_at": "2026-01-01T00:00:00+00:00",
        "spec": {"name": name, "source": "nowhere", "eval": settings or {}},
        "config": config, "source": "nowhere",
        "splits": splits, "n_windows": n, "norm_stats": {modality: stats}, "invalid": {},
        "shards": [{"name": "shard", "rows": n, "arrays": arrays}],
        "split_report": {"strategy": "fake", "counts": {k: s["count"] for k, s in splits.items()}},
        "fingerprints": dict.fromkeys(STAGES[:-1], version), "warnings": [], "window_size": size,
        "num_timesteps": max(timesteps),
    }  # fmt: skip
    (folder / "metadata.json").write_bytes(
        sealed_json(Metadata.model_validate(metadata).model_dump(mode="json", by_alias=True))
    )
    return folder


def _part(key: str) -> dict[str, Any]:
    return {"key": key, "reads": [{"layer": key, "item_group": 0}], "stack": False}


def _labels(
    rng: np.random.Generator, task: TaskKind, n: int, size: int, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and the signal (N, size, size) between -1 and 1 that the pixels carry."""
    cells = (n, size // 4, size // 4) if task.per_pixel else (n, 1, 1)
    if task.has_classes:
        drawn = rng.integers(0, classes, cells)
        signal = 2 * drawn / max(classes - 1, 1) - 1
    else:
        signal = rng.uniform(-1, 1, cells)
        drawn = 50 + 20 * signal
    grow = np.ones((1, size // cells[1], size // cells[2]))
    signal = np.kron(signal, grow)
    labels = np.kron(drawn, grow) if task.per_pixel else drawn[:, 0, 0]
    if not task.has_classes:
        return labels.astype(np.float32), signal
    return labels.astype(np.int8 if task.per_pixel else np.int64), signal


def _write_shard(
    folder: Path, modality: str, pixels: list[np.ndarray], target: np.ndarray
) -> dict[str, Any]:
    shard = folder / "samples" / "shard"
    shard.mkdir(parents=True)
    uniform = len({p.shape for p in pixels}) == 1
    packed = np.stack(pixels) if uniform else np.concatenate([p.reshape(-1) for p in pixels])
    arrays = {}
    for name, array, alike in ((modality, packed, uniform), ("target", target, True)):
        path = shard / f"{name}.npy"
        np.save(path, array)
        arrays[name] = {"dtype": str(array.dtype), "uniform": alike, "shape": array.shape,
                        "n_bytes": path.stat().st_size}  # fmt: skip
    return arrays


def _write_splits(
    folder: Path, modality: str, counts: tuple[int, ...], size: int, timesteps: list[int], c: int
) -> dict[str, Any]:
    offsets = np.concatenate([[0], np.cumsum([size * size * t * c for t in timesteps])])
    splits, start = {}, 0
    for split, count in zip(("train", "val", "test"), counts, strict=True):
        rows = range(start, start + count)
        stamps = [[x for t in range(timesteps[i]) for x in (5, t % 12, 2023)] for i in rows]
        table = pa.table(
            {
                "group": pa.array(["g"] * count, pa.string()),
                "name": pa.array([f"w{i:04d}" for i in rows], pa.string()),
                "shard": pa.array([0] * count, pa.int32()),
                "row": pa.array(rows, pa.int64()),
                "height": pa.array([size] * count, pa.int32()),
                "width": pa.array([size] * count, pa.int32()),
                f"{modality}.offset": pa.array([offsets[i] for i in rows], pa.int64()),
                "target.offset": pa.array([0] * count, pa.int64()),
                f"{modality}.timesteps": pa.array([timesteps[i] for i in rows], pa.int32()),
                f"{modality}.timestamps": pa.array(stamps, pa.list_(pa.int32())),
            }
        )
        path = folder / split / "index.0.parquet"
        write_table(path, table, SPLIT_INDEX_FORM)
        splits[split] = {"count": count, "index": f"{split}/index.0.parquet"}
        start += count
    return splits
