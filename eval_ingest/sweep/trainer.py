"""Linear layers for several learning rates, trained side by side by AdamW.

The layers lie side by side as one wide layer, so that a batch of features is read and multiplied
once for all of them. The gradients are written out and made in blocks that a cache holds: autograd
takes most of the time where layers are as small as these. Which layer is used is for probes.py.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.optim.adamw import adamw

from eval_ingest.core.task import Task
from eval_ingest.sweep.rows import Rows
from eval_ingest.sweep.upsampling import Grid

WARMUP = 0.1
MIN_LEARNING_RATE = 1e-5

_BATCH_NORM_MOMENTUM, _BATCH_NORM_EPSILON = 0.1, 1e-5
_NEARLY_ZERO = 1e-20
"""Smaller probabilities are taken as this: a product of subnormal numbers takes ten times longer,
and high learning rates give many of them."""

BLOCK_VALUES = 1 << 24
"""Outputs made at a time on a GPU."""
_CACHED_VALUES = 1 << 18
"""Outputs made at a time on a CPU, by each thread: what its cache holds."""


@dataclass(frozen=True)
class Head:
    """What the layer of a probe has on both sides."""

    task: Task
    classes: int
    """1 of a regression."""
    labels: int
    """That the layer itself gives for a row."""
    upsampled: bool
    """Its one label per patch is bilinearly upsampled to pixels."""
    dice: bool = False
    """Of classes: a weighted dice loss beside the cross-entropy."""

    @classmethod
    def of(cls, task: Task, labels: int, upsampled: bool = False, dice: bool = False) -> "Head":
        """For rows of so many labels."""
        has_classes = task.kind.has_classes
        upsampled = task.kind.per_pixel and (upsampled or not has_classes)
        classes = task.num_classes if has_classes else 1
        return cls(task, classes, 1 if upsampled else labels, upsampled, dice and has_classes)

    @property
    def normalised(self) -> bool:
        """Inputs are normalised over the batch (BatchNorm1d)."""
        return not self.task.kind.per_pixel


@dataclass(frozen=True)
class Layer:
    """One trained probe: its batch normalisation, if any, is folded into it."""

    weight: torch.Tensor
    """(D, O); O = classes x labels of a row, classes outermost"""
    bias: torch.Tensor
    """(O,)"""
    head: Head

    def outputs(
        self, rows: Rows, device: torch.device
    ) -> Iterator[tuple[slice | torch.Tensor, torch.Tensor]]:
        """Which rows, and their outputs (n, C, Q), block by block."""
        for part, grid in _parts(rows, self.head, self.weight.shape[1], BLOCK_VALUES):
            found = torch.addmm(self.bias, rows.features[part].to(device), self.weight)
            if grid is None:
                yield part, found.view(len(found), self.head.classes, -1)
            else:
                yield part, grid.upsample(found).movedim(1, 2)


def _parts(
    rows: Rows, head: Head, columns: int, most: int
) -> Iterator[tuple[slice | torch.Tensor, Grid | None]]:
    """Which rows, in parts of which so many columns of outputs have no more than `most` values."""
    if head.upsampled:
        yield from ((grid.rows, grid) for grid in rows.grids(columns, most))
        return
    size = max(most // columns, 1)
    for start in range(0, len(rows.features), size):
        yield slice(start, start + size), None


class Trainer:
    """Layers of D inputs for L learning rates; all begin alike, as torch.nn.Linear does."""

    def __init__(
        self,
        inputs: int,
        head: Head,
        learning_rates: Sequence[float],
        generator: torch.Generator,
        device: torch.device,
    ) -> None:
        self._head, self._device, self._rates = head, device, learning_rates
        outputs, n = head.classes * head.labels, len(learning_rates)
        bound = 1 / math.sqrt(inputs)
        weight = torch.empty(inputs, outputs).uniform_(-bound, bound, generator=generator)
        bias = torch.empty(outputs).uniform_(-bound, bound, generator=generator)
        # (L, D + 1, O): the last row is the bias.
        self._affine = torch.cat([weight, bias[None]]).repeat(n, 1, 1).to(device)
        self._parameters = [self._affine]
        if head.normalised:
            self._gamma = torch.ones(n, inputs, 1, device=device)
            self._beta = torch.zeros(n, inputs, 1, device=device)
            self._parameters += [self._gamma, self._beta]
        self._gradients, self._means, self._squares = (
            [torch.zeros_like(value) for value in self._parameters] for _ in range(3)
        )
        self._steps = [[torch.zeros((), device=device) for _ in self._parameters] for _ in range(n)]
        # Batch statistics depend on the inputs alone, so all rates share them.
        self._mean = torch.zeros(inputs, device=device)
        self._variance = torch.ones(inputs, device=device)

    @torch.no_grad()
    def train_epoch(
        self, train: Rows, epoch: int, epochs: int, batch_size: int, generator: torch.Generator
    ) -> None:
        """One pass over the windows in random order, in batches of about so many."""
        order = torch.randperm(len(train), generator=generator)
        batches = order.tensor_split(math.ceil(len(train) / batch_size))
        for i, windows in enumerate(batches):
            self._differentiate(train.select(windows))
            for k, rate in enumerate(self._rates):
                self._step(k, scheduled(rate, epoch + i / len(batches), epochs))

    def _step(self, k: int, learning_rate: float) -> None:
        """One step of AdamW for the k-th rate. (torch's class of it takes a second to import.)"""
        values, gradients, means, squares = (
            [value[k] for value in kept]
            for kept in (self._parameters, self._gradients, self._means, self._squares)
        )
        adamw(
            values, gradients, means, squares, [], self._steps[k],
            fused=True, amsgrad=False, maximize=False, beta1=0.9, beta2=0.999, eps=1e-8,
            weight_decay=0.01, lr=learning_rate,
        )  # fmt: skip

    def _inputs(self, features: torch.Tensor) -> torch.Tensor:
        """Features (n, D) as inputs (n, D + 1), normalised and with ones at the end."""
        features = features.to(self._device)
        inputs = features.new_ones(len(features), features.shape[1] + 1)
        if not self._head.normalised:
            inputs[:, :-1] = features
            return inputs
        n = len(features)
        variance, mean = torch.var_mean(features, dim=0, correction=0)
        self._mean.lerp_(mean, _BATCH_NORM_MOMENTUM)
        self._variance.lerp_(variance * (n / max(n - 1, 1)), _BATCH_NORM_MOMENTUM)
        scale = torch.rsqrt(variance + _BATCH_NORM_EPSILON)
        torch.sub(features, mean, out=inputs[:, :-1]).mul_(scale)
        return inputs

    def _differentiate(self, batch: Rows) -> None:
        """Gradients of the mean loss over all labels of the batch; no rate sees another's."""
        inputs, target = self._inputs(batch.features), batch.target.to(self._device)
        known = batch.valid.to(self._device)
        combined = self._combined()
        rates, depth, _ = combined.shape
        wide = combined.transpose(0, 1).reshape(depth, -1)  # (D + 1, L O)
        sums = torch.zeros_like(wide)
        cpu = self._device.type == "cpu"
        most = _CACHED_VALUES * torch.get_num_threads() if cpu else BLOCK_VALUES
        parts = [
            _Part(self._head, rates, inputs[rows], target[rows], known[rows], grid)
            for rows, grid in _parts(batch, self._head, wide.shape[1], most)
        ]
        dice = _Dice.of(parts, wide) if self._head.dice else None
        for part in parts:
            part.add_gradient(wide, sums, dice)
        sums.div_(known.sum())
        self._through_combined(sums.view(depth, rates, -1).transpose(0, 1))

    def _combined(self) -> torch.Tensor:
        """(L, D + 1, O) from normalised inputs to outputs: BatchNorm's and Linear's weights."""
        affine = self._affine
        if not self._head.normalised:
            return affine
        bias = affine[:, -1:] + (affine[:, :-1] * self._beta).sum(1, keepdim=True)
        return torch.cat([affine[:, :-1] * self._gamma, bias], dim=1)

    def _through_combined(self, gradient: torch.Tensor) -> None:
        """From the gradient of what `_combined` gives to those of the parameters."""
        self._gradients[0].copy_(gradient)
        if self._head.normalised:
            weight, of_weight, of_bias = self._affine[:, :-1], gradient[:, :-1], gradient[:, -1:]
            self._gradients[0][:, :-1] = of_weight * self._gamma + of_bias * self._beta
            self._gradients[1][:] = (weight * of_weight).sum(2, keepdim=True)
            self._gradients[2][:] = (weight * of_bias).sum(2, keepdim=True)

    @torch.no_grad()
    def layer(self, i: int) -> Layer:
        """The probe of the i-th learning rate as it is now."""
        combined = self._combined()[i]
        weight, bias = combined[:-1].clone(), combined[-1].clone()
        if self._head.normalised:
            weight *= torch.rsqrt(self._variance + _BATCH_NORM_EPSILON)[:, None]
            bias -= self._mean @ weight
        return Layer(weight, bias, self._head)


@dataclass(frozen=True)
class _Part:
    """Some rows of a batch."""

    head: Head
    rates: int
    inputs: torch.Tensor
    """(n, D + 1)"""
    target: torch.Tensor
    """(n, Q)"""
    known: torch.Tensor
    """(n, Q) bool"""
    grid: Grid | None

    @property
    def labels(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Target and whether it is known, (m, 1, 1, Q'): pixel by pixel where upsampled."""
        columns = 1 if self.grid is not None else self.target.shape[1]
        shape = (-1, 1, 1, columns)
        return self.target.reshape(shape), self.known.reshape(shape)

    def outputs(self, wide: torch.Tensor) -> torch.Tensor:
        """(m, L, C, Q'), as `labels` are."""
        found = self.inputs @ wide
        if self.grid is not None:
            found = self.grid.upsample(found)
        return found.view(-1, self.rates, self.head.classes, 1 if self.grid else self.head.labels)

    def shares(self, wide: torch.Tensor) -> torch.Tensor:
        """The softmax of the outputs; 0 where no label is known."""
        found = self.outputs(wide).softmax(2).clamp_(min=_NEARLY_ZERO)
        return found if bool(self.known.all()) else found.mul_(self.labels[1])

    def add_gradient(self, wide: torch.Tensor, sums: torch.Tensor, dice: "_Dice | None") -> None:
        """Add the gradient of the summed loss to `sums` (D + 1, L O)."""
        target, known = self.labels
        if self.head.task.kind.has_classes:
            slopes = self.shares(wide)
            more = dice.slopes(slopes, self) if dice is not None else None
            chosen = target.clamp(min=0).expand(-1, self.rates, -1, -1)
            slopes.scatter_add_(2, chosen, -known.to(slopes).expand_as(chosen))
            slopes = slopes if more is None else slopes.add_(more)
        else:
            slopes = self.outputs(wide).sub_(target.nan_to_num()).mul_(known * 2.0)
        flat = slopes.view(len(slopes), -1)
        if self.grid is not None:
            flat = self.grid.gradient(flat.view(*self.target.shape, -1))
        sums.addmm_(self.inputs.T, flat)


@dataclass(frozen=True)
class _Dice:
    """The weighted dice loss of a batch: one minus the weighted sum over classes of the dice
    coefficients (2 I + 1) / (P + N + 1), where I is the probability given to true pixels, P that
    given to all and N the number of true ones; a class weighs as 1 / N, as in the existing code.
    """

    overlap: torch.Tensor
    """I, (L, C)"""
    size: torch.Tensor
    """P + N, (L, C)"""
    weight: torch.Tensor
    """(C,)"""
    labels: torch.Tensor
    """How many there are: gradients are divided by it."""

    @classmethod
    def of(cls, parts: Sequence[_Part], wide: torch.Tensor) -> "_Dice":
        """Of a batch whose layers are `wide`."""
        shape = parts[0].rates, parts[0].head.classes
        overlap, given = wide.new_zeros(shape), wide.new_zeros(shape)
        there = wide.new_zeros(shape[1])
        for part in parts:
            shares, true = part.shares(wide), _true(part)
            overlap += (shares * true).sum((0, 3))
            given += shares.sum((0, 3))
            there += true.sum((0, 1, 3))
        total = there.sum()
        weight = torch.where(there > 0, total / (len(there) * there), torch.ones_like(there))
        return cls(overlap, given + there, weight / (weight.sum() + 1e-8), total)

    def slopes(self, shares: torch.Tensor, part: _Part) -> torch.Tensor:
        """The gradient of the loss, times the number of labels, for outputs (m, L, C, Q')."""
        size = self.size + 1
        of_true = (-2 * self.weight * self.labels / size)[..., None]
        of_all = (self.weight * self.labels * (2 * self.overlap + 1) / size.square())[..., None]
        of_share = (of_true * _true(part) + of_all) * part.labels[1]
        return shares * (of_share - (shares * of_share).sum(2, keepdim=True))


def _true(part: _Part) -> torch.Tensor:
    """(m, 1, C, Q'): 1 where a class is labelled."""
    target, known = part.labels
    shape = (*target.shape[:2], part.head.classes, target.shape[3])
    true = torch.zeros(shape, device=target.device)
    return true.scatter_(2, target.clamp(min=0), known.to(true))


def scheduled(learning_rate: float, epoch: float, epochs: int) -> float:
    """The learning rate at a fraction of an epoch: linear warm-up, then half a cosine."""
    warmup = int(epochs * WARMUP)
    if epoch < warmup:
        return learning_rate * epoch / warmup
    progress = (epoch - warmup) / (epochs - warmup)
    falling = 0.5 * (1 + math.cos(math.pi * progress))
    return MIN_LEARNING_RATE + (learning_rate - MIN_LEARNING_RATE) * falling
