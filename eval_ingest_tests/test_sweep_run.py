"""Whole sweeps: every task kind, signal and chance, resuming, fractions, results, the command."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from eval_ingest import EvalDataset, cli, evaluate
from eval_ingest.errors import IntegrityError, SweepError, UnknownDatasetError
from eval_ingest.settings import Settings
from eval_ingest.store.seal import sealed_json
from eval_ingest.sweep import probes
from eval_ingest.sweep import run as run_module
from eval_ingest.sweep import splits as splits_module
from eval_ingest.sweep.plots import draw
from eval_ingest.sweep.results import (
    ResultTable,
    Row,
    board_lines,
    latest,
    leaderboards,
    read_rows,
    write_row,
)
from eval_ingest.sweep.run import run_sweep
from eval_ingest.sweep.suite import Suite
from eval_ingest_tests.support.fake_evals import write_fake

Ingested = Callable[[str], Path]
Sweep = Callable[..., ResultTable]

KINDS = ("segmentation", "classification", "regression", "scalar_regression")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An eval root with a dataset of each kind, and one of each without a signal."""
    root = tmp_path_factory.mktemp("fake_evals")
    for kind in KINDS:
        write_fake(root, kind, kind, counts=(80, 30, 60))
        write_fake(root, f"shuffled_{kind}", kind, counts=(80, 30, 60), shuffled=True)
    return root


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def sweep(root: Path, cache: Path, tmp_path: Path) -> Sweep:
    def call(*datasets: str, root: Path = root, **more: Any) -> ResultTable:
        hooks = {key: more.pop(key) for key in ("tell", "progress") if key in more}
        more = {"encoders": ("pixels",), "out": tmp_path / "out", **more}
        out = more.pop("out")
        suite = Suite(datasets=datasets or ("all",), **more)
        return run_sweep(suite, out, Settings(cache=str(cache)), root=root, device="cpu", **hooks)

    return call


# ---------------------------------------------------------------------------------- settings


def test_a_datasets_settings_choose_metric_probe_and_patch_size(
    sweep: Sweep, tmp_path: Path
) -> None:
    evals, counts = tmp_path / "evals", (24, 10, 12)
    classes = {"primary_metric": "class_f1", "primary_metric_class": 1, "probe": "linear"}
    write_fake(evals, "classes", "classification", counts=counts, settings=classes)
    pixels = {"primary_metric": "overall_acc", "probe_type": "interpolate_linear", "patch_size": 2}
    write_fake(evals, "pixels", "segmentation", counts=counts, settings=pixels)
    write_fake(evals, "plain", "segmentation", counts=counts)
    rows = {row.dataset: row for row in sweep(root=evals).rows}
    assert (rows["classes"].metric, rows["classes"].probe) == ("f1_class_1", "linear")
    assert rows["classes"].test_score == rows["classes"].per_class[1].f1
    assert (rows["pixels"].metric, rows["pixels"].patch_size) == ("accuracy", 2)
    assert rows["pixels"].test_score == rows["pixels"].metrics["accuracy"]
    assert (rows["plain"].metric, rows["plain"].patch_size) == ("miou", 4)
    within = evaluate("pixels", ["pixels", "classes"], root=evals, split="test", device="cpu")
    for row in within:
        assert row.metrics == rows[row.dataset].metrics and row.metric == rows[row.dataset].metric


def test_a_dataset_without_settings_is_scored_by_those_of_the_catalog(
    sweep: Sweep, tmp_path: Path
) -> None:
    name, counts = "small_sentinel2_vessel_type", (24, 10, 12)
    write_fake(tmp_path / "none", name, "classification", counts=counts)
    write_fake(tmp_path / "own", name, "classification", counts=counts, settings={"epochs": 1})
    assert sweep(root=tmp_path / "none").rows[0].probe == "linear"
    assert sweep(root=tmp_path / "own").rows[0].probe == "knn"


