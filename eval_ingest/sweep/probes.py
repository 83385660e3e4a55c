"""Probes on frozen embeddings: weighted kNN, and a linear layer.

The linear probe is trained with every learning rate at once: the layers lie side by side as one
wide layer, so a batch of features is read and multiplied once for all of them. The learning rate
and the epoch that score best on val are the ones that are tested.

The layer gives a patch all its pixels, or one value, bilinearly upsampled: regressions of pixels
always do the latter (see upsampling.py), as in the existing OlmoEarth eval code.
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

from eval_ingest.core.eval_settings import PRIMARY_METRICS
from eval_ingest.core.task import IGNORE_LABEL, Task
from eval_ingest.errors import SweepError
from eval_ingest.sweep.embed import Embedded
from eval_ingest.sweep.metrics import Tally, better, score, tally
from eval_ingest.sweep.ranking import MAX_RANKED, RANKING
from eval_ingest.sweep.upsampling import Grid, grids

VERSION = 3

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
"""Logits made at a time when predicting, and when training on a GPU."""
_NEARLY_ZERO = 1e-20
"""Smaller probabilities are taken as this: a product of subnormal numbers takes ten times longer,
and high learning rates give many of them."""
_CACHED_VALUES = 1 << 18
"""Logits made at a time when training on a CPU, by each thread: what its cache holds."""
_SMALL_STEP = 1e9
"""Multiplications of a training step up to which more threads gain little, and lose much where
others use the cores too: they wait for each other by spinning."""


@dataclass(frozen=True)
class Rows:
    """Some windows of an embedded split, as tensors."""

    features: torch.Tensor
    """float32 (R, D)"""
    target: torch.Tensor
    """(R, Q): long with -1, or float32 with NaN."""
    first: torch.Tensor
    """(N,) long: the first row of a sample."""
    count: torch.Tensor
    """(N,) long: rows of a sample."""
    window: torch.Tensor | None = None
    """(N,) long: equal where samples are of one window; None: each is of its own."""
    grid: torch.Tensor | None = None
    """(N, 2) long: rows and columns of a sample's patches; None: it has no longer all of them."""

    @classmethod
    def of(cls, split: Embedded, samples: NDArray[np.int64] | None = None) -> "Rows":
        """The rows of these samples, or of all."""
        places = torch.from_numpy(split.places)
        numbers = None if split.windows is None else torch.from_numpy(split.windows)
        if samples is not None:
            places = places[torch.from_numpy(samples)]
            numbers = None if numbers is None else numbers[torch.from_numpy(samples)]
        features, target = torch.from_numpy(split.features), torch.from_numpy(split.target)
        rows = _expand(places[:, 0], places[:, 1])
        if len(rows) != len(features) or not bool((rows == torch.arange(len(rows))).all()):
            features, target = features[rows], target[rows]
        target = target if target.is_floating_point() else target.long()
        first = places[:, 1].cumsum(0) - places[:, 1]
        return cls(features, target, first, places[:, 1], numbers, places[:, 2:])

    def __len__(self) -> int:
        return len(self.first)

    @property
    def samples(self) -> NDArray[np.int64]:
        """(R,) the sample of each row."""
        return np.repeat(np.arange(len(self)), self.count.numpy())

    @property
    def windows(self) -> NDArray[np.int64]:
        """(R,) the number of each row's window, counted from 0."""
        if self.window is None:
            return self.samples
        numbers = np.unique(self.window.numpy(), return_inverse=True)[1]
        return np.repeat(numbers, self.count.numpy())

    @property
    def valid(self) -> torch.Tensor:
        """(R, Q) bool: where there is a label."""
        if self.target.is_floating_point():
            return torch.isfinite(self.target)
        return self.target != IGNORE_LABEL

    def grids(self, values_per_pixel: int, most: int) -> Iterator[Grid]:
        """The samples by the size of their grids, in pieces of so many values."""
        assert self.grid is not None
        patch = math.isqrt(self.target.shape[1])
        return grids(self.first, self.grid, patch, values_per_pixel, most)

    def labelled(self, whole: bool = False) -> "Rows":
        """Without the rows that have no label at all, and the samples that have no other.

        With `whole`, samples that have a label keep all their rows.
        """
        there = self.valid.any(1)
        if bool(there.all()):
            return self
        if whole:
            known = np.unique(self.samples[there.numpy()])
            return self if len(known) == len(self) else self.select(torch.from_numpy(known))
        sample = torch.from_numpy(self.samples)
        count = torch.bincount(sample[there], minlength=len(self))
        kept = count > 0
        count, window = count[kept], None if self.window is None else self.window[kept]
        first = count.cumsum(0) - count
        return Rows(self.features[there], self.target[there], first, count, window)

    def select(self, windows: torch.Tensor) -> "Rows":
        """These samples, in this order."""
        count = self.count[windows]
        first = count.cumsum(0) - count
        window = None if self.window is None else self.window[windows]
        grid = None if self.grid is None else self.grid[windows]
        alike = len(self) * int(self.count[0]) == len(self.features) if len(self) else False
        if alike and bool((self.count == self.count[0]).all()):
            features, target = (
                _taken(values.view(len(self), -1), windows).view(-1, values.shape[1])
                for values in (self.features, self.target)
            )
            return Rows(features, target, first, count, window, grid)
        rows = _expand(self.first[windows], count).to(self.features.device)
        return Rows(self.features[rows], self.target[rows], first, count, window, grid)

    def to(self, device: torch.device) -> "Rows":
        """On a GPU if they leave half of its memory free, else where they are."""
        if device.type != "cuda":
            return self
        free, _ = torch.cuda.mem_get_info(device)
        if self.features.nbytes + self.target.nbytes > free // 2:
            return self
        return replace(self, features=self.features.to(device), target=self.target.to(device))


