"""Probes and metrics against olmoearth-pretrain 0.1.2's own, on the same embeddings.

In the process of .venv-peers; skipped without it. What differs there on purpose is bfloat16.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.peer_pipe import PYTHON, Peer
from eval_ingest.core.task import Task, TaskKind
from eval_ingest.sweep.embed import Embedded
from eval_ingest.sweep.metrics import tally
from eval_ingest.sweep.probes import run_knn, run_linear
from eval_ingest.sweep.rows import Rows
from eval_ingest.sweep.upsampling import Grid

pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="needs .venv-peers: make peers")

CPU = torch.device("cpu")
CLASSES, WIDTH, SIDE, PATCH = 4, 16, 3, 2
COUNTS = {"train": 320, "val": 64, "test": 128}
SEEDS, LEARNING_RATE, EPOCHS = range(5), 0.01, 10
SAME_METRIC = {"overall_acc": "accuracy"}


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    repository = Path(__file__).parents[1]
    script = repository / "benchmarks" / "peer_process.py"
    process = Peer(script, tmp_path_factory.mktemp("peer") / "log", PYTHONPATH=str(repository))
    yield process
    process.close()


def task_of(kind: TaskKind) -> Task:
    return Task(kind=kind, num_classes=CLASSES if kind.has_classes else 1)


def made_up(kind: TaskKind, split: str, noise: float = 1.5) -> Embedded:
    """Embeddings that tell labels, but not all of them; some pixels have no label."""
    n = COUNTS[split]
    rng = np.random.default_rng(list(COUNTS).index(split))
    mixing = np.random.default_rng(99).normal(size=(CLASSES, PATCH**2, WIDTH))
    side, labels = (SIDE, PATCH**2) if kind.per_pixel else (1, 1)
    rows = n * side**2
    if kind.has_classes:
        target = rng.integers(0, CLASSES, (rows, labels)).astype(np.int16)
        clean = mixing[target, np.arange(labels)].sum(1)
    else:
        latent = rng.normal(size=(rows, 1))
        clean = latent @ mixing[0, :1]
        values = torch.from_numpy(latent)
        grid = Grid(torch.arange(rows), side, side, PATCH)
        smooth = grid.upsample(values)[:, :, 0].numpy() if kind.per_pixel else latent
        target = (300 + 40 * smooth).astype(np.float32)
    spread = noise * (labels if kind.has_classes else 1)
    features = clean + rng.normal(0, spread, clean.shape)
    if kind.per_pixel:
        target[rng.random(target.shape) < 0.3] = -1 if kind.has_classes else np.nan
    size = np.full(n, side)
    places = np.stack([side**2 * np.arange(n), size**2, size, size], axis=1)
    return Embedded(features.astype(np.float32), target, places, 0.0)


def as_images(kind: TaskKind, values: np.ndarray) -> np.ndarray:
    """Rows of patches, (N x 9, 4, ...), as images (N, 6, 6, ...); of windows as (N, ...)."""
    if not kind.per_pixel:
        return values[:, 0]
    more = values.shape[2:]
    by_patch = values.reshape(-1, SIDE, SIDE, PATCH, PATCH, *more).swapaxes(2, 3)
    return by_patch.reshape(-1, SIDE * PATCH, SIDE * PATCH, *more)


def labels_of(kind: TaskKind, target: np.ndarray) -> np.ndarray:
    found = as_images(kind, target)
    return found.astype(np.int64) if kind.has_classes else found


def write(kind: TaskKind, splits: dict[str, Embedded], path: Path) -> Path:
    arrays = {}
    for name, split in splits.items():
        features = split.features
        if kind.per_pixel:
            features = features.reshape(-1, SIDE, SIDE, WIDTH)
        arrays[f"{name}_embeddings"] = features
        arrays[f"{name}_labels"] = labels_of(kind, split.target)
    np.savez(path, **arrays)
    return path


def test_knn_scores_are_equal(peer: Peer, tmp_path: Path) -> None:
    kind = TaskKind.CLASSIFICATION
    splits = {name: made_up(kind, name) for name in COUNTS}
    path = write(kind, splits, tmp_path / "given.npz")
    theirs = peer(
        "probe_scores", arrays=path, task_type=str(kind), num_classes=CLASSES, learning_rate=None
    )[0]
    found = run_knn(task_of(kind), *(Rows.of(split) for split in splits.values()), CPU).test
    scores = found.scores()
    scores |= {f"f1_class_{c}": row["f1"] for c, row in enumerate(found.per_class(list("abcd")))}
    assert 0.5 < theirs["accuracy"] < 0.95
    assert {name: scores[name] for name in theirs} == pytest.approx(theirs, abs=1e-6)


@pytest.mark.parametrize(
    ("kind", "dice"), [*((kind, False) for kind in TaskKind), (TaskKind.SEGMENTATION, True)]
)
def test_linear_scores_are_equal_within_their_noise(
    kind: TaskKind, dice: bool, peer: Peer, tmp_path: Path
) -> None:
    splits = {name: made_up(kind, name) for name in COUNTS}
    path = write(kind, splits, tmp_path / "given.npz")
    task = task_of(kind)
    theirs = peer(
        "probe_scores", arrays=path, task_type=str(kind), num_classes=task.num_classes,
        seeds=list(SEEDS), learning_rate=LEARNING_RATE, epochs=EPOCHS, dice=dice,
    )  # fmt: skip
    rows = [Rows.of(split) for split in splits.values()]
    ours = [
        run_linear(task, *rows, CPU, seed, (LEARNING_RATE,), EPOCHS, dice=dice).test.scores()
        for seed in SEEDS
    ]
    names = ["accuracy", "macro_f1", "auroc"] if kind.has_classes else ["rmse", "mae", "r2"]
    if kind is TaskKind.SEGMENTATION:
        names[0] = "miou"
    for name in names:
        a = np.array([found[name] for found in ours])
        b = np.array([found[name] for found in theirs])
        noise = np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / len(SEEDS))
        scale = 40 if name in ("rmse", "mae") else 1  # the labels' standard deviation
        assert abs(a.mean() - b.mean()) < max(2 * noise, 0.01 * scale), (name, a, b)


@pytest.mark.parametrize(
    "case", ["vector_classification", "scalar_regression", "segmentation", "ragged_segmentation"]
)
def test_tokens_are_pooled_as_its_own_wrapper_does(
    case: str, peer: Peer, ingested: Callable[[str], Path]
) -> None:
    found = peer("pooled", root=ingested(case), name=case, split="train")
    poolings = {"mean", "max"} | (set() if "segmentation" in case else {"center"})
    assert set(found) == poolings
    for pooling, (apart, size, windows) in found.items():
        assert windows == 4 and size > 0.1 and apart < 1e-4, (pooling, apart, size)


@pytest.mark.parametrize("kind", list(TaskKind))
def test_metrics_of_the_same_predictions_are_equal(
    kind: TaskKind, peer: Peer, tmp_path: Path
) -> None:
    split, task = made_up(kind, "test"), task_of(kind)
    rng, target, scores = np.random.default_rng(5), split.target, None
    valid = target != -1 if kind.has_classes else np.isfinite(target)
    arrays = {"labels": labels_of(kind, target)}
    if kind.has_classes:
        target[target == 2] = 1  # a class that is predicted, but never true
        arrays["labels"] = labels_of(kind, target)
        logits = rng.normal(size=(*target.shape, CLASSES)) + np.eye(CLASSES)[target.clip(0)]
        scores = torch.from_numpy(logits).softmax(2).float().numpy().round(3)
        predicted = scores.argmax(2)
        arrays["scores"] = as_images(kind, scores)
        if kind.per_pixel:
            arrays["scores"] = np.moveaxis(arrays["scores"], 3, 1)
    else:
        predicted = np.nan_to_num(target) + rng.normal(0, 20, target.shape).astype(np.float32)
    arrays["preds"] = as_images(kind, predicted)
    np.savez(tmp_path / "given.npz", **arrays)
    theirs = peer(
        "metrics", arrays=tmp_path / "given.npz", task_type=str(kind),
        num_classes=task.num_classes,
    )  # fmt: skip
    rows = Rows.of(split)
    found = tally(
        kind, task.num_classes, predicted, target, rows.windows,
        None if scores is None else scores[valid],
    )  # fmt: skip
    ours = found.scores()
    if not kind.has_classes:
        ours["neg_rmse"] = -ours["rmse"]
    for c, row in enumerate(found.per_class(list("abcd"))):
        ours[f"f1_class_{c}"] = row["f1"]
    for name, value in theirs.items():
        assert ours[SAME_METRIC.get(name, name)] == pytest.approx(value, rel=1e-6, abs=1e-6), name
