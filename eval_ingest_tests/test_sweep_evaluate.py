"""evaluate(): scores from inside a training, on one rank and on several."""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import eval_ingest
from eval_ingest import cli
from eval_ingest.errors import SweepError, UnknownDatasetError
from eval_ingest.settings import Settings
from eval_ingest.sweep.encoders import Embeddings
from eval_ingest.sweep.evaluate import evaluate
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


def test_rows_are_kept_where_one_asks_for_it(root: Path, tmp_path: Path) -> None:
    evaluate("pixels", "classification", root=root, out=tmp_path / "kept")
    assert (tmp_path / "kept" / "results.json").is_file()


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
    with pytest.raises(SweepError, match="no split 'dev'"):
        evaluate("pixels", "classification", root=root, split="dev")  # type: ignore[arg-type]


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
        ("dataset: [a]", "a suite has datasets, encoders"),
        ("patch_size: four", "patch_size: Input should be a valid integer"),
        ("- a", "must be a mapping"),
        ("a: [", "can't be read"),
    ],
)
def test_a_suite_that_is_none_says_why(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "inloop.yaml"
    path.write_text(text)
    with pytest.raises(SweepError, match=message):
        Suite.load(path)


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

root, store, rank, count, break_rank = sys.argv[1:4] + [int(sys.argv[4]), int(sys.argv[5])]
rank = int(rank)
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
    found = evaluate(encoder, ["segmentation", "classification"], root=root, batch_size=7)
    scores = {row.dataset: row.metrics for row in found}
    failures = [failure.message for failure in found.failures]
    print(json.dumps({"scores": scores, "failures": failures, "windows": encoder.windows}))
finally:
    dist.destroy_process_group()
"""


def on_ranks(root: Path, folder: Path, count: int, break_rank: int = -1) -> list[dict[str, Any]]:
    store = folder / f"store{count}{break_rank}"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", _RANK, root, store, str(rank), str(count), str(break_rank)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in started]
    assert all(process.returncode == 0 for process in started)
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def test_two_ranks_share_the_windows_and_get_the_scores_of_one(root: Path, tmp_path: Path) -> None:
    (one,) = on_ranks(root, tmp_path, 1)
    first, second = on_ranks(root, tmp_path, 2)
    assert first["scores"] == second["scores"] == one["scores"]
    assert first["windows"] + second["windows"] == one["windows"]
    assert abs(first["windows"] - second["windows"]) <= 4 * 7


def test_a_rank_that_fails_stops_none_of_the_others_for_ever(root: Path, tmp_path: Path) -> None:
    for found in on_ranks(root, tmp_path, 2, break_rank=1):
        assert len(found["failures"]) == 2 and "out of order" in found["failures"][0]
