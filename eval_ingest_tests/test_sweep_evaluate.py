"""evaluate(): scores from inside a training, on one rank and on several."""

import json
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

import eval_ingest
from eval_ingest import cli
from eval_ingest.errors import SweepError, UnknownDatasetError
from eval_ingest.settings import Settings
from eval_ingest.store.seal import sealed_json
from eval_ingest.sweep import splits
from eval_ingest.sweep.encoders import Embeddings
from eval_ingest.sweep.evaluate import evaluate
from eval_ingest.sweep.results import latest, leaderboards, read_rows
from eval_ingest.sweep.run import run_sweep
from eval_ingest.sweep.suite import Suite
from eval_ingest_tests.support.fake_evals import write_fake

KINDS = ("segmentation", "classification", "regression", "scalar_regression")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("evaluated")
    for kind in KINDS:
        write_fake(root, kind, kind, counts=(60, 20, 30))
    return root


class Patches(nn.Module):
    """A convolution per patch of the mean image, with parts that behave otherwise in training."""

    def __init__(self, bands: int, p: int = 4) -> None:
        super().__init__()
        self.project = nn.Conv2d(bands, 32, p, stride=p)
        self.norm = nn.BatchNorm2d(32)
        self.drop = nn.Dropout(0.5)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        image = pixels.mean(3).permute(0, 3, 1, 2)
        return self.drop(self.norm(self.project(image))).permute(0, 2, 3, 1)


def adapter(model: nn.Module, batch: dict[str, Any], dataset: Any) -> torch.Tensor:
    found: torch.Tensor = model(batch[next(iter(dataset.bands))])
    return found


@pytest.fixture
def model(root: Path) -> Patches:
    torch.manual_seed(3)
    bands = eval_ingest.EvalDataset("segmentation", "val", root=root).bands
    return Patches(len(next(iter(bands.values()))))