def test_the_caller_wins_over_a_datasets_settings(sweep: Sweep, tmp_path: Path) -> None:
    given = {"probe": "linear", "patch_size": 2}
    write_fake(tmp_path / "evals", "one", "classification", settings=given)
    row = sweep(root=tmp_path / "evals", probe="knn", patch_size=8).rows[0]
    assert (row.probe, row.patch_size, row.notes) == ("knn", 8, [])


def test_other_settings_make_other_rows(sweep: Sweep, tmp_path: Path) -> None:
    for metric in ("miou", "macro_f1"):
        write_fake(tmp_path / metric, "one", "segmentation", settings={"primary_metric": metric})
        for computed in (1, 0):
            table = sweep(root=tmp_path / metric)
            assert (table.rows[0].metric, table.computed) == (metric, computed)


# ------------------------------------------------------------------------------------ scores


def test_pixels_find_a_planted_signal_and_are_at_chance_without(sweep: Sweep) -> None:
    rows = {row.dataset: row for row in sweep().rows}
    assert len(rows) == 8
    assert rows["classification"].test_score == 1 and rows["classification"].probe == "knn"
    assert rows["segmentation"].metrics["accuracy"] > 0.95
    for kind in ("regression", "scalar_regression"):
        # Of pixels, the probe is smooth, and these patches have nothing to do with each other.
        assert rows[kind].metrics["r2"] > (0.65 if kind == "regression" else 0.9), kind
        assert rows[f"shuffled_{kind}"].metrics["r2"] < 0.15
    for kind in ("segmentation", "classification"):
        assert rows[f"shuffled_{kind}"].metrics["accuracy"] < 0.45  # chance is a quarter


@pytest.mark.parametrize("kind", KINDS)
def test_a_random_network_finds_the_signal_too(kind: str, sweep: Sweep) -> None:
    said: list[str] = []
    table = sweep(kind, f"shuffled_{kind}", encoders=("olmoearth:nano@random",), tell=said.append)
    real, shuffled = table.rows
    assert any("random initialisation" in text for text in said)
    assert real.weights == "random initialisation (seed 0)"
    if kind in ("segmentation", "classification"):
        assert real.metrics["accuracy"] > 0.6 and shuffled.metrics["accuracy"] < 0.45
    else:
        assert real.metrics["r2"] > 0.5 and shuffled.metrics["r2"] < 0.15


@pytest.mark.parametrize(
    "case",
    ["segmentation", "vector_classification", "per_pixel_regression", "scalar_regression",
     "ragged_segmentation", "class_mapping", "three_modalities"],
)  # fmt: skip
def test_every_kind_of_ingested_dataset_is_scored(
    case: str, sweep: Sweep, ingested: Ingested
) -> None:
    row = sweep(case, root=ingested(case)).rows[0]
    dataset = EvalDataset(case, "test", root=ingested(case))
    assert row.dataset_version == dataset.metadata.fingerprint
    assert row.n_test == len(dataset)
    assert row.bands == {name: list(bands) for name, bands in dataset.bands.items()}
    assert [known.name for known in row.per_class] == dataset.classes
    assert row.test_score is not None


def test_a_row_records_what_decides_over_it(sweep: Sweep) -> None:
    row = sweep("segmentation", seeds=(7,)).rows[0]
    assert (row.n_train, row.n_val, row.n_test, row.seed) == (80, 30, 60, 7)
    assert (row.normalize, row.method, row.patch_size) == ("dataset", "standardize", 4)
    assert (row.metric, row.probe, row.split) == ("miou", "linear", "test")
    assert row.learning_rate is not None and row.val_score is not None
    assert row.ci_low <= row.test_score <= row.ci_high
    assert np.array(row.confusion).sum() == 60 * 64 == sum(c.support for c in row.per_class)
    assert ["side by side" in note for note in row.notes] == [True] * (row.probe == "linear")
    assert row.seconds > 0 and row.device == "cpu"


