"""Probes on frozen embeddings: weighted kNN, and a linear layer.

The linear probe is trained with every learning rate at once: the layers lie side by side as one
wide layer, so a batch of features is read and multiplied once for all of them. The learning rate
and the epoch that score best on val are the ones that are tested.
"""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from eval_ingest.core.task import IGNORE_LABEL, Task
from eval_ingest.errors import SweepError
from eval_ingest.sweep.embed import Embedded
from eval_ingest.sweep.metrics import Tally, better, score, tally

VERSION = 1

K = 20
TEMPERATURE = 0.07

LEARNING_RATES = (1e-4, 5e-4, 1e-3, 5e-3, 1e-2, 5e-2, 1e-1, 5e-1)
EPOCHS = 50
WARMUP = 0.1
MIN_LEARNING_RATE = 1e-5
WINDOWS_PER_BATCH = 32
EVALUATE_EVERY = 10
"""Epochs between looks at val."""

_BETAS, _EPSILON, _WEIGHT_DECAY = (0.9, 0.999), 1e-8, 0.01  # AdamW's defaults in torch
_BATCH_NORM_MOMENTUM, _BATCH_NORM_EPSILON = 0.1, 1e-5

_BLOCK_VALUES = 1 << 24
"""Logits made at a time when predicting."""
_SMALL_STEP = 1e8
"""Multiplications of a training step up to which more threads gain little, and lose much where
others use the cores too: they wait for each other by spinning."""
_TRAIN_VALUES = 1 << 21
"""Logits made at a time when training: larger batches add up their gradients."""


@dataclass(frozen=True)
class Rows:
    """Some windows of an embedded split, as tensors."""

    features: torch.Tensor
    """float32 (R, D)"""
    target: torch.Tensor
    """(R, Q): long with -1, or float32 with NaN."""
    first: torch.Tensor
    """(N,) long: the first row of a window."""
    count: torch.Tensor
    """(N,) long: rows of a window."""

    @classmethod
    def of(cls, split: Embedded, windows: NDArray[np.int64] | None = None) -> "Rows":
        """The rows of these windows, or of all."""
        places = torch.from_numpy(split.places)
        if windows is not None:
            places = places[torch.from_numpy(windows)]
        features, target = torch.from_numpy(split.features), torch.from_numpy(split.target)
        rows = _expand(places[:, 0], places[:, 1])
        if len(rows) != len(features) or not bool((rows == torch.arange(len(rows))).all()):
            features, target = features[rows], target[rows]
        target = target if target.is_floating_point() else target.long()
        return cls(features, target, places[:, 1].cumsum(0) - places[:, 1], places[:, 1])

    def __len__(self) -> int:
        return len(self.first)

    @property
    def windows(self) -> NDArray[np.int64]:
        """(R,) the window of each row."""
        return np.repeat(np.arange(len(self)), self.count.numpy())

    def labelled(self) -> "Rows":
        """Without the rows that have no label at all, and the windows that have no such row."""
        there = (
            torch.isfinite(self.target)
            if self.target.is_floating_point()
            else self.target != IGNORE_LABEL
        ).any(1)
        if bool(there.all()):
            return self
        window = torch.from_numpy(self.windows)
        count = torch.bincount(window[there], minlength=len(self))
        count = count[count > 0]
        return Rows(self.features[there], self.target[there], count.cumsum(0) - count, count)

    def select(self, windows: torch.Tensor) -> "Rows":
        """These windows, in this order."""
        count = self.count[windows]
        rows = _expand(self.first[windows], count).to(self.features.device)
        return Rows(self.features[rows], self.target[rows], count.cumsum(0) - count, count)

    def to(self, device: torch.device) -> "Rows":
        """On a GPU if they leave half of its memory free, else where they are."""
        if device.type != "cuda":
            return self
        free, _ = torch.cuda.mem_get_info(device)
        if self.features.nbytes + self.target.nbytes > free // 2:
            return self
        return replace(self, features=self.features.to(device), target=self.target.to(device))


