"""Scores, from counts per window: so a bootstrap over windows is one matrix product.

Class tasks keep per window the true positives, false positives and false negatives of each class;
regressions keep count, squared error, absolute error, and the sum and sum of squares of the truth.
Pixels and windows labelled -1 or NaN count nowhere. Metrics and their names are those of the
existing OlmoEarth eval code; areas under curves need every score: see ranking.py.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval_ingest.core.eval_settings import PRIMARY_METRICS, EvalSettings
from eval_ingest.core.task import IGNORE_LABEL, Task, TaskKind
from eval_ingest.errors import SweepError
from eval_ingest.sweep.ranking import RANKING, Ranked

Array = NDArray[Any]

_ERRORS = ("rmse", "mae", "r2")
METRICS = {
    TaskKind.CLASSIFICATION: ("accuracy", "macro_f1", "micro_f1", *RANKING),
    TaskKind.SEGMENTATION: ("accuracy", "macro_acc", "macro_f1", "micro_f1", "miou", *RANKING),
    TaskKind.REGRESSION: _ERRORS,
    TaskKind.SCALAR_REGRESSION: _ERRORS,
}
_OTHER_NAMES = {"overall_acc": "accuracy", "neg_rmse": "rmse"}
_F1_OF_CLASS = "f1_class_"
LOWER_IS_BETTER = frozenset({"rmse", "mae"})

MAX_CONFUSED = 256
"""Classes up to which confusion is counted: it grows with their square, and nobody reads more."""

_RESAMPLES_AT_ONCE = 50
_RANKED_AT_MOST, _FEW_RESAMPLES = 400_000_000, 100
"""Scores that the resamples of an area under a curve rank in all, and resamples however many."""


def primary_metric(task: Task, settings: EvalSettings) -> str:
    """The metric that a dataset is judged by: what its settings say, else that of its kind.

    Raises:
        SweepError: its kind of task doesn't have it.
    """
    name = str(settings.primary_metric or PRIMARY_METRICS[task.kind])
    name = _OTHER_NAMES.get(name, name)
    if name == "class_f1" and task.kind.has_classes:
        c = settings.primary_metric_class
        if c is None or c >= task.num_classes:
            raise SweepError(
                f"eval.primary_metric_class is {c}; classes are 0 to {task.num_classes - 1}"
            )
        return f"{_F1_OF_CLASS}{c}"
    if name not in METRICS[task.kind]:
        known = [*METRICS[task.kind], *(["class_f1"] if task.kind.has_classes else [])]
        raise SweepError(
            f"eval.primary_metric is {name}, which isn't of {task.kind}; there are "
            f"{', '.join(known)}"
        )
    return name


@dataclass(frozen=True)
class Tally:
    """Counts of one prediction, per window."""

    kind: TaskKind
    counts: NDArray[np.float64]
    """(N, 3, C) = true positives, false positives, false negatives; or (N, 5), see above."""
    confusion: NDArray[np.int64] | None = None
    """(C, C): rows are the truth, columns what was predicted; None beyond MAX_CONFUSED."""
    ranked: Ranked | None = None
    """None: areas under curves aren't asked for."""
    metric: str = ""
    """What the task is judged by; empty: what its kind is."""

    @property
    def primary(self) -> float:
        """The score that the task is judged by."""
        return self.scores()[self._primary]

    @property
    def _primary(self) -> str:
        return self.metric or PRIMARY_METRICS[self.kind]

    def scores(self) -> dict[str, float]:
        """Every metric of the task."""
        sums = self.counts.sum(0)
        found = {name: float(value) for name, value in _scores(self.kind, sums).items()}
        if self.ranked is not None:
            found |= {name: float(area[0]) for name, area in self.ranked.areas().items()}
        if self._primary.startswith(_F1_OF_CLASS):
            found[self._primary] = float(_metric(self.kind, sums, self._primary))
        return found

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
            "f1": _f1(tp, fp, fn),
        }
        rows = []
        for c, name in enumerate(names):
            values = {key: number(column[c]) for key, column in columns.items()}
            rows.append({"name": name, **values, "support": int(tp[c] + fn[c])})
        return rows

    def interval(self, resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
        """95% bootstrap interval of the primary score, by drawing windows with replacement.

        NaN where fewer than two windows have a label: one window says nothing of the spread. Areas
        under the curves of very many labels are drawn fewer times.
        """
        n = len(self.counts)
        if np.count_nonzero(self.counts.reshape(n, -1).any(axis=1)) < 2:
            return float("nan"), float("nan")
        if self.ranked is not None and self._primary in RANKING:
            allowed = _RANKED_AT_MOST // max(self.ranked.scores.size, 1)
            resamples = min(resamples, max(allowed, _FEW_RESAMPLES))
        rng, found = np.random.default_rng(seed), []
        for start in range(0, resamples, _RESAMPLES_AT_ONCE):
            size = min(_RESAMPLES_AT_ONCE, resamples - start)
            found.append(self.redrawn(rng.multinomial(n, np.full(n, 1 / n), size=size)))
        values = np.concatenate(found)
        values = values[np.isfinite(values)]
        if not len(values):
            return float("nan"), float("nan")
        low, high = np.percentile(values, [2.5, 97.5])
        return float(low), float(high)

    def redrawn(self, times: Array) -> NDArray[np.float64]:
        """(B,) the primary score of draws that have each window so many times, (B, N)."""
        if self.ranked is not None and self._primary in RANKING:
            return self.ranked.areas(times)[self._primary]
        sums = times @ self.counts.reshape(len(self.counts), -1)
        return np.asarray(
            _metric(self.kind, sums.reshape(len(times), *self.counts.shape[1:]), self._primary)
        )


def tally(
    kind: TaskKind,
    num_classes: int,
    predicted: Array,
    target: Array,
    windows: Array | None = None,
    scores: Array | None = None,
    metric: str = "",
) -> Tally:
    """Count a prediction.

    Args:
        kind: of the task.
        num_classes: of the task.
        predicted: (R, Q) class ids, or numbers.
        target: (R, Q), -1 or NaN where there is no label.
        windows: (R,) the number of each row's window, from 0; None: all are of one, where only
            the scores are wanted.
        scores: (labels that are there, C) float32, of every class; for areas under curves.
        metric: what the task is judged by; empty: what its kind is.

    Raises:
        SweepError: nothing is labelled.
    """
    n = 1 if windows is None else int(windows.max(initial=-1)) + 1
    window = np.zeros(1, np.int64) if windows is None else np.repeat(windows, target.shape[1])
    predicted, target = predicted.reshape(-1), target.reshape(-1)
    valid = target != IGNORE_LABEL if kind.has_classes else np.isfinite(target)
    if not valid.any():
        raise SweepError("no window of the split has a label; it can't be scored")
    if not valid.all():
        predicted, target = predicted[valid], target[valid]
        window = window if windows is None else window[valid]
    if not kind.has_classes:
        return Tally(kind, _errors(predicted, target, window, n), metric=metric)
    target, classes = target.astype(np.int64), num_classes
    right = predicted == target

    def counted(ids: Array, which: Any = ...) -> NDArray[np.int64]:
        place = ids if windows is None else window * classes + ids
        return np.bincount(place[which], minlength=n * classes).reshape(n, classes)

    found = counted(target, right)
    counts = np.stack([found, counted(predicted) - found, counted(target) - found], axis=1)
    ranked = None
    if scores is not None:
        ranked = Ranked(scores, target, np.broadcast_to(window, target.shape))
    confusion = None
    if classes <= MAX_CONFUSED:
        pairs = np.bincount(target * classes + predicted, minlength=classes**2)
        confusion = pairs.reshape(classes, classes)
    return Tally(kind, counts.astype(np.float64), confusion, ranked, metric)


def _errors(predicted: Array, target: Array, window: Array, n: int) -> NDArray[np.float64]:
    error = predicted.astype(np.float64) - target
    # Any shift leaves R2 as it is; this one keeps the sum of squares from cancelling.
    centred = target - target.mean(dtype=np.float64)
    columns = (np.ones_like(error), error**2, abs(error), centred, centred**2)
    if n == 1:
        return np.array([[column.sum() for column in columns]])
    return np.stack([np.bincount(window, column, minlength=n) for column in columns], axis=1)


def _scores(kind: TaskKind, sums: Array) -> dict[str, Array]:
    """Metrics from sums over windows (..., 3, C) or (..., 5)."""
    if kind.has_classes:
        tp, fp, fn = sums[..., 0, :], sums[..., 1, :], sums[..., 2, :]
        f1 = _f1(tp, fp, fn)
        found = {
            "accuracy": _ratio(tp.sum(-1), (tp + fn).sum(-1)),
            "macro_f1": _mean(f1),
            "micro_f1": _f1(tp.sum(-1), fp.sum(-1), fn.sum(-1)),
        }
        if kind is TaskKind.SEGMENTATION:
            found["miou"] = _mean(_ratio(tp, tp + fp + fn))
            found["macro_acc"] = _mean(_ratio(tp, tp + fn))
            # Of pixels, over the classes that are labelled; of windows, also those predicted.
            found["macro_f1"] = _mean(np.where(tp + fn > 0, f1, np.nan))
        return found
    n, squared, absolute, total, squares = np.moveaxis(sums, -1, 0)
    spread = squares - _ratio(total**2, n)
    return {
        "rmse": np.sqrt(_ratio(squared, n)),
        "mae": _ratio(absolute, n),
        "r2": 1 - _ratio(squared, np.where(spread > 1e-12 * squares, spread, 0)),
    }


def _metric(kind: TaskKind, sums: Array, name: str) -> Array:
    """One metric of counts, or the F1 of one class."""
    if name.startswith(_F1_OF_CLASS):
        of_class = sums[..., int(name.removeprefix(_F1_OF_CLASS))]
        return _f1(*np.moveaxis(of_class, -1, 0))
    return _scores(kind, sums)[name]


def _f1(tp: Array, fp: Array, fn: Array) -> Array:
    return _ratio(2 * tp, 2 * tp + fp + fn)


def _ratio(part: Array, whole: Array) -> Array:
    """part / whole; NaN where whole is 0."""
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    return np.divide(part, whole, out=np.full_like(whole, np.nan), where=whole > 0)


def _mean(values: Array) -> Array:
    """Mean over the classes that have a value."""
    there = np.isfinite(values)
    return _ratio(np.where(there, values, 0).sum(-1), there.sum(-1))


def number(value: float) -> float | None:
    """A score for JSON, which has no NaN."""
    return float(value) if np.isfinite(value) else None


def better(metric: str, score: float, than: float) -> bool:
    """True if a score beats another; NaN beats nothing."""
    if not (np.isfinite(score) and np.isfinite(than)):
        return bool(np.isfinite(score))
    return score < than if metric in LOWER_IS_BETTER else score > than