def test_the_probe_and_the_normalisation_can_be_chosen(sweep: Sweep) -> None:
    row = sweep("classification", probe="linear", normalize="none").rows[0]
    assert (row.probe, row.normalize, row.method) == ("linear", "none", "none")
    assert row.learning_rate is not None and row.test_score > 0.9
    with pytest.raises(SweepError, match="no split 'dev'; there are train, val, test"):
        sweep("classification", split="dev")
    failures = sweep("segmentation", probe="knn").failures
    assert "the knn probe is for classification" in failures[0].message


# --------------------------------------------------------------------------------- fractions


def test_label_fractions_are_those_of_eval_dataset_and_nested(
    sweep: Sweep, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[tuple[float, int], list[int]] = {}
    real = splits_module.Splits.train_windows

    def spied(self: Any, fraction: float, seed: int, most: int | None) -> Any:
        windows = real(self, fraction, seed, most)
        drawn[fraction, seed] = windows.tolist()
        return windows

    monkeypatch.setattr(splits_module.Splits, "train_windows", spied)
    fractions = (0.01, 0.1, 0.5, 1.0)
    rows = sweep("classification", label_fractions=fractions, seeds=(42, 3)).rows
    whole = EvalDataset("classification", "train", root=root)
    for (fraction, seed), windows in drawn.items():
        part = EvalDataset("classification", "train", root=root, label_fraction=fraction, seed=seed)
        assert {whole.window(i) for i in windows} == {part.window(i) for i in range(len(part))}
    assert set(drawn[0.01, 42]) < set(drawn[0.1, 42]) < set(drawn[0.5, 42]) < set(drawn[1, 42])
    assert drawn[0.1, 42] != drawn[0.1, 3]
    order = torch.randperm(80, generator=torch.Generator().manual_seed(42))
    assert drawn[0.1, 42] == order[:8].tolist()  # as the existing eval code draws
    assert [row.n_train for row in rows if row.seed == 42] == [1, 8, 40, 80]


def test_fractions_that_datasets_have_named_can_be_said_by_name(
    sweep: Sweep, tmp_path: Path
) -> None:
    folder = write_fake(tmp_path / "evals", "fake", "classification", counts=(40, 5, 6))
    metadata = json.loads((folder / "metadata.json").read_text())
    metadata["spec"]["label_fractions"] = {"few": 0.05, "some": 0.5}
    (folder / "metadata.json").write_bytes(sealed_json(metadata))
    table = sweep("fake", root=tmp_path / "evals", label_fractions=(1.0, "some", "few", 0.5))
    assert [(row.label_fraction, row.n_train) for row in table.rows] == [
        (0.05, 2), (0.5, 20), (1.0, 40),
    ]  # fmt: skip
    table = sweep("fake", root=tmp_path / "evals", label_fractions=("many",))
    assert "no label fraction 'many'; its spec names few, some" in table.failures[0].message


# ---------------------------------------------------------------------------------- resuming


def test_a_second_sweep_does_only_what_is_missing(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = sweep("segmentation", "classification")
    assert first.computed == 2
    monkeypatch.setattr(run_module, "embed_split", None)  # nothing may be embedded any more
    said: list[str] = []
    again = sweep("segmentation", "classification", tell=said.append)
    assert (again.computed, again.rows) == (0, first.rows)
    assert all("up to date, nothing to do" in text for text in said)
    monkeypatch.undo()
    more = sweep("segmentation", "classification", seeds=(42, 1))
    assert more.computed == 2 and len(more.rows) == 4


def test_a_row_that_was_damaged_is_scored_again(sweep: Sweep, tmp_path: Path) -> None:
    first = sweep("classification", out=tmp_path / "out")
    [path] = (tmp_path / "out" / "rows").glob("*.json")
    path.write_bytes(path.read_bytes().replace(b'"n_train": ', b'"n_train": 1'))
    with pytest.raises(IntegrityError, match="run the sweep again"):
        read_rows(tmp_path / "out")
    again = sweep("classification", out=tmp_path / "out")
    assert again.computed == 1
    assert [r.n_train for r in again.rows] == [r.n_train for r in first.rows]


def test_a_dataset_that_changed_is_scored_again_and_the_old_row_kept(
    sweep: Sweep, tmp_path: Path
) -> None:
    counts = (12, 4, 6)
    for version in ("one", "two"):
        root = tmp_path / version
        write_fake(root, "fake", "classification", counts=counts, version=version)
        assert sweep("fake", root=root).computed == 1
    rows = read_rows(tmp_path / "out")
    assert sorted(row.dataset_version for row in rows) == ["one", "two"]
    (board,) = leaderboards(rows)
    assert board.cells["fake", "pixels"].seeds == 1  # the newer one alone


def _fewer(root: Path, sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep("fake", root=root, max_train_samples=5)


def _by_another_metric(root: Path, sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"primary_metric": "f1"}
    write_fake(root / "f1", "fake", "classification", counts=(12, 4, 6), settings=given)
    sweep("fake", root=root / "f1")


def _by_another_probe(root: Path, sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "VERSION", 999)
    sweep("fake", root=root)
    monkeypatch.undo()


@pytest.mark.parametrize("earlier", [_fewer, _by_another_metric, _by_another_probe])
def test_rows_of_other_settings_are_no_seeds_of_a_score(
    earlier: Any, sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, out = tmp_path / "evals", tmp_path / "out"
    write_fake(root, "fake", "classification", counts=(12, 4, 6))
    earlier(root, sweep, monkeypatch)
    one = sweep("fake", root=root, label_fractions=(0.5, 1.0), seeds=(42, 1)).rows
    boards = leaderboards(read_rows(out))
    assert [board.label_fraction for board in boards] == [1.0, 0.5]
    for board in boards:
        scores = [row.test_score for row in one if row.label_fraction == board.label_fraction]
        cell = board.cells["fake", "pixels"]
        assert (cell.seeds, cell.score) == (2, pytest.approx(np.mean(scores)))
    few = sweep("fake", root=root, max_train_samples=4).rows[0]
    assert latest(read_rows(out)) == [few]  # what pictures and reports show
    again = sweep("fake", root=root, label_fractions=(0.5, 1.0), seeds=(42, 1))
    assert again.computed == 0 and leaderboards(read_rows(out)) == boards  # as asked for last


def test_scores_by_different_metrics_or_of_different_versions_are_not_compared(
    sweep: Sweep, tmp_path: Path
) -> None:
    row = sweep("classification").rows[0]
    others = (
        {"encoder": "worse", "test_score": 0.1},
        {"encoder": "by f1", "metric": "f1", "test_score": 7.0},
        {"encoder": "on another version", "dataset_version": "old", "test_score": 8.0},
        {"encoder": "with few", "n_train": 3, "test_score": 9.0},
    )
    for other in others:
        write_row(tmp_path / "out", row.model_copy(update={"key": other["encoder"], **other}))
    (board,) = leaderboards(read_rows(tmp_path / "out"))
    assert board.best("classification") == ["pixels"]
    lines = board_lines(board, width=200)
    assert sum("*" in line for line in lines[1:]) == 1
    assert [line.split()[1:5] for line in lines[2:6] if line] == [
        ["fake", "accuracy", "80", "60"], ["fake", "f1", "80", "60"],
        ["old", "accuracy", "80", "60"], ["fake", "accuracy", "3", "60"],
    ]  # fmt: skip
    assert draw(read_rows(tmp_path / "out"), tmp_path / "plots")


def test_rows_of_earlier_builds_are_read_and_not_made_again(sweep: Sweep, tmp_path: Path) -> None:
    sweep("classification")
    [path] = (tmp_path / "out" / "rows").glob("*.json")
    old = json.loads(path.read_text())
    assert old.pop("setup") and old.pop("version") == 2
    del old["checksum"]
    path.write_bytes(sealed_json({"version": 1, **old}))
    (board,) = leaderboards(read_rows(tmp_path / "out"))
    assert board.cells["classification", "pixels"].seeds == 1
    assert sweep("classification", seeds=(1,)).computed == 1  # and not for the old one
    (board,) = leaderboards(read_rows(tmp_path / "out"))
    assert board.cells["classification", "pixels"].seeds == 2
    assert sweep("classification", seeds=(42, 1)).computed == 0


KILLED = """
import os, sys, signal
from pathlib import Path
from eval_ingest.settings import Settings
from eval_ingest.sweep.run import run_sweep
from eval_ingest.sweep.suite import Suite

def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)

def embedding(what, done, total):
    if "scalar_regression val" in what:
        die()

root, cache, out, moment = sys.argv[1:]
suite = Suite(encoders=["pixels"], datasets=["classification", "scalar_regression"])
hooks = {"tell": die} if moment == "after a score" else {"progress": embedding}
run_sweep(suite, Path(out), Settings(cache=cache), root=root, device="cpu", **hooks)
"""


@pytest.mark.parametrize("moment", ["after a score", "while embedding"])
def test_a_killed_sweep_goes_on_where_it_was(moment: str, root: Path, tmp_path: Path) -> None:
    out, cache = tmp_path / "out", tmp_path / "cache"
    found = subprocess.run(
        [sys.executable, "-c", KILLED, str(root), str(cache), str(out), moment],
        capture_output=True,
        text=True,
    )
    assert found.returncode == -signal.SIGKILL, found.stderr
    before = {path: path.stat().st_mtime_ns for path in (out / "rows").glob("*.json")}
    assert len(before) == 1
    embedded: list[str] = []
    table = run_sweep(
        Suite(encoders=("pixels",), datasets=("classification", "scalar_regression")),
        out,
        Settings(cache=str(cache)),
        root=root,
        device="cpu",
        progress=lambda what, done, total: embedded.append(what),
    )
    assert table.computed == 1 and len(table.rows) == 2
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    splits = {what.split()[-1] for what in embedded if what.startswith("pixels on")}
    if moment == "while embedding":  # train was done already
        assert splits == {"val", "test"}
    undisturbed = run_sweep(
        Suite(encoders=("pixels",), datasets=("scalar_regression",)),
        tmp_path / "other",
        Settings(cache=str(tmp_path / "other cache")),
        root=root,
        device="cpu",
    )
    assert undisturbed.rows[0].test_score == table.rows[1].test_score


# ----------------------------------------------------------------------------- what is unusual


def test_without_val_some_train_windows_are_held_out_and_that_is_said(
    sweep: Sweep, tmp_path: Path
) -> None:
    write_fake(tmp_path / "evals", "noval", "segmentation", counts=(40, 0, 10))
    said: list[str] = []
    table = sweep(root=tmp_path / "evals", tell=said.append)
    row = table.rows[0]
    assert (row.n_train, row.n_val) == (32, 8)
    assert row.notes[0] == "no val split: chosen on 8 train windows held out"
    assert any("no val split" in text for text in said)
    row = sweep(root=tmp_path / "evals", label_fractions=(0.05,)).rows[0]
    assert (row.n_train, row.n_val) == (2, 2) and "chosen on train" in row.notes[0]


def test_scoring_val_says_that_the_probe_was_chosen_on_it(sweep: Sweep) -> None:
    row = sweep("segmentation", split="val").rows[0]
    assert row.n_test == 30 and row.test_score == row.val_score
    assert "chosen on" in row.notes[0]


def test_a_failure_leaves_the_other_datasets_alone(sweep: Sweep, tmp_path: Path) -> None:
    root = tmp_path / "evals"
    write_fake(root, "good", "classification", counts=(12, 4, 6))
    write_fake(root, "notest", "classification", counts=(12, 4, 0))
    write_fake(root, "odd", "segmentation", counts=(4, 1, 1), size=12)
    table = sweep(root=root, patch_size=8)
    assert [row.dataset for row in table.rows] == ["good"]
    messages = {failure.dataset: failure.message for failure in table.failures}
    assert messages.keys() == {"notest", "odd"}
    assert messages["notest"] == "notest: the test split has no windows; say --split val"
    assert "say --patch-size 1 or 2 or 3 or 4 or 6 or 12" in messages["odd"]


def test_one_of_several_encoders_that_cannot_be_loaded_does_not_stop_the_others(
    sweep: Sweep, tmp_path: Path
) -> None:
    weights = tmp_path / "weights.pth"
    weights.write_text("none")
    spec, told = f"olmoearth:nano@{weights}", list[str]()
    table = sweep("segmentation", encoders=(spec, "pixels"), tell=told.append)
    assert [row.encoder for row in table.rows] == ["pixels"]
    assert [(f.encoder, f.dataset) for f in table.failures] == [(spec, "segmentation")]
    assert "can't be loaded" in told[0] and "; 80 train windows (100%)" in told[1]
    with pytest.raises(SweepError, match="can't be loaded"):
        sweep("segmentation", encoders=(spec,))


def test_wrong_plans_are_refused_before_anything_is_done(sweep: Sweep, tmp_path: Path) -> None:
    with pytest.raises(UnknownDatasetError, match="did you mean segmentation"):
        sweep("segmentatoin")
    for more, message in (
        ({"label_fractions": (0.0,)}, "label fraction is 0; it must be above 0"),
        ({"encoders": ("pixls",)}, "no encoder 'pixls'"),
        ({"encoders": ()}, "at least one encoder"),
        ({"patch_size": 0}, "patch size is 0"),
        ({"probe": "svm"}, "no probe 'svm'; there are auto, knn, linear"),
        ({"method": "norm"}, "no method 'norm'"),
    ):
        with pytest.raises(SweepError) as error:
            sweep("segmentation", **more)
        assert message in str(error.value)
    with pytest.raises(SweepError, match="no dataset is ingested under"):
        sweep(root=tmp_path / "empty")
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------ results


def test_results_are_written_as_parquet_and_json(sweep: Sweep, tmp_path: Path) -> None:
    sweep("segmentation", "scalar_regression")
    table = pq.read_table(tmp_path / "out" / "results.parquet").to_pylist()
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["key"] for row in table] == [row["key"] for row in content]
    by_name = {row["dataset"]: row for row in table}
    seg, scalar = by_name["segmentation"], by_name["scalar_regression"]
    assert seg["miou"] == seg["test_score"] and seg["rmse"] is None
    assert scalar["rmse"] == scalar["test_score"] and scalar["confusion"] is None
    assert seg["per_class"][0]["name"] == "class_0"
    assert seg["bands"][0]["modality"] == "sentinel2_l2a" and len(seg["bands"][0]["bands"]) == 12
    assert Row.model_validate(content[0]) in read_rows(tmp_path / "out")


def test_intervals_of_several_seeds_are_not_called_one(sweep: Sweep, tmp_path: Path) -> None:
    for seeds, told in (((42,), "; [95% interval]"), ((42, 1), "lowest and highest end of their")):
        sweep("segmentation", seeds=seeds)
        (board,) = leaderboards(read_rows(tmp_path / "out"))
        assert told in board_lines(board)[0]


def test_the_leaderboard_has_datasets_by_encoders_and_stars_the_best(
    sweep: Sweep, tmp_path: Path
) -> None:
    row = sweep("scalar_regression").rows[0]
    for name, score in (("good", 0.1), ("bad", 1e6)):
        other = row.model_copy(update={"key": name, "encoder": name, "test_score": score})
        write_row(tmp_path / "out", other)
    (board,) = leaderboards(read_rows(tmp_path / "out"))
    assert board.encoders == ["bad", "good", "pixels"]
    assert board.best("scalar_regression") == ["good"]  # low is good
    lines = board_lines(board, width=160)
    assert "100% of train" in lines[0] and "* best" in lines[0]
    assert "rmse (low)" in lines[2] and "0.100*" in lines[2]
    assert max(map(len, lines[1:])) > 80
    narrow = board_lines(board, width=80)
    assert max(map(len, narrow[1:])) <= 80
    assert [line.split()[-4] for line in narrow[2:5]] == ["bad", "good", "pixels"]


def test_encoders_of_one_name_are_told_apart_by_what_differs(sweep: Sweep, tmp_path: Path) -> None:
    sweep("scalar_regression")
    sweep("scalar_regression", patch_size=2)
    (board,) = leaderboards(read_rows(tmp_path / "out"))
    assert board.encoders == ["pixels p2", "pixels p4"]


def test_pictures_are_drawn_whatever_the_metric(sweep: Sweep, tmp_path: Path) -> None:
    for metric in ("macro_f1", "class_f1", "auroc"):
        more = {"primary_metric_class": 1} if metric == "class_f1" else {}
        given = {"primary_metric": metric, **more}
        write_fake(tmp_path / "evals", metric, "segmentation", counts=(12, 6, 8), settings=given)
    write_fake(tmp_path / "evals", "r2", "regression", counts=(12, 6, 8),
               settings={"primary_metric": "r2"})  # fmt: skip
    rows = sweep(root=tmp_path / "evals", label_fractions=(0.5, 1.0)).rows
    assert len(draw(rows, tmp_path / "plots")) == 1 + 4 + 3


def test_pictures_are_drawn(sweep: Sweep, tmp_path: Path) -> None:
    sweep("segmentation", "scalar_regression", label_fractions=(0.2, 1.0), seeds=(1, 2))
    paths = draw(read_rows(tmp_path / "out"), tmp_path / "plots")
    assert {path.name for path in paths} == {
        "scores_test.png",
        "fractions_segmentation_test.png",
        "fractions_scalar_regression_test.png",
        "confusion_segmentation_pixels_test.png",
    }
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


# ---------------------------------------------------------------------------- the command line


@pytest.fixture
def command(
    root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.setenv("OLMOEARTH_EVAL_DATASETS", str(root))
    monkeypatch.setenv("EVAL_INGEST_CACHE", str(cache))

    def call(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(list(arguments))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_the_commands_sweep_and_leaderboard(
    command: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    out = str(tmp_path / "out")
    code, text, err = command(
        "sweep", "--encoder", "pixels", "--datasets", "classification", "--label-fraction", "10%",
        "1", "--out", out,
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert "classification, pixels: accuracy" in text and "2 new scores, 0 there already" in text
    assert (tmp_path / "out" / "plots" / "scores_test.png").exists()
    code, text, _ = command("leaderboard", "--out", out)
    assert code == 0 and "10% of train" in text
    code, text, _ = command("leaderboard", "--out", out, "--json")
    boards = json.loads(text)
    assert [board["label_fraction"] for board in boards] == [1.0, 0.1]
    assert boards[0]["scores"][0]["n_train"] == 80
    code, text, _ = command(
        "sweep", "--encoder", "pixels", "--datasets", "classification", "--out", out, "--json"
    )
    facts = json.loads(text)
    assert facts["computed"] == 0 and len(facts["rows"]) == 1


def test_failures_are_told_and_the_exit_code_is_1(
    command: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    out = str(tmp_path / "out")
    code, text, _ = command(
        "sweep", "--encoder", "pixels", "--datasets", "segmentation", "classification",
        "--patch-size", "3", "--out", out, "--no-plots",
    )  # fmt: skip
    assert code == 1
    assert "8 x 8 pixels can't be divided into patches of 3 x 3" in text
    code, _, err = command("sweep", "--encoder", "nothing", "--out", out)
    assert code == 1 and err.startswith("error: no encoder 'nothing'")
    code, _, err = command("leaderboard", "--out", str(tmp_path / "empty"))
    assert code == 1 and "there are no results in" in err
