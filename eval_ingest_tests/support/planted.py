"""`make signal`: does a sweep find what is there, and nothing where labels are shuffled?

Writes five rslearn datasets, at least one of each task kind, and a twin of each whose windows have
got each other's labels; ingests all ten, sweeps `pixels` and a randomly initialised OlmoEarth nano
over them with the command `eval-ingest sweep`, and prints each score beside that of always
predicting the commonest class, or the mean.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eval_ingest import EvalDataset
from eval_ingest.sweep.metrics import tally
from eval_ingest_tests.support import factories

CASES = {
    "segmentation": factories.segmentation,
    "vector_classification": factories.vector_classification,
    "per_pixel_regression": factories.per_pixel_regression,
    "scalar_regression": factories.scalar_regression,
    "three_modalities": factories.three_modalities,
}
ENCODERS = ("pixels", "olmoearth:nano@random")
TWIN = "_shuffled"

SIGNAL, CHANCE = 0.15, 0.12
"""Accuracy or R2 above that of always predicting the same: at least, and at most."""


def main() -> int:
    """Print the table; 1 if a score isn't where it has to be."""
    parser = argparse.ArgumentParser(
        prog="python -m eval_ingest_tests.support.planted", description=__doc__
    )
    parser.add_argument("--windows", type=int, default=400)
    parser.add_argument("--folder", type=Path, default=Path(".cache/signal"))
    options = parser.parse_args()
    folder = options.folder.absolute() / str(options.windows)
    root = folder / "evals"
    environment = os.environ | {
        "OLMOEARTH_EVAL_DATASETS": str(root),
        "EVAL_INGEST_CACHE": str(folder / "cache"),
    }
    for name, write in CASES.items():
        _ingest(write(_fresh(folder / "sources" / name), windows=options.windows), name, root)
        twin = shutil.copytree(folder / "sources" / name, folder / "sources" / (name + TWIN))
        shuffle_labels(twin / name)
        _ingest(twin / name, name + TWIN, root)
    arguments = ["sweep", "--encoder", *ENCODERS, "--out", str(folder / "results")]
    _eval_ingest(*arguments, environment=environment)
    rows = json.loads((folder / "results" / "results.json").read_text())
    return _print(rows, root)


def _fresh(folder: Path) -> Path:
    for path in (folder, folder.with_name(folder.name + TWIN)):
        shutil.rmtree(path, ignore_errors=True)
    return folder


def _ingest(source: Path, name: str, root: Path) -> None:
    environment = os.environ | {"OLMOEARTH_EVAL_DATASETS": str(root)}
    _eval_ingest("ingest", "--name", name, "--source", str(source), environment=environment)


def _eval_ingest(*arguments: str, environment: dict[str, str]) -> None:
    subprocess.run(
        [sys.executable, "-m", "eval_ingest.cli", *arguments], check=True, env=environment
    )


def shuffle_labels(dataset: Path, seed: int = 0) -> None:
    """Give every window of an rslearn dataset the label of another one of its group."""
    rng = np.random.default_rng(seed)
    for group in sorted(dataset.glob("windows/*")):
        paths = sorted([*group.glob("*/layers/label_raster/*/geotiff.tif"),
                        *group.glob("*/layers/label/data.geojson")])  # fmt: skip
        contents = [_label(path) for path in paths]
        for path, k in zip(paths, rng.permutation(len(paths)), strict=True):
            _give(path, contents[k])


def _label(path: Path) -> Any:
    if path.suffix == ".tif":
        return path.read_bytes()
    return [feature["properties"] for feature in json.loads(path.read_text())["features"]]


def _give(path: Path, content: Any) -> None:
    if isinstance(content, bytes):
        path.write_bytes(_placed_as(path.read_bytes(), content))
        return
    features = json.loads(path.read_text())
    for feature, properties in zip(features["features"], content, strict=True):
        feature["properties"] = properties
    path.write_text(json.dumps(features))


def _placed_as(here: bytes, pixels: bytes) -> bytes:
    """A GeoTIFF with one's place and another's pixels."""
    from rasterio.io import MemoryFile

    with MemoryFile(here) as one, MemoryFile(pixels) as other, MemoryFile() as made:
        with one.open() as place, other.open() as values, made.open(**place.profile) as out:
            out.write(values.read())
        return bytes(made.read())


def always_the_same(name: str, root: Path) -> dict[str, float]:
    """Scores on test of always predicting train's commonest class, or its mean."""
    train, test = (EvalDataset(name, split, root=root) for split in ("train", "test"))
    task = test.task
    labels = torch.cat([sample["target"].flatten() for sample in train])
    known = labels[labels >= 0] if task.kind.has_classes else labels[torch.isfinite(labels)]
    guess = known.bincount().argmax() if task.kind.has_classes else known.mean()
    targets = [sample["target"].flatten() for sample in test]
    windows = np.repeat(np.arange(len(targets)), [len(target) for target in targets])
    truth = torch.cat(targets)[:, None].numpy()
    same = np.full_like(truth, guess.item())
    return tally(task.kind, task.num_classes, same, truth, windows).scores()


def _print(rows: list[dict[str, Any]], root: Path) -> int:
    wrong = 0
    heads = ("dataset", "encoder", "score", "", "always the same")
    line = "{:<32}{:<28}{:<32}{:<16}{}"
    print("\n" + line.format(*heads))
    for row in sorted(rows, key=lambda row: (row["dataset"], row["encoder"])):
        same = always_the_same(row["dataset"], root)
        metric = "accuracy" if "accuracy" in row["metrics"] else "r2"
        gain = row["metrics"][metric] - same[metric]
        found = gain > SIGNAL
        shuffled = row["dataset"].endswith(TWIN)
        verdict = "" if (gain < CHANCE if shuffled else found) else "  UNEXPECTED"
        wrong += bool(verdict)
        score = f"{row['metric']} {row['test_score']:.3f} "
        score += f"[{row['ci_low']:.3f}, {row['ci_high']:.3f}]"
        also = f"{metric} {row['metrics'][metric]:.3f}"
        print(line.format(row["dataset"], row["encoder"], score, also,
                          f"{metric} {same[metric]:.3f}{verdict}"))  # fmt: skip
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
