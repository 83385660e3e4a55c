"""Scores, from counts per window: so a bootstrap over windows is one matrix product.

Class tasks keep per window the true positives, false positives and false negatives of each class;
regressions keep count, squared error, absolute error, and the sum and sum of squares of the truth.
Pixels and windows labelled -1 or NaN count nowhere.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval_ingest.core.task import IGNORE_LABEL, TaskKind
from eval_ingest.errors import SweepError

Array = NDArray[Any]

PRIMARY = {
    TaskKind.CLASSIFICATION: "accuracy",
    TaskKind.SEGMENTATION: "miou",
    TaskKind.REGRESSION: "rmse",
    TaskKind.SCALAR_REGRESSION: "rmse",
}
LOWER_IS_BETTER = frozenset({"rmse", "mae"})

MAX_CONFUSED = 256
"""Classes up to which confusion is counted: it grows with their square, and nobody reads more."""

_RESAMPLES_AT_ONCE = 50


@dataclass(frozen=True)
class Tally:
    """Counts of one prediction, per window."""

    kind: TaskKind
    counts: NDArray[np.float64]
    """(N, 3, C) = true positives, false positives, false negatives; or (N, 5), see above."""
    confusion: NDArray[np.int64] | None = None
    """(C, C): rows are the truth, columns what was predicted; None beyond MAX_CONFUSED."""

    @property
    def primary(self) -> float:
        """The score that the task is judged by."""
        return self.scores()[PRIMARY[self.kind]]

    def scores(self) -> dict[str, float]:
        """Every metric of the task."""
        return {
            name: float(value) for name, value in _scores(self.kind, self.counts.sum(0)).items()
        }

    def per_class(self, names: list[str]) -> list[dict[str, Any]]:
        """IoU, accuracy (recall), F1 and labelled pixels or windows of each class.

        Values are None where a class is neither labelled nor predicted.
        """
        if not self.kind.has_classes:
            return []
        tp, fp, fn = self.counts.sum(0)
        columns = {
            "iou": _ratio(tp, tp + fp + fn),
            "accuracy": _ratio(tp, tp + fn),
            "f1": _ratio(2 * tp, 2 * tp + fp + fn),
        }
        rows = []
        for c, name in enumerate(names):
            values = {key: _or_none(column[c]) for key, column in columns.items()}
            rows.append({"name": name, **values, "support": int(tp[c] + fn[c])})
        return rows

    def interval(self, resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
        """95% bootstrap interval of the primary score, by drawing windows with replacement.

        NaN where fewer than two windows have a label: one window says nothing of the spread.
        """
        n = len(self.counts)
        if np.count_nonzero(self.counts.reshape(n, -1).any(axis=1)) < 2:
            return float("nan"), float("nan")
        rng = np.random.default_rng(seed)
        flat = self.counts.reshape(n, -1)
        found = []
        for start in range(0, resamples, _RESAMPLES_AT_ONCE):
            size = min(_RESAMPLES_AT_ONCE, resamples - start)
            times = rng.multinomial(n, np.full(n, 1 / n), size=size)
            sums = (times @ flat).reshape(size, *self.counts.shape[1:])
            found.append(_scores(self.kind, sums)[PRIMARY[self.kind]])
        values = np.concatenate(found)
        values = values[np.isfinite(values)]
        if not len(values):
            return float("nan"), float("nan")
        low, high = np.percentile(values, [2.5, 97.5])
        return float(low), float(high)


def tally(
    kind: TaskKind, num_classes: int, predicted: Array, target: Array, windows: Array, n: int
) -> Tally:
    """Count a prediction.

    Args:
        kind: of the task.
        num_classes: of the task.
        predicted: (R, Q) class ids, or numbers.
        target: (R, Q), -1 or NaN where there is no label.
        windows: (R,) the window of each row.
        n: windows.

    Raises:
        SweepError: nothing is labelled.
    """
    window = np.repeat(windows, target.shape[1])
    predicted, target = predicted.reshape(-1), target.reshape(-1)
    valid = target != IGNORE_LABEL if kind.has_classes else np.isfinite(target)
    if not valid.any():
        raise SweepError("no window of the split has a label; it can't be scored")
    predicted, target, window = predicted[valid], target[valid], window[valid]
    if not kind.has_classes:
        return Tally(kind, _errors(predicted, target, window, n))
    right = predicted == target
    classes = num_classes
    counts = np.stack(
        [
            np.bincount(where * classes + ids, minlength=n * classes).reshape(n, classes)
            for where, ids in (
                (window[right], target[right].astype(np.int64)),
                (window[~right], predicted[~right].astype(np.int64)),
                (window[~right], target[~right].astype(np.int64)),
            )
        ],
        axis=1,
    )
    if classes > MAX_CONFUSED:
        return Tally(kind, counts.astype(np.float64))
    pairs = target.astype(np.int64) * classes + predicted
    confusion = np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
    return Tally(kind, counts.astype(np.float64), confusion)


def score(kind: TaskKind, num_classes: int, predicted: Array, target: Array) -> float:
    """The primary score alone, without counts per window; NaN if nothing is labelled."""
    predicted, target = predicted.reshape(-1), target.reshape(-1)
    valid = target != IGNORE_LABEL if kind.has_classes else np.isfinite(target)
    predicted, target = predicted[valid], target[valid]
    if not len(target):
        return float("nan")
    if kind.has_classes:
        tp, found, there = (
            np.bincount(ids, minlength=num_classes)
            for ids in (target[predicted == target], predicted, target)
        )
        sums: Array = np.stack([tp, found - tp, there - tp])
    else:
        sums = _errors(predicted, target, np.zeros(len(target), np.int64), 1)[0]
    return float(_scores(kind, sums)[PRIMARY[kind]])


def _errors(predicted: Array, target: Array, window: Array, n: int) -> NDArray[np.float64]:
    error = predicted.astype(np.float64) - target
    # Any shift leaves R2 as it is; this one keeps the sum of squares from cancelling.
    centred = target - target.mean(dtype=np.float64)
    columns = (np.ones_like(error), error**2, abs(error), centred, centred**2)
    return np.stack([np.bincount(window, column, minlength=n) for column in columns], axis=1)


def _scores(kind: TaskKind, sums: Array) -> dict[str, Array]:
    """Metrics from sums over windows (..., 3, C) or (..., 5)."""
    if kind.has_classes:
        tp, fp, fn = sums[..., 0, :], sums[..., 1, :], sums[..., 2, :]
        found = {
            "accuracy": _ratio(tp.sum(-1), (tp + fn).sum(-1)),
            "macro_f1": _mean(_ratio(2 * tp, 2 * tp + fp + fn)),
        }
        if kind is TaskKind.SEGMENTATION:
            found["miou"] = _mean(_ratio(tp, tp + fp + fn))
        return found
    n, squared, absolute, total, squares = np.moveaxis(sums, -1, 0)
    spread = squares - _ratio(total**2, n)
    return {
        "rmse": np.sqrt(_ratio(squared, n)),
        "mae": _ratio(absolute, n),
        "r2": 1 - _ratio(squared, np.where(spread > 1e-12 * squares, spread, 0)),
    }


def _ratio(part: Array, whole: Array) -> Array:
    """part / whole; NaN where whole is 0."""
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    return np.divide(part, whole, out=np.full_like(whole, np.nan), where=whole > 0)


def _mean(values: Array) -> Array:
    """Mean over the classes that occur, in truth or prediction."""
    there = np.isfinite(values)
    return _ratio(np.where(there, values, 0).sum(-1), there.sum(-1))


def _or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def better(kind: TaskKind, score: float, than: float) -> bool:
    """True if a primary score beats another; NaN beats nothing."""
    if not np.isfinite(score):
        return False
    if not np.isfinite(than):
        return True
    return score < than if PRIMARY[kind] in LOWER_IS_BETTER else score > than
