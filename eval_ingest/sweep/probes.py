"""Probes on frozen embeddings, scored: weighted kNN, and a linear layer.

The learning rate and the epoch of the layer that score best on val are the ones that are tested.
How layers are trained is for trainer.py, and how neighbours vote for knn.py.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from eval_ingest.core.eval_settings import PRIMARY_METRICS
from eval_ingest.core.task import IGNORE_LABEL, Task
from eval_ingest.errors import SweepError
from eval_ingest.sweep.knn import knn_votes
from eval_ingest.sweep.metrics import Tally, better, tally
from eval_ingest.sweep.ranking import MAX_RANKED, RANKING
from eval_ingest.sweep.rows import Rows
from eval_ingest.sweep.trainer import Head, Layer, Trainer

VERSION = 4

LEARNING_RATES = (1e-4, 5e-4, 1e-3, 5e-3, 1e-2, 5e-2, 1e-1, 5e-1)
EPOCHS = 50
WINDOWS_PER_BATCH = 32
EVALUATE_EVERY = 10
"""Epochs between looks at val."""

_SMALL_STEP = 1e9
"""Multiplications of a training step up to which more threads gain little, and lose much where
others use the cores too: they wait for each other by spinning."""


@dataclass(frozen=True)
class Probed:
    """What a probe found."""

    val: Tally
    test: Tally
    learning_rate: float | None = None
    """The one that is best on val; None for kNN."""
    epoch: int | None = None


def run_knn(
    task: Task, train: Rows, val: Rows, test: Rows, device: torch.device, metric: str = ""
) -> Probed:
    """Weighted kNN for window classification.

    Args:
        task: of the dataset.
        train: has the neighbours.
        val: is scored.
        test: is scored.
        device: where the products are made.
        metric: what the task is judged by; default: what its kind is.

    Raises:
        SweepError: no train, val or test window has a label.
    """
    labels = train.target[:, 0]
    if not bool((labels != IGNORE_LABEL).any()):
        raise SweepError("no train window has a label")
    found: list[Tally] = []
    for rows in (val, test):
        votes = knn_votes(train.features, labels, rows.features, task.num_classes, device)
        scores = votes[rows.valid[:, 0]].numpy() if _ranked(task, rows, metric) else None
        found.append(tallied(task, votes.argmax(1)[:, None].numpy(), rows, scores, metric))
    return Probed(found[0], found[1])


def _ranked(task: Task, rows: Rows, metric: str) -> bool:
    """Are areas under curves to be computed?"""
    if metric in RANKING:
        return True
    return task.kind.has_classes and int(rows.valid.sum()) <= MAX_RANKED


def run_linear(
    task: Task,
    train: Rows,
    val: Rows,
    test: Rows,
    device: torch.device,
    seed: int,
    learning_rates: Sequence[float] = LEARNING_RATES,
    epochs: int = EPOCHS,
    metric: str = "",
    upsampled: bool = False,
    dice: bool = False,
    batch_size: int = WINDOWS_PER_BATCH,
) -> Probed:
    """Train linear probes, choose on val, score on test.

    Args:
        task: of the dataset.
        train: is trained on.
        val: says which learning rate and epoch is best.
        test: is scored.
        device: where the probes are trained.
        seed: of the first weights and the order of windows.
        learning_rates: of each a probe is trained.
        epochs: times that each window is seen.
        metric: what the task is judged by; default: what its kind is.
        upsampled: also classes of pixels are bilinearly upsampled, not of each pixel of a patch.
        dice: classes are trained with a weighted dice loss beside the cross-entropy.
        batch_size: windows of a training step.

    Raises:
        SweepError: no train, val or test window has a label, or every learning rate diverged.
    """
    head = Head.of(task, train.target.shape[1], upsampled, dice)
    train = train.labelled(whole=head.upsampled)
    if not bool(train.valid.any()):
        raise SweepError("no train window has a label")
    units = _Units.of(task, train.target)
    train = replace(train, target=units.standardise(train.target)).to(device)
    generator = torch.Generator().manual_seed(seed)
    trainer = Trainer(train.features.shape[1], head, learning_rates, generator, device)
    val_there = val.to(device)
    metric = metric or PRIMARY_METRICS[task.kind]
    best, chosen = float("nan"), None
    outputs = head.classes * train.target.shape[1] * len(learning_rates)
    with _few_threads(train, batch_size, outputs):
        for epoch in range(1, epochs + 1):
            trainer.train_epoch(train, epoch - 1, epochs, batch_size, generator)
            if epoch % EVALUATE_EVERY and epoch != epochs:
                continue
            for i, learning_rate in enumerate(learning_rates):
                layer = trainer.layer(i)
                predicted, scores = _predicted(layer, val_there, units, device, metric in RANKING)
                found = tally(
                    task.kind, task.num_classes, predicted, val.target.numpy(), scores=scores,
                    metric=metric,
                ).primary  # fmt: skip
                if better(metric, found, best):
                    best, chosen = found, (layer, learning_rate, epoch)
    if chosen is None:
        raise SweepError("every learning rate diverged; the embeddings may hold huge values")
    layer, learning_rate, epoch = chosen
    tallies = []
    for rows in (val, test):
        predicted, scores = _predicted(layer, rows, units, device, _ranked(task, rows, metric))
        tallies.append(tallied(task, predicted, rows, scores, metric))
    return Probed(tallies[0], tallies[1], learning_rate, epoch)


@contextlib.contextmanager
def _few_threads(train: Rows, batch_size: int, outputs: int) -> Iterator[None]:
    """One thread where steps are small."""
    before = torch.get_num_threads()
    rows = len(train.features) * min(batch_size / len(train), 1)
    small = rows * train.features.shape[1] * outputs < _SMALL_STEP
    torch.set_num_threads(1 if small else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def tallied(
    task: Task, predicted: NDArray[Any], rows: Rows, scores: NDArray[Any] | None, metric: str
) -> Tally:
    """A prediction for all rows, counted by window."""
    target = rows.target.numpy()
    return tally(task.kind, task.num_classes, predicted, target, rows.windows, scores, metric)


@dataclass(frozen=True)
class _Units:
    """How a regression's targets are standardised, by the train split; classes stay as they are."""

    mean: float = 0.0
    std: float = 1.0

    @classmethod
    def of(cls, task: Task, target: torch.Tensor) -> "_Units":
        if task.kind.has_classes:
            return cls()
        known = target[torch.isfinite(target)].double()
        std = float(known.std()) if len(known) > 1 else 0.0
        return cls(float(known.mean()), max(std, 1e-6))

    def standardise(self, target: torch.Tensor) -> torch.Tensor:
        return (target - self.mean) / self.std if target.is_floating_point() else target


def _predicted(
    layer: Layer, rows: Rows, units: _Units, device: torch.device, ranked: bool
) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
    """Class ids or numbers (R, Q), and of what is labelled, if asked for, softmax (M, C)."""
    has_classes = layer.head.task.kind.has_classes
    found = torch.empty(rows.target.shape, dtype=torch.long if has_classes else torch.float32)
    valid = rows.valid.cpu()
    place = valid.flatten().cumsum(0).view(valid.shape) - 1
    scores = torch.empty(int(valid.sum()) if ranked else 0, layer.head.classes)
    for some, outputs in layer.outputs(rows, device):
        if not has_classes:
            found[some] = (outputs[:, 0] * units.std + units.mean).cpu()
            continue
        found[some] = outputs.argmax(1).cpu()
        if ranked:
            there = valid[some]
            scores[place[some][there]] = outputs.softmax(1).movedim(1, 2).cpu()[there]
    return found.numpy(), scores.numpy() if ranked else None
