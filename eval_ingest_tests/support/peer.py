"""Samples as the existing OlmoEarth eval code in .venv-peers reads them."""

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peer_pipe import Peer, PeerError
from eval_ingest import EvalDataset
from eval_ingest.core.spec import SPLITS
from eval_ingest.loading.olmoearth import OlmoEarthAdapter

READ = [
    ("segmentation", None),
    ("vector_classification", None),
    ("per_pixel_regression", None),
    ("scalar_regression", None),
    ("ragged_segmentation", None),
    ("class_mapping", None),
    ("three_modalities", ["sentinel1"]),
]
"""What is read both ways: a case of `factories.CASES`, and the modalities that are asked for."""


def read(
    peer: Peer, root: Path, name: str, split: str, out: Path, **arguments: Any
) -> tuple[list[str], list[dict[str, np.ndarray]]]:
    """The windows of a split and its samples, as the existing code reads them."""
    path = out / "samples.npz"
    registry = root / "registry.json"
    windows = peer("read", registry=registry, name=name, split=split, out=path, arguments=arguments)
    samples: list[dict[str, np.ndarray]] = [{} for _ in windows]
    with np.load(path) as stored:
        for key in stored.files:
            number, _, field = key.partition(".")
            samples[int(number)][field] = stored[key]
    return windows, samples


def difference(peer: Peer, root: Path, name: str, modalities: list[str], out: Path) -> str:
    """Where the existing code's samples of some modalities aren't ours; "" if all are.

    It has all bands of a modality, of windows of many sizes the middle that all of them have, and
    of targets no axis of length one.
    """
    try:
        for split in SPLITS:
            ours = EvalDataset(
                name, split, root=root, normalize="pretrained", modalities=modalities
            )
            windows, samples = read(
                peer, root, name, split, out, input_modalities_override=modalities
            )
            if windows != [ours.window(i) for i in range(len(ours))]:
                return f"{split}: other windows"
            adapter = OlmoEarthAdapter(ours)
            for i, theirs in enumerate(samples):
                sample, target = adapter.collate([ours[i]])
                for key in ours.bands:
                    dates = ours[i]["timestamps"][key].flip(1).tolist()
                    order = sorted(range(len(dates)), key=dates.__getitem__)
                    found = getattr(sample, key)[0].numpy()
                    if not _alike(found, theirs[key][:, :, order]):
                        return f"{split} {i}: {key} {found.shape}, there {theirs[key].shape}"
                if not _alike(target[0].numpy().squeeze(), theirs["target"]):
                    return f"{split} {i}: target"
    except PeerError as error:
        return f"can't read it: {error}"
    return ""


def _alike(found: np.ndarray, expected: np.ndarray) -> bool:
    for axis in range(min(found.ndim, 2)):
        first = (found.shape[axis] - expected.shape[axis] + 1) // 2
        found = found.take(range(first, first + expected.shape[axis]), axis)
    return found.shape == expected.shape and np.allclose(found, expected, 1e-5, 1e-5, True)