def test_the_scores_are_those_of_a_sweep_and_nothing_is_written(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = tmp_path / "here"
    empty.mkdir()
    monkeypatch.chdir(empty)
    monkeypatch.setenv("EVAL_INGEST_CACHE", str(empty / "cache"))
    found = evaluate("pixels", KINDS, root=root, split="test")
    assert list(empty.iterdir()) == []
    suite, settings = Suite(encoders=("pixels",), datasets=KINDS), Settings(cache=str(tmp_path))
    rows = run_sweep(suite, tmp_path / "out", settings, root=root, device="cpu").rows
    for kind, expected in zip(KINDS, rows, strict=True):
        row = found[kind]
        assert row.metrics == expected.metrics and row.ci_low == expected.ci_low
    assert found.names == list(KINDS) and found.seconds > 0
    logged = found.scores("val")
    assert logged["val/classification/accuracy"] == found["classification"].metrics["accuracy"]
    assert logged["val/seconds"] == found.seconds
    assert all(len(line) <= 80 for line in str(found).splitlines())
    with pytest.raises(KeyError, match="no scores of 'other'; there are segmentation"):
        found["other"]


def test_a_module_is_as_it_was_before(root: Path, model: Patches) -> None:
    model.train()
    model.norm.eval()  # a part that its owner has frozen
    model(torch.randn(2, 8, 8, 1, model.project.in_channels)).sum().backward()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    torch.manual_seed(11), np.random.seed(12), random.seed(13)
    expected = torch.rand(3), np.random.rand(3), random.random()
    torch.manual_seed(11), np.random.seed(12), random.seed(13)
    with torch.random.fork_rng():
        evaluate(model, "segmentation", adapter=adapter, root=root, normalize="dataset")
    found = torch.rand(3), np.random.rand(3), random.random()
    assert torch.equal(found[0], expected[0]) and found[2] == expected[2]
    assert np.array_equal(found[1], expected[1])
    assert model.training and model.drop.training and not model.norm.training
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    now = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(torch.equal(a, b) for a, b in zip(gradients, now, strict=True))
    assert all(p.requires_grad for p in model.parameters()) and torch.is_grad_enabled()


def test_a_model_whose_evaluation_fails_is_as_it_was_before(root: Path, model: Patches) -> None:
    model.train()

    def broken(*_: Any) -> torch.Tensor:
        raise ValueError("no such thing")

    with pytest.raises(SweepError, match="ValueError: no such thing"):
        evaluate(model, "segmentation", adapter=broken, root=root, normalize="dataset")
    assert model.training and torch.is_grad_enabled()


@pytest.mark.parametrize("kind", KINDS)
def test_patches_pooled_or_both_may_come_back(kind: str, root: Path, model: Patches) -> None:
    def both(model: nn.Module, batch: dict[str, Any], dataset: Any) -> Embeddings:
        patches = adapter(model, batch, dataset)
        return Embeddings(patches, patches.mean((1, 2)))

    arguments: dict[str, Any] = {"root": root, "normalize": "dataset"}
    first = evaluate(model, kind, adapter=adapter, **arguments)
    second = evaluate(model, kind, adapter=both, **arguments)
    assert first[kind].metrics == second[kind].metrics


def test_bfloat16_scores_nearly_as_float32(root: Path, model: Patches) -> None:
    arguments: dict[str, Any] = {"adapter": adapter, "root": root, "normalize": "dataset"}
    full = evaluate(model, "regression", **arguments)["regression"]
    half = evaluate(model, "regression", dtype=torch.bfloat16, **arguments)["regression"]
    assert half.metrics["r2"] == pytest.approx(full.metrics["r2"], abs=0.05)
    assert half.metrics != full.metrics


def test_few_train_windows_are_drawn_as_label_fractions_are(root: Path, model: Patches) -> None:
    seen: list[int] = []

    def counting(model: nn.Module, batch: dict[str, Any], dataset: Any) -> torch.Tensor:
        seen.append(len(batch["window"]) if dataset.split == "train" else 0)
        return adapter(model, batch, dataset)

    arguments: dict[str, Any] = {"root": root, "normalize": "dataset"}
    few = evaluate(model, "regression", adapter=counting, max_train_samples=6, **arguments)
    assert few["regression"].n_train == 6 == sum(seen)  # the others are not embedded
    tenth = evaluate(model, "regression", adapter=adapter, label_fraction=0.1, **arguments)
    assert tenth["regression"].metrics == few["regression"].metrics


def test_each_checkpoint_of_a_training_has_a_score_of_its_own(
    root: Path, model: Patches, tmp_path: Path
) -> None:
    out, suite = tmp_path / "kept", Suite(datasets=("classification",), seeds=(1, 2))
    for _ in range(2):
        last = evaluate(model, suite, adapter=adapter, root=root, out=out).rows
    rows = read_rows(out)
    assert len(rows) == len(pq.read_table(out / "results.parquet")) == 4
    assert len(json.loads((out / "results.json").read_text())) == 4
    (board,) = leaderboards(rows)
    assert board.cells["classification", "Patches"].seeds == 2
    assert {row.key for row in latest(rows)} == {row.key for row in last}

    def broken(*_: Any) -> torch.Tensor:
        raise ValueError("no such thing")

    assert not evaluate(model, ["classification", "regression"], adapter=broken, root=root, out=out)
    assert len(pq.read_table(out / "results.parquet")) == 4


def test_a_kept_row_that_cannot_be_read_ends_no_training(
    root: Path, model: Patches, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "damaged.json").write_bytes(b"{")
    (tmp_path / "rows" / "newer.json").write_bytes(sealed_json({"version": 9}))
    assert evaluate(model, "classification", adapter=adapter, root=root, out=tmp_path)
    assert len(pq.read_table(tmp_path / "results.parquet")) == 1
    assert caplog.text.count("it is in no table") == 2


def test_several_draws_train_on_what_each_alone_and_a_sweep_trains_on(
    root: Path, tmp_path: Path
) -> None:
    cases = {"label_fractions": (0.5, 1.0), "seeds": (42, 7), "max_train_samples": 20}
    suite = Suite(datasets=("regression",), split="val", **cases)  # type: ignore[arg-type]
    seen: list[int] = []

    def counting(model: nn.Module, batch: dict[str, Any], dataset: Any) -> torch.Tensor:
        seen.append(len(batch["window"]) if dataset.split == "train" else 0)
        return batch[next(iter(dataset.bands))][:, ::4, ::4, 0].contiguous()

    together = evaluate(nn.Identity(), suite, adapter=counting, root=root).rows
    assert [row.n_train for row in together] == [20] * 4 and 20 < sum(seen) < 60
    pixels, settings = Suite(encoders=("pixels",)), Settings(cache=str(tmp_path / "cache"))
    pixels = pixels.having(datasets="regression", split="val", **cases)
    swept = run_sweep(pixels, tmp_path / "out", settings, root=root, device="cpu").rows
    within = evaluate("pixels", suite, root=root).rows
    for row, other, alike in zip(together, swept, within, strict=True):
        given: dict[str, Any] = {"label_fraction": row.label_fraction, "seed": row.seed}
        alone = evaluate(
            nn.Identity(), "regression", adapter=counting, root=root, max_train_samples=20, **given
        ).rows[0]
        assert (alone.n_train, alone.metrics) == (row.n_train, row.metrics)
        assert (other.n_train, other.metrics) == (alike.n_train, alike.metrics)


def test_scored_on_train_all_its_windows_count(root: Path) -> None:
    (row,) = evaluate("pixels", "classification", root=root, split="train", max_train_samples=9)
    assert (row.n_train, row.n_test) == (9, 60)


def test_a_dataset_that_is_ingested_anew_meanwhile_is_scored_in_its_new_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_fake(tmp_path, "fake", "classification", counts=(12, 6, 6), version="one")
    published: list[Path] = []

    def opened(name: str, split: str, **given: Any) -> eval_ingest.EvalDataset:
        if split == "test" and not published:
            published.append(folder.rename(tmp_path / ".old"))
            write_fake(tmp_path, "fake", "classification", counts=(15, 7, 8), version="two")
        return eval_ingest.EvalDataset(name, split, **given)

    monkeypatch.setattr(splits, "EvalDataset", opened)
    (row,) = evaluate("pixels", "fake", root=tmp_path, split="test")
    assert (row.dataset_version, row.n_train, row.n_val, row.n_test) == ("two", 15, 7, 8)


def test_a_model_gets_the_batches_that_it_is_trained_on(root: Path, model: Patches) -> None:
    batches: list[torch.Tensor] = []

    def keeping(model: nn.Module, batch: dict[str, Any], dataset: Any) -> torch.Tensor:
        if dataset.split == "val":
            batches.append(batch["sentinel2_l2a"].clone())
        return adapter(model, batch, dataset)

    (row,) = evaluate(model, "segmentation", adapter=keeping, root=root)
    (expected,) = eval_ingest.EvalDataset("segmentation", "val", root=root).batches(20)
    assert torch.equal(torch.cat(batches), expected["sentinel2_l2a"])
    assert row.normalize == "dataset"


def test_one_dataset_that_fails_does_not_stop_the_others(root: Path, model: Patches) -> None:
    def picky(model: nn.Module, batch: dict[str, Any], dataset: Any) -> torch.Tensor:
        if dataset.name == "regression":
            raise RuntimeError("not this one")
        return adapter(model, batch, dataset)

    names = ["classification", "regression"]
    found = evaluate(model, names, adapter=picky, root=root, normalize="dataset")
    assert found.names == ["classification"]
    (failure,) = found.failures
    assert failure.dataset == "regression" and "not this one" in failure.message
    assert "not this one" in str(found)


def test_what_can_not_be_evaluated_says_what_to_do(root: Path) -> None:
    with pytest.raises(SweepError, match="give evaluate\\(\\) adapter=f, where f\\(model, batch"):
        evaluate(nn.Linear(2, 2), "classification", root=root)
    with pytest.raises(UnknownDatasetError, match="classification"):
        evaluate("pixels", "clasification", root=root)
    with pytest.raises(SweepError, match="needs no adapter"):
        evaluate("pixels", "classification", adapter=adapter, root=root)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "dev"}, "no split 'dev'; there are train, val, test"),
        ({"datasets": None}, "needs at least one dataset"),
        ({"datasets": 3}, "datasets.0: Input should be a valid string; it is 3"),
        (
            {"datasets": ["classification", 3]},
            "datasets.1: Input should be a valid string; it is 3",
        ),
        ({"datasets": torch.zeros(2)}, "datasets.0: Input should be a valid string; it is Tensor"),
        ({"batch_size": 0}, "batch_size is 0; it must be a whole number above 0"),
        ({"batch_size": 2.5}, "batch_size is 2.5; it must be"),
        ({"max_train_samples": 0}, "max_train_samples is 0; it must be at least 1"),
        ({"max_train_samples": "few"}, "max_train_samples: Input should .* it is 'few'"),
        ({"seed": -1}, "seed is -1; it must be at least 0"),
        ({"seed": "one"}, "seeds.0: Input should be a valid .* it is 'one'"),
        ({"label_fraction": 2}, "label fraction is 2; it must be above 0 and at most 1"),
        ({"label_fraction": "tenth"}, "no label fraction 'tenth'"),
        ({"patch_size": "four"}, "patch_size: Input should be a valid integer"),
        ({"patch_size": 3}, "can't be divided into patches of 3 x 3; say --patch-size 1 or 2"),
        ({"dtype": "bfloat16"}, "dtype is 'bfloat16'; there are torch.bfloat16, torch.float16"),
        ({"dtype": torch.int8}, "dtype is torch.int8; there are"),
        ({"device": "meta"}, "no device 'meta' here"),
        ({"device": "gpu"}, "no device 'gpu' here"),
        ({"model": Patches}, r"Patches is a class; give what it makes: Patches\(...\)"),
        ({"model": Patches(12).to("meta")}, "no device 'meta' here"),
        ({"model": None, "adapter": None}, "through a NoneType isn't known"),
    ],
)
def test_an_argument_that_can_not_be_is_told_with_its_value(
    arguments: dict[str, Any], message: str, root: Path, model: Patches
) -> None:
    usual = {"model": model, "datasets": "classification", "adapter": adapter}
    with pytest.raises(SweepError, match=message):
        evaluate(root=root, normalize="dataset", **{**usual, **arguments})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda patches: None, "returned a NoneType; it must return Embeddings"),
        (lambda patches: patches.numpy(), "returned a ndarray; it must return Embeddings"),
        (lambda patches: (patches,) * 3, "returned a tuple; it must return Embeddings"),
        (lambda patches: [1, 2], r"returned a list; .* of tensors"),
        (lambda patches: patches.permute(0, 3, 1, 2), r"patches .* \(60, 2, 2, D\).*60, 32, 2, 2"),
        (lambda patches: patches.flatten(1, 2), r"patches must have the shape .* not None"),
        (lambda patches: patches[:1], r"not \(1, 2, 2, 32\); see"),
        (lambda patches: patches.repeat(1, 4, 4, 1), "1 x 1 pixels each: say patch_size=1"),
        (lambda patches: patches[..., :0], r"not \(60, 2, 2, 0\)"),
        (lambda patches: patches.to(torch.complex64), r"D\), not torch.complex64"),
        (lambda patches: patches.to("meta"), "failed on .* with NotImplementedError"),
        (lambda patches: patches * float("nan"), "embeddings are not finite"),
    ],
)
def test_what_an_adapter_may_not_return_is_told(
    change: Any, message: str, root: Path, model: Patches
) -> None:
    def changed(model: nn.Module, batch: dict[str, Any], dataset: Any) -> Any:
        return change(adapter(model, batch, dataset))

    with pytest.raises(SweepError, match=message):
        evaluate(model, "segmentation", adapter=changed, root=root, normalize="dataset")