def _taken(values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Rows of a matrix."""
    if values.device.type == "cpu":  # numpy copies whole rows, torch value by value
        return torch.from_numpy(np.take(values.numpy(), rows.numpy(), axis=0))
    return values[rows.to(values.device)]


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
        there = rows.valid[:, 0]
        scores = votes[there].numpy() if _ranked(task, rows, metric) else None
        found.append(_tally(task, votes.argmax(1)[:, None].numpy(), rows, scores, metric))
    return Probed(found[0], found[1])


def _ranked(task: Task, rows: Rows, metric: str) -> bool:
    """Are areas under curves to be computed?"""
    if metric in RANKING:
        return True
    return task.kind.has_classes and int(rows.valid.sum()) <= MAX_RANKED


def knn_predict(
    train: torch.Tensor,
    labels: torch.Tensor,
    queries: torch.Tensor,
    num_classes: int,
    device: torch.device,
    k: int = K,
) -> NDArray[np.int64]:
    """Class ids (N,) by most votes; arguments as of `knn_votes`."""
    return np.asarray(knn_votes(train, labels, queries, num_classes, device, k).argmax(1).numpy())


def knn_votes(
    train: torch.Tensor,
    labels: torch.Tensor,
    queries: torch.Tensor,
    num_classes: int,
    device: torch.device,
    k: int = K,
) -> torch.Tensor:
    """Votes (N, C), of 1 in all, of the k nearest by cosine similarity s, weighted exp(s / 0.07).

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
        # Relative to the nearest: the same shares, and nothing overflows.
        weights = ((nearest - nearest[:, :1]) / TEMPERATURE).exp()
        votes = weights.new_zeros(len(block), num_classes)
        votes.scatter_add_(1, votes_for[places], weights)
        found.append((votes / votes.sum(1, keepdim=True)).cpu())
    return torch.cat(found)


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
    metric: str = "",
    upsampled: bool = False,
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

    Raises:
        SweepError: no train, val or test window has a label, or every learning rate diverged.
    """
    head = _Head.of(task, train.target.shape[1], upsampled)
    train = train.labelled(whole=head.upsampled)
    if not bool(train.valid.any()):
        raise SweepError("no train window has a label")
    units = _Units.of(task, train.target)
    train = replace(train, target=units.standardise(train.target)).to(device)
    generator = torch.Generator().manual_seed(seed)
    probes = _Probes(train.features.shape[1], head, learning_rates, generator, device)
    val_there = val.to(device)
    metric = metric or PRIMARY_METRICS[task.kind]
    truth, ranked = val.target.numpy(), metric in RANKING
    best, chosen = float("nan"), None
    with _few_threads(train, head.classes * train.target.shape[1] * len(learning_rates)):
        for epoch in range(1, epochs + 1):
            probes.train_epoch(train, epoch - 1, epochs, generator)
            if epoch % EVALUATE_EVERY and epoch != epochs:
                continue
            for i, learning_rate in enumerate(learning_rates):
                layer = probes.layer(i)
                predicted, scores = layer.predict(val_there, units, device, ranked)
                found = score(task.kind, task.num_classes, predicted, truth, scores, metric)
                if better(metric, found, best):
                    best, chosen = found, (layer, learning_rate, epoch)
    if chosen is None:
        raise SweepError("every learning rate diverged; the embeddings may hold huge values")
    layer, learning_rate, epoch = chosen
    tallies = []
    for rows in (val, test):
        predicted, scores = layer.predict(rows, units, device, _ranked(task, rows, metric))
        tallies.append(_tally(task, predicted, rows, scores, metric))
    return Probed(tallies[0], tallies[1], learning_rate, epoch)


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


def _tally(
    task: Task, predicted: NDArray[Any], rows: Rows, scores: NDArray[Any] | None, metric: str
) -> Tally:
    windows, target = rows.windows, rows.target.numpy()
    count = int(windows.max(initial=-1)) + 1
    return tally(task.kind, task.num_classes, predicted, target, windows, count, scores, metric)


@dataclass(frozen=True)
class _Head:
    """What the layer of a probe has on both sides."""

    task: Task
    classes: int
    """1 of a regression."""
    labels: int
    """That the layer itself gives for a row."""
    upsampled: bool
    """Its one label per patch is bilinearly upsampled to pixels."""

    @classmethod
    def of(cls, task: Task, labels: int, upsampled: bool = False) -> "_Head":
        """For rows of so many labels."""
        upsampled = task.kind.per_pixel and (upsampled or not task.kind.has_classes)
        classes = task.num_classes if task.kind.has_classes else 1
        return cls(task, classes, 1 if upsampled else labels, upsampled)

    @property
    def normalised(self) -> bool:
        """Inputs are normalised over the batch."""
        return not self.task.kind.per_pixel


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
    head: _Head

    def predict(
        self, rows: Rows, units: _Units, device: torch.device, ranked: bool = False
    ) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
        """Class ids or numbers (R, Q), and of what is labelled, if asked for, softmax (M, C)."""
        valid = rows.valid.cpu()
        place = valid.flatten().cumsum(0).view(valid.shape) - 1
        has_classes = self.head.task.kind.has_classes
        found = torch.empty(valid.shape, dtype=torch.long if has_classes else torch.float32)
        scores = torch.empty(int(valid.sum()), self.head.classes) if ranked else None
        for some, outputs in self._outputs(rows, device):
            if not has_classes:
                found[some] = (outputs[:, 0] * units.std + units.mean).cpu()
                continue
            found[some] = outputs.argmax(1).cpu()
            if scores is not None:
                there = valid[some]
                shares = outputs.softmax(1).movedim(1, 2)
                scores[place[some][there]] = shares.cpu()[there]
        return np.asarray(found.numpy()), None if scores is None else scores.numpy()

    def _outputs(
        self, rows: Rows, device: torch.device
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Row numbers (n,) and outputs (n, C, Q), block by block."""
        features = rows.features
        if not self.head.upsampled:
            for some in _blocks(torch.arange(len(features)), self.weight.shape[1]):
                block = features[some[0] : some[-1] + 1].to(device)
                outputs = torch.addmm(self.bias, block, self.weight)
                yield some, outputs.view(len(some), self.head.classes, -1)
            return
        for grid in rows.grids(self.head.classes, _BLOCK_VALUES):
            block = features[grid.rows.to(features.device)].to(device)
            outputs = torch.addmm(self.bias, block, self.weight)
            yield grid.rows, grid.upsample(outputs).movedim(1, 2)


class _Probes:
    """Linear layers for L learning rates, trained side by side by AdamW.

    Window classification and regression normalise their inputs over the batch (BatchNorm1d). The
    gradients are written out: autograd and new memory for every step take most of the time where
    layers are as small as these.
    """

    def __init__(
        self,
        inputs: int,
        head: _Head,
        learning_rates: tuple[float, ...],
        generator: torch.Generator,
        device: torch.device,
    ) -> None:
        self._head, self._device, self._learning_rates = head, device, learning_rates
        classes, outputs = head.classes, head.classes * head.labels
        n = len(learning_rates)
        bound = 1 / math.sqrt(inputs)  # as torch.nn.Linear begins; alike for every rate
        weight = torch.empty(inputs, outputs).uniform_(-bound, bound, generator=generator)
        bias = torch.empty(outputs).uniform_(-bound, bound, generator=generator)
        # (D + 1, C, L, Q): a row per input, the last one is the bias.
        affine = torch.cat([weight, bias[None]]).view(inputs + 1, classes, 1, -1)
        self._parameters = {"affine": affine.repeat(1, 1, n, 1)}
        if head.normalised:
            self._parameters["gamma"] = torch.ones(inputs, 1, n, 1)
            self._parameters["beta"] = torch.zeros(inputs, 1, n, 1)
        self._parameters = {name: value.to(device) for name, value in self._parameters.items()}
        zeros = {name: torch.zeros_like(value) for name, value in self._parameters.items()}
        self._moments = {name: (value.clone(), value.clone()) for name, value in zeros.items()}
        self._gradients, self._scratch = zeros, {name: z.clone() for name, z in zeros.items()}
        self._buffers: dict[str, torch.Tensor] = {}
        self._steps = 0
        # Batch statistics depend on the inputs alone, so all rates share them.
        self._mean = torch.zeros(inputs, device=device)
        self._variance = torch.ones(inputs, device=device)

    @torch.no_grad()
    def train_epoch(self, train: Rows, epoch: int, epochs: int, generator: torch.Generator) -> None:
        """One pass over the windows in random order, in batches of about 32."""
        order = torch.randperm(len(train), generator=generator)
        batches = order.tensor_split(math.ceil(len(train) / WINDOWS_PER_BATCH))
        for i, windows in enumerate(batches):
            self._differentiate(train.select(windows))
            self._step(epoch + i / len(batches), epochs)

    def _inputs(self, features: torch.Tensor) -> torch.Tensor:
        """Features (n, D) as inputs (n, D + 1), normalised and with ones at the end."""
        features = features.to(self._device)
        inputs = self._buffer("inputs", len(features), features.shape[1] + 1)
        inputs[:, -1] = 1
        if "gamma" in self._parameters:
            n = len(features)
            variance, mean = torch.var_mean(features, dim=0, correction=0)
            unbiased = variance * (n / max(n - 1, 1))
            self._mean.lerp_(mean, _BATCH_NORM_MOMENTUM)
            self._variance.lerp_(unbiased, _BATCH_NORM_MOMENTUM)
            scale = torch.rsqrt(variance + _BATCH_NORM_EPSILON)
            torch.sub(features, mean, out=inputs[:, :-1]).mul_(scale)
        else:
            inputs[:, :-1] = features
        return inputs

    def _buffer(self, name: str, rows: int, columns: int) -> torch.Tensor:
        """Memory that is used again for every step."""
        buffer = self._buffers.get(name)
        if buffer is None or len(buffer) < rows:
            buffer = self._buffers[name] = torch.empty(rows, columns, device=self._device)
        return buffer[:rows]

    def _differentiate(self, batch: Rows) -> None:
        """Gradients of the mean loss over all labels of the batch; no rate sees another's."""
        inputs, target = self._inputs(batch.features), batch.target.to(self._device)
        weights, valid = self._affine(), batch.valid.to(self._device)
        gradient = self._scratch["affine"].zero_()
        wide, sums = weights.flatten(1), gradient.flatten(1)
        cpu = self._device.type == "cpu"
        values = _CACHED_VALUES * torch.get_num_threads() if cpu else _BLOCK_VALUES
        if self._head.upsampled:
            for grid in batch.grids(wide.shape[1], values):
                self._add_upsampled(grid, inputs, target, valid, wide, sums)
            self._through_affine(gradient.div_(valid.sum()))
            return
        size = max(values // wide.shape[1], 1)
        for start in range(0, len(inputs), size):
            part = slice(start, start + size)
            outputs = self._buffer("outputs", len(inputs[part]), wide.shape[1])
            torch.mm(inputs[part], wide, out=outputs)
            sums.addmm_(inputs[part].T, self._loss_gradient(outputs, target[part], valid[part]))
        if self._head.task.kind.has_classes:
            gradient.sub_(self._truth(inputs, target, valid)[:, :, None])
        self._through_affine(gradient.div_(valid.sum()))

    def _add_upsampled(
        self,
        grid: Grid,
        inputs: torch.Tensor,
        target: torch.Tensor,
        valid: torch.Tensor,
        wide: torch.Tensor,
        sums: torch.Tensor,
    ) -> None:
        """Add some windows' gradient of the summed loss to `sums` (D + 1, C L)."""
        rows = grid.rows.to(self._device)
        some, labels, known = inputs[rows], target[rows].view(-1, 1), valid[rows].view(-1, 1)
        pixels = grid.upsample(some @ wide)
        found = self._loss_gradient(pixels.view(-1, wide.shape[1]), labels, known)
        if self._head.task.kind.has_classes:
            by_class = found.view(len(found), self._head.classes, -1)
            rates = by_class.shape[2]
            chosen = labels.clamp(min=0)[:, :, None].expand(-1, -1, rates)
            by_class.scatter_add_(1, chosen, -known.float()[:, :, None].expand(-1, -1, rates))
        sums.addmm_(some.T, grid.gradient(found.view(pixels.shape)))

    def _loss_gradient(
        self, outputs: torch.Tensor, target: torch.Tensor, valid: torch.Tensor
    ) -> torch.Tensor:
        """Of the summed loss, for outputs (n, C L Q): twice the error, or the softmax.

        From the softmax the truth is still to be taken: see `_truth`.
        """
        _, classes, rates, _ = self._parameters["affine"].shape
        shaped = outputs.view(len(outputs), classes, rates, -1)
        known = valid[:, None, None]
        if not self._head.task.kind.has_classes:
            shaped.sub_(target.nan_to_num()[:, None, None]).mul_(known * 2.0)
            return outputs
        found = self._buffer("softmax", len(outputs), outputs.shape[1])
        torch.softmax(shaped, 1, out=found.view_as(shaped))
        found.clamp_(min=_NEARLY_ZERO)
        if not bool(valid.all()):
            found.view_as(shaped).mul_(known)
        return found

    def _truth(
        self, inputs: torch.Tensor, target: torch.Tensor, valid: torch.Tensor
    ) -> torch.Tensor:
        """Inputs (n, D + 1) summed up by label: (D + 1, C, Q). All rates share it."""
        classes = self._parameters["affine"].shape[1]
        truth = self._buffer("truth", len(target), classes * target.shape[1])
        shaped = truth.view(len(target), classes, -1)
        shaped.zero_().scatter_(1, target.clamp(min=0)[:, None], valid[:, None].float())
        return (inputs.T @ truth).view(-1, classes, target.shape[1])

    def _affine(self) -> torch.Tensor:
        """(D + 1, C, L, Q) from normalised inputs to outputs: BatchNorm's and Linear's weights."""
        affine = self._parameters["affine"]
        if "gamma" not in self._parameters:
            return affine
        weights = torch.empty_like(affine)
        torch.mul(affine[:-1], self._parameters["gamma"], out=weights[:-1])
        weights[-1] = affine[-1] + (affine[:-1] * self._parameters["beta"]).sum(0)
        return weights

    def _through_affine(self, gradient: torch.Tensor) -> None:
        """From the gradient of what `_affine` gives to those of the parameters."""
        found = self._gradients["affine"].copy_(gradient)
        if "gamma" in self._parameters:
            affine, gamma, beta = (self._parameters[n] for n in ("affine", "gamma", "beta"))
            found[:-1].mul_(gamma).addcmul_(beta, gradient[-1:])
            for name, sums in (("gamma", gradient[:-1]), ("beta", gradient[-1:])):
                self._gradients[name][:] = (affine[:-1] * sums).sum((1, 3), keepdim=True)

    def _step(self, epoch: float, epochs: int) -> None:
        """One step of AdamW, with a learning rate of its own for every layer."""
        self._steps += 1
        rates = torch.tensor(
            [scheduled(rate, epoch, epochs) for rate in self._learning_rates], device=self._device
        )[:, None]
        first, second = (1 - beta**self._steps for beta in _BETAS)
        for name, value in self._parameters.items():
            gradient, (mean, square) = self._gradients[name], self._moments[name]
            mean.lerp_(gradient, 1 - _BETAS[0])
            square.mul_(_BETAS[1]).addcmul_(gradient, gradient, value=1 - _BETAS[1])
            change = torch.sqrt(square, out=self._scratch[name])
            change.mul_(1 / math.sqrt(second)).add_(_EPSILON)
            torch.div(mean, change, out=change)
            value.mul_(1 - rates * _WEIGHT_DECAY).addcmul_(change, -rates / first)

    @torch.no_grad()
    def layer(self, i: int) -> _Layer:
        """The probe of the i-th learning rate as it is now."""
        affine = self._affine()[:, :, i].flatten(1)
        weight, bias = affine[:-1].clone(), affine[-1].clone()
        if "gamma" in self._parameters:
            weight *= torch.rsqrt(self._variance + _BATCH_NORM_EPSILON)[:, None]
            bias -= self._mean @ weight
        return _Layer(weight, bias, self._head)


def scheduled(learning_rate: float, epoch: float, epochs: int) -> float:
    """The learning rate at a fraction of an epoch: linear warm-up, then half a cosine."""
    warmup = int(epochs * WARMUP)
    if epoch < warmup:
        return learning_rate * epoch / warmup
    progress = (epoch - warmup) / (epochs - warmup)
    falling = 0.5 * (1 + math.cos(math.pi * progress))
    return MIN_LEARNING_RATE + (learning_rate - MIN_LEARNING_RATE) * falling
