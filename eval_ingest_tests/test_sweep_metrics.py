"""Scores against scikit-learn, and bootstrap intervals against a loop."""

import numpy as np
import pytest
from sklearn import metrics as oracle

from eval_ingest.core.eval_settings import EvalSettings
from eval_ingest.core.task import Task, TaskKind
from eval_ingest.errors import SweepError
from eval_ingest.sweep.metrics import better, primary_metric, tally

CLASSES = 5


def made_up(kind: TaskKind, n: int = 30, seed: int = 0) -> tuple[np.ndarray, ...]:
    """predicted, target and window of rows: three rows a window of four labels."""
    rng = np.random.default_rng(seed)
    rows, labels = (3 * n, 4) if kind.per_pixel else (n, 1)
    windows = np.repeat(np.arange(n), rows // n)
    if kind.has_classes:
        target = rng.integers(0, CLASSES - 1, (rows, labels))  # the last class never occurs
        predicted = np.where(rng.random((rows, labels)) < 0.6, target, rng.integers(0, 3, labels))
        target[rng.random((rows, labels)) < 0.2] = -1
        return predicted, target.astype(np.int16), windows
    target = rng.normal(1000, 3, (rows, labels)).astype(np.float32)
    predicted = target + rng.normal(0.3, 1, (rows, labels)).astype(np.float32)
    target[rng.random((rows, labels)) < 0.2] = np.nan
    return predicted, target, windows


@pytest.mark.parametrize("kind", [TaskKind.SEGMENTATION, TaskKind.CLASSIFICATION])
def test_class_scores_equal_scikit_learn(kind: TaskKind) -> None:
    predicted, target, windows = made_up(kind)
    found = tally(kind, CLASSES, predicted, target, windows)
    valid = target.reshape(-1) != -1
    y, p = target.reshape(-1)[valid], predicted.reshape(-1)[valid]
    scores = found.scores()
    assert scores["accuracy"] == pytest.approx(oracle.accuracy_score(y, p))
    # Of windows, classes that are predicted alone count as none; of pixels, they don't count.
    labels = None if kind is TaskKind.CLASSIFICATION else np.unique(y)
    assert scores["macro_f1"] == pytest.approx(
        oracle.f1_score(y, p, labels=labels, average="macro")
    )
    assert scores["micro_f1"] == pytest.approx(oracle.f1_score(y, p, average="micro"))
    if kind is TaskKind.SEGMENTATION:
        assert scores["macro_acc"] == pytest.approx(oracle.balanced_accuracy_score(y, p))
        assert scores["miou"] == pytest.approx(oracle.jaccard_score(y, p, average="macro"))
    expected = oracle.confusion_matrix(y, p, labels=range(CLASSES))
    assert (found.confusion == expected).all()
    assert found.primary == pytest.approx(tally(kind, CLASSES, predicted, target).primary)


def test_per_class_values_equal_scikit_learn_and_are_none_where_a_class_never_occurs() -> None:
    predicted, target, windows = made_up(TaskKind.SEGMENTATION)
    rows = tally(TaskKind.SEGMENTATION, CLASSES, predicted, target, windows).per_class(
        list("abcde")
    )
    valid = target != -1
    y, p = target[valid], predicted[valid]
    iou = oracle.jaccard_score(y, p, average=None)
    recall = oracle.recall_score(y, p, average=None)
    for c in range(CLASSES - 1):
        assert rows[c]["iou"] == pytest.approx(iou[c])
        assert rows[c]["accuracy"] == pytest.approx(recall[c])
        assert rows[c]["support"] == (y == c).sum()
    assert rows[4] == {"name": "e", "iou": None, "accuracy": None, "f1": None, "support": 0}


def test_of_very_many_classes_no_confusion_is_counted() -> None:
    """It would take a table of their square, 800 MB for 10,000 of them."""
    predicted, target, windows = made_up(TaskKind.SEGMENTATION)
    few, many = (
        tally(TaskKind.SEGMENTATION, n, predicted, target, windows) for n in (CLASSES, 10_000)
    )
    assert many.confusion is None
    assert many.scores() == pytest.approx(few.scores())
    assert tally(TaskKind.SEGMENTATION, 10_000, predicted, target).primary == pytest.approx(
        many.primary
    )


@pytest.mark.parametrize("kind", [TaskKind.REGRESSION, TaskKind.SCALAR_REGRESSION])
def test_regression_scores_equal_scikit_learn(kind: TaskKind) -> None:
    predicted, target, windows = made_up(kind)
    found = tally(kind, 1, predicted, target, windows)
    valid = np.isfinite(target)
    y, p = target[valid].astype(np.float64), predicted[valid]
    scores = found.scores()
    assert scores["rmse"] == pytest.approx(oracle.root_mean_squared_error(y, p), rel=1e-6)
    assert scores["mae"] == pytest.approx(oracle.mean_absolute_error(y, p), rel=1e-6)
    assert scores["r2"] == pytest.approx(oracle.r2_score(y, p), rel=1e-5)
    assert found.per_class([]) == [] and found.confusion is None
    assert found.primary == pytest.approx(tally(kind, 1, predicted, target).primary)


@pytest.mark.parametrize("kind", list(TaskKind))
def test_the_interval_is_that_of_a_loop_over_resampled_windows(kind: TaskKind) -> None:
    predicted, target, windows = made_up(kind)
    low, high = tally(kind, CLASSES, predicted, target, windows).interval(2000)
    rng = np.random.default_rng(1)
    scores = []
    for _ in range(2000):
        rows = np.concatenate([np.flatnonzero(windows == w) for w in rng.integers(0, 30, 30)])
        scores.append(tally(kind, CLASSES, predicted[rows], target[rows]).primary)
    expected_low, expected_high = np.percentile(scores, [2.5, 97.5])
    width = expected_high - expected_low
    assert low == pytest.approx(expected_low, abs=0.1 * width)
    assert high == pytest.approx(expected_high, abs=0.1 * width)


def test_one_window_has_no_interval() -> None:
    target = np.array([[0, 1, -1]])
    found = tally(TaskKind.SEGMENTATION, 2, target.clip(0), target, np.array([0]))
    assert np.isnan(found.interval()).all()
    assert found.primary == 1


def test_a_split_without_labels_cannot_be_scored() -> None:
    target = np.full((3, 1), -1)
    with pytest.raises(SweepError, match="no window of the split has a label"):
        tally(TaskKind.CLASSIFICATION, 2, target, target, np.arange(3))


def test_a_constant_truth_has_no_r2() -> None:
    target = np.full((4, 1), 7, np.float32)
    found = tally(TaskKind.SCALAR_REGRESSION, 1, target + 1, target, np.arange(4))
    assert np.isnan(found.scores()["r2"]) and found.scores()["rmse"] == 1


def test_better_knows_which_metrics_are_errors() -> None:
    assert better("miou", 0.5, 0.4)
    assert not better("rmse", 0.5, 0.4)
    assert better("rmse", 0.5, float("nan"))
    assert not better("rmse", float("nan"), 0.4)


@pytest.mark.parametrize("kind", [TaskKind.SEGMENTATION, TaskKind.CLASSIFICATION])
def test_areas_under_curves_equal_scikit_learn(kind: TaskKind) -> None:
    predicted, target, windows = made_up(kind)
    y = target[target != -1]
    scores = np.random.default_rng(3).random((len(y), CLASSES)).round(1).astype(np.float32)  # ties
    found = tally(kind, CLASSES, predicted, target, windows, scores, "auroc")
    truth = [y == c for c in range(CLASSES - 1)]  # the last class never occurs
    for name, area in (("auroc", oracle.roc_auc_score), ("prauc", oracle.average_precision_score)):
        expected = np.mean([area(truth[c], scores[:, c]) for c in range(CLASSES - 1)])
        assert found.scores()[name] == pytest.approx(expected, abs=1e-12)
        alone = tally(kind, CLASSES, predicted, target, None, scores, name).primary
        assert alone == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("metric", ["auroc", "prauc", "f1_class_1", "micro_f1"])
def test_the_interval_of_a_chosen_metric_is_that_of_a_loop(metric: str) -> None:
    kind = TaskKind.CLASSIFICATION
    predicted, target, windows = made_up(kind, 60)
    noise = np.random.default_rng(3).random((60, CLASSES))
    valid = target[:, 0] != -1
    scores = (np.eye(CLASSES)[predicted[:, 0]] + noise)[valid].astype(np.float32)
    found = tally(kind, CLASSES, predicted, target, windows, scores, metric)
    low, high = found.interval(1000)
    rng, expected = np.random.default_rng(1), []
    place = np.cumsum(valid) - 1
    for _ in range(1000):
        drawn = rng.integers(0, 60, 60)
        kept = scores[place[drawn[valid[drawn]]]]
        expected.append(
            tally(kind, CLASSES, predicted[drawn], target[drawn], None, kept, metric).primary
        )
    ends = np.nanpercentile(expected, [2.5, 97.5])
    assert low < found.primary < high
    assert np.abs(np.array([low, high]) - ends).max() < 0.15 * (ends[1] - ends[0])


@pytest.mark.parametrize(
    ("kind", "given", "expected"),
    [
        (TaskKind.SEGMENTATION, {}, "miou"),
        (TaskKind.SEGMENTATION, {"primary_metric": "overall_acc"}, "accuracy"),
        (TaskKind.REGRESSION, {"primary_metric": "neg_rmse"}, "rmse"),
        (TaskKind.SCALAR_REGRESSION, {"primary_metric": "r2"}, "r2"),
        (
            TaskKind.CLASSIFICATION,
            {"primary_metric": "class_f1", "primary_metric_class": 2},
            "f1_class_2",
        ),
    ],
)
def test_the_primary_metric_is_what_the_settings_say(
    kind: TaskKind, given: dict[str, str], expected: str
) -> None:
    task = Task(kind=kind, num_classes=3 if kind.has_classes else 1)
    assert primary_metric(task, EvalSettings.model_validate(given)) == expected


def test_a_metric_of_another_kind_of_task_is_refused() -> None:
    task = Task(kind=TaskKind.CLASSIFICATION, num_classes=3)
    with pytest.raises(SweepError, match="miou, which isn't of classification; there are accuracy"):
        primary_metric(task, EvalSettings(primary_metric="miou"))
    with pytest.raises(SweepError, match="class is 3; classes are 0 to 2"):
        primary_metric(task, EvalSettings(primary_metric="class_f1", primary_metric_class=3))