def _expand(first: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """Row numbers of windows: first, first + 1, ... for each."""
    starts = count.cumsum(0) - count
    return torch.arange(int(count.sum())) + torch.repeat_interleave(first - starts, count)


@dataclass(frozen=True)
class Probed:
    """What a probe found."""

    val: Tally
    test: Tally
    learning_rate: float | None = None
    """The one that is best on val; None for kNN."""
    epoch: int | None = None


def run_knn(task: Task, train: Rows, val: Rows, test: Rows, device: torch.device) -> Probed:
    """Weighted kNN for window classification.

    Raises:
        SweepError: no train, val or test window has a label.
    """
    labels = train.target[:, 0]
    if not bool((labels != IGNORE_LABEL).any()):
        raise SweepError("no train window has a label")
    on_val, on_test = (
        _tally(
            task,
            knn_predict(train.features, labels, rows.features, task.num_classes, device)[:, None],
            rows,
        )
        for rows in (val, test)
    )
    return Probed(on_val, on_test)


def knn_predict(
    train: torch.Tensor,
    labels: torch.Tensor,
    queries: torch.Tensor,
    num_classes: int,
    device: torch.device,
    k: int = K,
) -> NDArray[np.int64]:
    """Class ids (N,) by the k nearest by cosine similarity s, each voting with exp(s / 0.07).

    Args:
        train: (M, D).
        labels: (M,) long; -1 doesn't vote.
        queries: (N, D).
        num_classes: classes.
        device: where the products are made.
        k: neighbours; all where there are fewer.
    """
    valid = labels != IGNORE_LABEL
    known = F.normalize(train[valid].to(device), dim=1)
    votes_for = labels[valid].to(device)
    found = []
    for block in _blocks(queries, len(known)):
        similarity = F.normalize(block.to(device), dim=1) @ known.T
        nearest, places = similarity.topk(min(k, len(known)), dim=1)
        # Relative to the nearest: the same order, and nothing overflows.
        weights = ((nearest - nearest[:, :1]) / TEMPERATURE).exp()
        votes = weights.new_zeros(len(block), num_classes)
        found.append(votes.scatter_add_(1, votes_for[places], weights).argmax(1).cpu())
    return np.asarray(torch.cat(found).numpy())


def _blocks(rows: torch.Tensor, values_per_row: int) -> Iterator[torch.Tensor]:
    """The rows in pieces of which the results stay small."""
    size = max(_BLOCK_VALUES // max(values_per_row, 1), 1)
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def run_linear(
    task: Task,
    train: Rows,
    val: Rows,
    test: Rows,
    device: torch.device,
    seed: int,
    learning_rates: tuple[float, ...] = LEARNING_RATES,
    epochs: int = EPOCHS,
) -> Probed:
    """Train linear probes, choose on val, score on test.

    Raises:
        SweepError: no train, val or test window has a label, or every learning rate diverged.
    """
    train = train.labelled()
    if not len(train):
        raise SweepError("no train window has a label")
    units = _Units.of(task, train.target)
    train = replace(train, target=units.standardise(train.target)).to(device)
    generator = torch.Generator().manual_seed(seed)
    outputs = train.target.shape[1] * (task.num_classes if task.kind.has_classes else 1)
    probes = _Probes(train.features.shape[1], outputs, task, learning_rates, generator, device)
    truth, val_features = val.target.numpy(), val.to(device).features
    best, chosen = float("nan"), None
    with _few_threads(train, outputs * len(learning_rates)):
        for epoch in range(1, epochs + 1):
            probes.train_epoch(train, epoch - 1, epochs, generator)
            if epoch % EVALUATE_EVERY and epoch != epochs:
                continue
            for i, learning_rate in enumerate(learning_rates):
                layer = probes.layer(i)
                predicted = layer.predict(val_features, task, units, device)
                found = score(task.kind, task.num_classes, predicted, truth)
                if better(task.kind, found, best):
                    best, chosen = found, (layer, learning_rate, epoch)
    if chosen is None:
        raise SweepError("every learning rate diverged; the embeddings may hold huge values")
    layer, learning_rate, epoch = chosen
    on_val, on_test = (
        _tally(task, layer.predict(rows.features, task, units, device), rows)
        for rows in (val, test)
    )
    return Probed(on_val, on_test, learning_rate, epoch)


@contextlib.contextmanager
def _few_threads(train: Rows, outputs: int) -> Iterator[None]:
    """One thread where steps are small."""
    before = torch.get_num_threads()
    rows = len(train.features) * min(WINDOWS_PER_BATCH / len(train), 1)
    small = rows * train.features.shape[1] * outputs < _SMALL_STEP
    if small:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if small:
            torch.set_num_threads(before)


def _tally(task: Task, predicted: NDArray[Any], rows: Rows) -> Tally:
    return tally(
        task.kind, task.num_classes, predicted, rows.target.numpy(), rows.windows, len(rows)
    )


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


@dataclass(frozen=True)
class _Layer:
    """One trained probe: its batch normalisation, if any, is folded into it."""

    weight: torch.Tensor
    """(D, O); O = classes x labels of a row, classes outermost"""
    bias: torch.Tensor
    """(O,)"""

    def predict(
        self, features: torch.Tensor, task: Task, units: _Units, device: torch.device
    ) -> NDArray[Any]:
        """Class ids or numbers (R, Q) from features (R, D)."""
        found = []
        for block in _blocks(features, self.weight.shape[1]):
            outputs = torch.addmm(self.bias, block.to(device), self.weight)
            if task.kind.has_classes:
                found.append(outputs.view(len(block), task.num_classes, -1).argmax(1).cpu())
            else:
                found.append((outputs * units.std + units.mean).cpu())
        return np.asarray(torch.cat(found).numpy())


class _Probes:
    """Linear layers for L learning rates, trained side by side by AdamW.

    Window classification and regression normalise their inputs over the batch (BatchNorm1d).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        task: Task,
        learning_rates: tuple[float, ...],
        generator: torch.Generator,
        device: torch.device,
    ) -> None:
        self._task, self._device, self._learning_rates = task, device, learning_rates
        self._classes = task.num_classes if task.kind.has_classes else 1
        n = len(learning_rates)
        bound = 1 / math.sqrt(inputs)  # as torch.nn.Linear begins; alike for every rate
        weight = torch.empty(inputs, outputs).uniform_(-bound, bound, generator=generator)
        bias = torch.empty(outputs).uniform_(-bound, bound, generator=generator)
        self._parameters = {"weight": weight.repeat(n, 1, 1), "bias": bias.repeat(n, 1)}
        if not task.kind.per_pixel:
            self._parameters["gamma"] = torch.ones(n, inputs)
            self._parameters["beta"] = torch.zeros(n, inputs)
        for name, value in self._parameters.items():
            self._parameters[name] = value.to(device).requires_grad_()
        self._moments = {
            name: (torch.zeros_like(value), torch.zeros_like(value))
            for name, value in self._parameters.items()
        }
        self._steps = 0
        # Batch statistics depend on the inputs alone, so all rates share them.
        self._mean = torch.zeros(inputs, device=device)
        self._variance = torch.ones(inputs, device=device)

    def train_epoch(self, train: Rows, epoch: int, epochs: int, generator: torch.Generator) -> None:
        """One pass over the windows in random order, in batches of about 32."""
        order = torch.randperm(len(train), generator=generator)
        batches = order.tensor_split(math.ceil(len(train) / WINDOWS_PER_BATCH))
        for i, windows in enumerate(batches):
            batch = train.select(windows)
            self._backward(batch.features.to(self._device), batch.target.to(self._device))
            self._step(epoch + i / len(batches), epochs)

    def _backward(self, features: torch.Tensor, target: torch.Tensor) -> None:
        features = self._normalise(features)
        valid = target != IGNORE_LABEL if self._task.kind.has_classes else torch.isfinite(target)
        total = valid.sum()
        values = self._parameters["bias"].numel()
        size = max(_TRAIN_VALUES // values, 1)
        for start in range(0, len(features), size):
            part = slice(start, start + size)
            outputs = self._outputs(features[part])
            # The mean over all labels of the batch, for each rate: no rate sees another's.
            gradient = self._loss_gradient(outputs.detach(), target[part], valid[part])
            outputs.backward(gradient / total)  # type: ignore[no-untyped-call]

    def _normalise(self, features: torch.Tensor) -> torch.Tensor:
        if "gamma" not in self._parameters:
            return features
        n = len(features)
        variance, mean = torch.var_mean(features, dim=0, correction=0)
        unbiased = variance * (n / max(n - 1, 1))
        self._mean.lerp_(mean, _BATCH_NORM_MOMENTUM)
        self._variance.lerp_(unbiased, _BATCH_NORM_MOMENTUM)
        return (features - mean) * torch.rsqrt(variance + _BATCH_NORM_EPSILON)

    def _outputs(self, features: torch.Tensor) -> torch.Tensor:
        """(n, C, L, Q) from normalised features (n, D)."""
        weight, bias = self._affine()
        rates, inputs, outputs = weight.shape
        classes = self._classes
        wide = weight.view(rates, inputs, classes, -1).permute(1, 2, 0, 3).reshape(inputs, -1)
        offset = bias.view(rates, classes, -1).transpose(0, 1).reshape(-1)
        return torch.addmm(offset, features, wide).view(-1, classes, rates, outputs // classes)

    def _affine(self) -> tuple[torch.Tensor, torch.Tensor]:
        weight, bias = self._parameters["weight"], self._parameters["bias"]
        if "gamma" in self._parameters:
            bias = bias + torch.einsum("ld,ldo->lo", self._parameters["beta"], weight)
            weight = weight * self._parameters["gamma"][:, :, None]
        return weight, bias

    def _loss_gradient(
        self, outputs: torch.Tensor, target: torch.Tensor, valid: torch.Tensor
    ) -> torch.Tensor:
        """Of the summed cross-entropy or squared error of labels (n, Q), for outputs (n, C, L, Q).

        By hand: autograd's cross-entropy takes most of a training step where classes are few.
        """
        known = valid[:, None, None].float()
        if not self._task.kind.has_classes:
            return (outputs - target.nan_to_num()[:, None, None]) * (2 * known)
        gradient = outputs.softmax(1)
        truth = torch.zeros_like(outputs[:, :, 0])
        truth.scatter_(1, target.clamp(min=0)[:, None], 1.0)
        gradient.sub_(truth[:, :, None])
        return gradient if bool(valid.all()) else gradient.mul_(known)

    @torch.no_grad()
    def _step(self, epoch: float, epochs: int) -> None:
        """One step of AdamW, with a learning rate of its own for every layer."""
        self._steps += 1
        rates = torch.tensor(
            [scheduled(rate, epoch, epochs) for rate in self._learning_rates], device=self._device
        )
        first, second = (1 - beta**self._steps for beta in _BETAS)
        for name, value in self._parameters.items():
            gradient = value.grad
            if gradient is None:
                continue
            rate = rates.view(-1, *(1 for _ in value.shape[1:]))
            mean, square = self._moments[name]
            mean.lerp_(gradient, 1 - _BETAS[0])
            square.mul_(_BETAS[1]).addcmul_(gradient, gradient, value=1 - _BETAS[1])
            value.mul_(1 - rate * _WEIGHT_DECAY)
            value.sub_(rate * (mean / first) / ((square / second).sqrt_().add_(_EPSILON)))
            value.grad = None

    @torch.no_grad()
    def layer(self, i: int) -> _Layer:
        """The probe of the i-th learning rate as it is now."""
        weight, bias = (value[i] for value in self._affine())
        if "gamma" in self._parameters:
            inverse = torch.rsqrt(self._variance + _BATCH_NORM_EPSILON)
            weight = weight * inverse[:, None]
            bias = bias - self._mean @ weight
        return _Layer(weight.clone(), bias.clone())


def scheduled(learning_rate: float, epoch: float, epochs: int) -> float:
    """The learning rate at a fraction of an epoch: linear warm-up, then half a cosine."""
    warmup = int(epochs * WARMUP)
    if epoch < warmup:
        return learning_rate * epoch / warmup
    progress = (epoch - warmup) / (epochs - warmup)
    falling = 0.5 * (1 + math.cos(math.pi * progress))
    return MIN_LEARNING_RATE + (learning_rate - MIN_LEARNING_RATE) * falling
