"""Rows of an embedded split as tensors, and some of their windows.

What is learned from them is for knn.py and trainer.py; how they are made for embed.py.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from eval_ingest.core.task import IGNORE_LABEL
from eval_ingest.sweep.embed import Embedded
from eval_ingest.sweep.upsampling import Grid, grids


@dataclass(frozen=True)
class Rows:
    """Some windows of an embedded split, as tensors."""

    features: torch.Tensor
    """float32 (R, D)"""
    target: torch.Tensor
    """(R, Q): long with -1, or float32 with NaN."""
    count: torch.Tensor
    """(N,) long: rows of a sample; they follow one another."""
    window: torch.Tensor
    """(N,) long: equal where samples are of one window."""
    grid: torch.Tensor | None = None
    """(N, 2) long: rows and columns of a sample's patches; None: it has no longer all of them."""

    @classmethod
    def of(cls, split: Embedded, samples: NDArray[np.int64] | None = None) -> "Rows":
        """The rows of these samples, or of all."""
        places = torch.from_numpy(split.places)
        each = np.arange(len(split)) if split.windows is None else split.windows
        numbers = torch.from_numpy(each)
        if samples is not None:
            places = places[torch.from_numpy(samples)]
            numbers = numbers[torch.from_numpy(samples)]
        features, target = torch.from_numpy(split.features), torch.from_numpy(split.target)
        rows = _expand(places[:, 0], places[:, 1])
        if len(rows) != len(features) or not bool((rows == torch.arange(len(rows))).all()):
            features, target = features[rows], target[rows]
        target = target if target.is_floating_point() else target.long()
        return cls(features, target, places[:, 1], numbers, places[:, 2:])

    def __len__(self) -> int:
        return len(self.count)

    @cached_property
    def first(self) -> torch.Tensor:
        """(N,) long: the first row of a sample."""
        return self.count.cumsum(0) - self.count

    @property
    def samples(self) -> NDArray[np.int64]:
        """(R,) the sample of each row."""
        return np.repeat(np.arange(len(self)), self.count.numpy())

    @property
    def windows(self) -> NDArray[np.int64]:
        """(R,) the number of each row's window, counted from 0."""
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
        return Rows(self.features[there], self.target[there], count[kept], self.window[kept])

    def select(self, windows: torch.Tensor) -> "Rows":
        """These samples, in this order."""
        count = self.count[windows]
        more = self.window[windows], None if self.grid is None else self.grid[windows]
        alike = len(self) * int(self.count[0]) == len(self.features) if len(self) else False
        if alike and bool((self.count == self.count[0]).all()):
            features, target = (
                _taken(values.view(len(self), -1), windows).view(-1, values.shape[1])
                for values in (self.features, self.target)
            )
            return Rows(features, target, count, *more)
        rows = _expand(self.first[windows], count).to(self.features.device)
        return Rows(self.features[rows], self.target[rows], count, *more)

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
