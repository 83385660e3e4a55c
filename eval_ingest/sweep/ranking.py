"""How well scores rank: the areas under the ROC and the precision-recall curve, per class.

One-vs-rest, the mean over classes that have both labels of their own and others, as the existing
OlmoEarth eval code has them (and scikit-learn's roc_auc_score and average_precision_score). Labels
may be weighted by their window: so a bootstrap sorts but once.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

RANKING = ("auroc", "prauc")

MAX_RANKED = 500_000
"""Labels up to which they are computed unasked: each class sorts all of them."""

_WEIGHTS_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Ranked:
    """Scores of labelled windows or pixels."""

    scores: NDArray[np.float32]
    """(M, C)"""
    truth: NDArray[Any]
    """(M,) class ids"""
    window: NDArray[np.int64]
    """(M,) the window of each"""

    def areas(self, times: NDArray[Any] | None = None) -> dict[str, NDArray[np.float64]]:
        """`auroc` and `prauc`, (B,); NaN where no class has both.

        Args:
            times: (B, N) how often a draw has each window; by default once.
        """
        if times is None:
            times = np.ones((1, int(self.window.max(initial=0)) + 1))
        at_once = max(_WEIGHTS_AT_ONCE // max(len(self.truth), 1), 1)
        parts = [
            np.stack([curve.areas(times[k : k + at_once]) for curve in self._curves])
            for k in range(0, len(times), at_once)
        ]
        per_class = np.concatenate(parts, axis=2)
        there = np.isfinite(per_class)
        sums, count = np.where(there, per_class, 0).sum(0), there.sum(0)
        means = np.divide(sums, count, out=np.full_like(sums, np.nan), where=count > 0)
        return dict(zip(RANKING, means, strict=True))

    @cached_property
    def _curves(self) -> "list[_Curve]":
        return [
            _Curve.of(self.scores[:, c], self.truth == c, self.window)
            for c in range(self.scores.shape[1])
        ]


@dataclass(frozen=True)
class _Curve:
    """The labels of one class against all others, highest score first."""

    window: NDArray[np.int64]
    """(M,)"""
    positive: NDArray[np.bool_]
    """(M,)"""
    ends: NDArray[np.int64]
    """The last label of each score that occurs."""

    @classmethod
    def of(
        cls, scores: NDArray[np.float32], positive: NDArray[np.bool_], window: NDArray[np.int64]
    ) -> "_Curve":
        order = np.argsort(-scores, kind="stable")
        falls = np.flatnonzero(np.diff(scores[order]))
        return cls(window[order], positive[order], np.append(falls, len(order) - 1))

    def areas(self, times: NDArray[Any]) -> NDArray[np.float64]:
        """(2, B): under the ROC curve by trapezoids, and average precision by steps of recall."""
        areas = np.full((2, len(times)), np.nan)
        if not self.positive.any() or self.positive.all():
            return areas
        weights = times[:, self.window].astype(np.float64)
        found = np.cumsum(weights, axis=1)[:, self.ends]
        right = np.cumsum(weights * self.positive, axis=1)[:, self.ends]
        wrong = found - right
        positives, negatives = right[:, -1], wrong[:, -1]
        more = np.diff(right, axis=1, prepend=0)
        trapezoids = (np.diff(wrong, axis=1, prepend=0) * (right - more / 2)).sum(1)
        precision = np.divide(right, found, out=np.zeros_like(right), where=found > 0)
        both = (positives > 0) & (negatives > 0)
        np.divide(trapezoids, positives * negatives, out=areas[0], where=both)
        np.divide((more * precision).sum(1), positives, out=areas[1], where=both)
        return areas