def test_a_model_in_half_precision_is_scored_in_its_own(root: Path, model: Patches) -> None:
    arguments: dict[str, Any] = {"adapter": adapter, "root": root, "normalize": "dataset"}
    half = evaluate(model.bfloat16(), "classification", **arguments)
    asked = evaluate(model, "classification", dtype=torch.bfloat16, **arguments)
    assert half["classification"].metrics == asked["classification"].metrics


def test_one_class_alone_is_scored(tmp_path: Path) -> None:
    write_fake(tmp_path, "one", "classification", counts=(12, 6, 6), classes=1)
    for probe in ("knn", "linear"):
        found = evaluate("pixels", "one", root=tmp_path, probe=probe)  # type: ignore[arg-type]
        assert found["one"].metrics["accuracy"] == 1
    write_fake(tmp_path, "untrained", "classification", counts=(0, 6, 6))
    with pytest.raises(SweepError, match="untrained: the train split has no windows"):
        evaluate("pixels", "untrained", root=tmp_path)


def test_a_suite_names_datasets_and_fractions(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "inloop.yaml"
    path.write_text("datasets: [classification]\nlabel_fractions: [0.5, 1.0]\nsplit: test\n")
    found = evaluate("pixels", path, root=root)
    assert [row.label_fraction for row in found] == [0.5, 1.0]
    assert {"eval/classification@0.5/accuracy", "eval/classification/accuracy"} <= set(
        found.scores()
    )
    alone = evaluate("pixels", str(path), root=root, label_fraction=0.5)
    assert alone["classification"].metrics == found.rows[0].metrics
    assert evaluate("pixels", Suite.load(path), root=root, split="val").rows[0].split == "val"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dataset: [a]", "there is no 'dataset'; a suite has datasets, encoders"),
        ("patch_size: four", "patch_size: Input should be a valid integer"),
        ("datasets: [1]", "datasets.0: Input should be a valid string"),
        ("seeds: {a: b}", "seeds.0: Input should be a valid integer"),
        ("1: 2", "there is no '1'; a suite has"),
        ("", "must be a mapping"),
        ("- a", "must be a mapping"),
        ("a: [", "can't be read"),
    ],
)
def test_a_suite_that_is_none_says_why(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "inloop.yaml"
    path.write_text(text)
    with pytest.raises(SweepError, match=message):
        Suite.load(path)


def test_one_value_in_a_suite_is_one_of_several(tmp_path: Path) -> None:
    path = tmp_path / "inloop.yaml"
    path.write_text("datasets: crops\nlabel_fractions: 10%\nseeds: 7\nnormalize: null\n")
    found = Suite.load(path)
    assert (found.datasets, found.label_fractions, found.seeds) == (("crops",), (0.1,), (7,))
    assert found.normalize is None and found.having(seeds=None) == found


def test_the_command_takes_a_suite_and_flags_win(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "suite.yaml"
    path.write_text("datasets: [classification]\nencoders: [pixels]\nseeds: [1, 2]\n")
    monkeypatch.setenv("OLMOEARTH_EVAL_DATASETS", str(root))
    monkeypatch.setenv("EVAL_INGEST_CACHE", str(tmp_path / "cache"))
    out = ["--out", str(tmp_path / "out"), "--json"]
    assert cli.main(["sweep", "--suite", str(path), *out]) == 0
    assert [row["seed"] for row in json.loads(capsys.readouterr().out)["rows"]] == [1, 2]
    assert cli.main(["sweep", "--suite", str(path), "--seeds", "7", *out]) == 0
    assert [row["seed"] for row in json.loads(capsys.readouterr().out)["rows"]] == [7]
    assert cli.main(["sweep", *out]) == 1
    assert "say --encoder pixels" in capsys.readouterr().err


_RANK = """
import json, sys
import torch.distributed as dist
from eval_ingest.errors import EvalIngestError
from eval_ingest.sweep.evaluate import evaluate

root, store, *numbers = sys.argv[1:6]
rank, count, break_rank = map(int, numbers)
datasets = sys.argv[6:]
dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=count)

class Encoder:
    name, fingerprint, weights, patch_size = "e", "e", "none", 4
    normalize, method = "dataset", "standardize"
    windows = 0
    def embed(self, batch, dataset):
        if rank == break_rank:
            raise RuntimeError("out of order")
        self.windows += len(batch["window"])
        pixels = batch[next(iter(dataset.bands))].mean(3)
        grid = pixels.unfold(1, 4, 4).unfold(2, 4, 4)
        import eval_ingest.sweep.encoders as e
        return e.Embeddings(grid.mean((-1, -2)))

encoder = Encoder()
try:
    try:
        evaluate(encoder, "clasification", root=root)
    except EvalIngestError as error:
        assert "did you mean classification" in str(error)
    found = evaluate(encoder, datasets, root=root, batch_size=25)
    scores = {row.dataset: row.metrics for row in found}
    failures = [failure.message for failure in found.failures]
    print(json.dumps({"scores": scores, "failures": failures, "windows": encoder.windows}))
finally:
    dist.destroy_process_group()
"""


def on_ranks(
    roots: Sequence[Path],
    folder: Path,
    break_rank: int = -1,
    datasets: Sequence[str] = ("segmentation", "classification"),
) -> list[dict[str, Any]]:
    store, count = folder / f"store{len(roots)}{break_rank}", len(roots)
    started = [
        subprocess.Popen(
            [sys.executable, "-c", _RANK, root, store, str(rank), str(count), str(break_rank),
             *datasets],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank, root in enumerate(roots)
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=120)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert all(process.returncode == 0 for process in started)
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def test_three_ranks_share_the_windows_and_get_the_scores_of_one(
    root: Path, tmp_path: Path
) -> None:
    (one,) = on_ranks([root], tmp_path)
    three = on_ranks([root] * 3, tmp_path)
    assert all(found["scores"] == one["scores"] for found in three)
    # 60 train windows are three batches, 20 of val are one: there two ranks have nothing.
    assert [found["windows"] for found in three] == [2 * (25 + 20), 2 * 25, 2 * 10]


def test_a_rank_that_fails_stops_none_of_the_others_for_ever(root: Path, tmp_path: Path) -> None:
    for found in on_ranks([root] * 3, tmp_path, break_rank=1):
        assert len(found["failures"]) == 2 and "out of order" in found["failures"][0]


def test_a_rank_that_can_not_open_a_dataset_leaves_no_other_alone(
    root: Path, tmp_path: Path
) -> None:
    other = tmp_path / "as the second rank sees it"
    write_fake(other, "segmentation", "segmentation", counts=(60, 20, 30), version="another")
    write_fake(other, "classification", "classification", counts=(60, 20, 30))
    (other / "classification" / "val" / "index.0.parquet").unlink()
    write_fake(other, "scalar_regression", "scalar_regression", counts=(60, 20, 30))
    first, second = on_ranks([root, other], tmp_path, datasets=KINDS)
    assert first["failures"] == second["failures"] and first["scores"] == second["scores"]
    replaced, damaged, missing = first["failures"]
    assert "of version another" in replaced and "index.0.parquet" in damaged
    assert "regression" in missing
    assert list(first["scores"]) == ["scalar_regression"]
