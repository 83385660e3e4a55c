"""The existing OlmoEarth eval code on our registry: olmoearth-pretrain 0.1.2, as published.

`make peers` installs it in .venv-peers; without that these tests are skipped. It runs in a process
of its own, in which rslearn may not scan windows: every read below found its index.
"""

import json
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from benchmarks.peer_pipe import PYTHON, SCRIPT, Peer
from eval_ingest import EvalDataset, cli, pipeline
from eval_ingest.core.norm import METHODS
from eval_ingest.loading.olmoearth import OlmoEarthAdapter
from eval_ingest.store.registry import rebuild_registry
from eval_ingest.store.roots.base import EvalRoot
from eval_ingest.sweep.tasks import trainer_tasks
from eval_ingest_tests.conftest import make_job
from eval_ingest_tests.support import factories
from eval_ingest_tests.support.corpus import CONFIGS
from eval_ingest_tests.support.peer import READ, read
from eval_ingest_tests.support.shared_configs import FOLDERS, generate

SPLITS = ("train", "val", "test")

pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="needs .venv-peers: make peers")

Ingested = Callable[[str], Path]


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    process = Peer(SCRIPT, tmp_path_factory.mktemp("peer") / "log")
    yield process
    process.close()


@pytest.fixture(scope="module")
def even(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eval root with a dataset of three modalities, of which every window has three timesteps."""
    source = factories.three_modalities(tmp_path_factory.mktemp("even"), windows=30, even=True)
    root = tmp_path_factory.mktemp("even_root")
    pipeline.ingest(make_job(source, root, "even"))
    return root


# ------------------------------------------------------------------------------------- datasets


KINDS = {
    "segmentation": ("segmentation", 7, 16),
    "vector_classification": ("classification", 4, None),
    "per_pixel_regression": ("regression", 1, 16),
    "scalar_regression": ("scalar_regression", 1, None),
    "ragged_segmentation": ("segmentation", 2, 16),
    "class_mapping": ("segmentation", 5, 8),
    "three_modalities": ("classification", 3, None),
}


@pytest.mark.parametrize("case", factories.CASES)
def test_an_entry_becomes_its_config(case: str, peer: Peer, ingested: Ingested) -> None:
    config = peer("configs", registry=ingested(case) / "registry.json")[case]
    kind, classes, side = KINDS[case]
    assert config["task_type"] == kind
    assert config["num_classes"] == classes
    assert config["height_width"] == side
    assert config["timeseries"] is True and config["is_multilabel"] is False


@pytest.mark.parametrize(("case", "modalities"), [*READ, ("three_modalities", ["sentinel2_l2a"])])
def test_its_samples_equal_ours(
    case: str, modalities: list[str] | None, peer: Peer, ingested: Ingested, tmp_path: Path
) -> None:
    compare(peer, ingested(case), case, modalities, tmp_path)


def test_three_modalities_at_once_equal_ours(peer: Peer, even: Path, tmp_path: Path) -> None:
    compare(peer, even, "even", None, tmp_path)
    modalities = EvalDataset("even", "val", root=even).bands
    assert list(modalities) == ["sentinel2_l2a", "sentinel1", "landsat"]


@pytest.mark.skipif(not CONFIGS.is_dir(), reason="needs ../shared/configs")
@pytest.mark.parametrize("name", FOLDERS)
def test_datasets_of_real_configurations_equal_ours(name: str, peer: Peer, tmp_path: Path) -> None:
    source = generate(CONFIGS / name, tmp_path / "source")
    root = tmp_path / "root"
    pipeline.ingest(make_job(source, root, name))
    for task in trainer_tasks(EvalRoot(root)).tasks:
        compare(peer, root, name, task.fields["input_modalities"], tmp_path)


def compare(
    peer: Peer, root: Path, name: str, modalities: list[str] | None, tmp_path: Path
) -> None:
    """Every sample of every split: pixels, masks and target; dates are made up there."""
    compared = 0
    for split in SPLITS:
        windows, samples = read(
            peer, root, name, split, tmp_path, input_modalities_override=modalities
        )
        dataset = EvalDataset(name, split, root=root, normalize="pretrained", modalities=modalities)
        adapter = OlmoEarthAdapter(dataset)
        assert windows == [dataset.window(i) for i in range(len(dataset))]
        for i, theirs in enumerate(samples):
            sample, target = adapter.collate([dataset[i]])
            for modality in dataset.bands:
                found = theirs[modality]
                assert found.dtype == np.float32
                ours = dataset[i][modality].numpy()
                if in_order(dataset[i]["timestamps"][modality]):  # else the adapter puts them so
                    ours = getattr(sample, modality)[0].numpy()
                assert found.shape == ours.shape
                assert np.allclose(found, ours, rtol=1e-5, atol=1e-5)
                mask = theirs[f"{modality}_mask"]
                assert (mask == 0).all() and (getattr(sample, f"{modality}_mask") == 0).all()
            assert theirs["target"].dtype == target.numpy().dtype
            assert np.array_equal(theirs["target"], target[0].numpy(), equal_nan=True)
            steps = len(theirs["timestamps"])
            assert theirs["timestamps"].shape == sample.timestamps[0].shape
            assert theirs["timestamps"][0].tolist() == [1, 8, 2022]  # its documented fault
            assert sample.timestamps[0, :, 2].unique().tolist() != [2022] and steps > 1
            compared += 1
    assert compared >= 8


def in_order(stamps: torch.Tensor) -> bool:
    """True if dates (T, 3) = day, month, year never go back."""
    dates = stamps.flip(1).tolist()
    return dates == sorted(dates)


@pytest.mark.parametrize("method", METHODS)
def test_the_dataset_s_own_statistics_are_used_alike(
    method: str, peer: Peer, ingested: Ingested, tmp_path: Path
) -> None:
    root = ingested("vector_classification")
    windows, samples = read(
        peer, root, "vector_classification", "val", tmp_path,
        norm_stats_from_pretrained=False, norm_method=method,
    )  # fmt: skip
    dataset = EvalDataset("vector_classification", "val", root=root, method=method)
    for i in range(len(windows)):
        for modality in dataset.bands:
            ours, theirs = dataset[i][modality].numpy(), samples[i][modality]
            if method.endswith("_int"):  # at the edge of two of 256 steps rounding decides
                differing = np.abs(ours - theirs) > 1e-6
                assert differing.mean() < 0.001 and np.abs(ours - theirs).max() < 1.01 / 255
            elif method == "no_norm" and modality == "sentinel2_l2a":
                assert np.array_equal(ours, theirs)
            else:
                assert np.allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_bands_that_the_dataset_lacks_have_a_stand_in_there_too(
    peer: Peer, copied: Callable[[str], Path], tmp_path: Path
) -> None:
    source = copied("class_mapping")
    content = yaml.safe_load((source / "model.yaml").read_text())
    for band in ("B01", "B09", "B11"):
        content["data"]["init_args"]["inputs"]["sentinel2_l2a"]["bands"].remove(band)
    (source / "model.yaml").write_text(yaml.safe_dump(content))
    pipeline.ingest(make_job(source, tmp_path / "root", "few"))
    compare(peer, tmp_path / "root", "few", None, tmp_path)
    _, samples = read(
        peer, tmp_path / "root", "few", "val", tmp_path, norm_stats_from_pretrained=False
    )
    dataset = EvalDataset("few", "val", root=tmp_path / "root")
    pixels = OlmoEarthAdapter(dataset).collate([dataset[0]])[0].sentinel2_l2a[0]
    assert np.allclose(samples[0]["sentinel2_l2a"], pixels, rtol=1e-5, atol=1e-5)


def test_a_band_that_does_not_vary_is_finite_there_too(
    peer: Peer, copied: Callable[[str], Path], tmp_path: Path
) -> None:
    import rasterio

    source = copied("class_mapping")
    for path in source.glob("windows/*/*/layers/sentinel2*/*/geotiff.tif"):
        with rasterio.open(path, "r+") as raster:
            raster.write(np.full(raster.shape, 500, np.uint16), 1)
    root = tmp_path / "root"
    pipeline.ingest(make_job(source, root, "flat"))
    for method in METHODS:
        _, samples = read(
            peer, root, "flat", "val", tmp_path,
            norm_stats_from_pretrained=False, norm_method=method,
        )  # fmt: skip
        assert np.isfinite(samples[0]["sentinel2_l2a"]).all()


def test_samples_of_differing_length_are_padded_and_masked_alike(
    peer: Peer, ingested: Ingested, tmp_path: Path
) -> None:
    root, name = ingested("ragged_segmentation"), "ragged_segmentation"
    path = tmp_path / "batch.npz"
    peer("collate", registry=root / "registry.json", name=name, split="train", out=path)
    dataset = EvalDataset(name, "train", root=root, normalize="pretrained")
    sample, target = OlmoEarthAdapter(dataset).collate([dataset[i] for i in range(len(dataset))])
    with np.load(path) as theirs:
        assert np.allclose(theirs["sentinel2_l2a"], sample.sentinel2_l2a, rtol=1e-5, atol=1e-5)
        ours = sample.sentinel2_l2a_mask.numpy()
        assert set(np.unique(ours)) == {0, 3}
        assert (theirs["sentinel2_l2a_mask"][..., :1] == ours[..., :1]).all()
        assert np.array_equal(theirs["target"], target)


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.25, 0.5, 0.99])
def test_a_label_fraction_is_the_same_subset(
    fraction: float, peer: Peer, ingested: Ingested, tmp_path: Path
) -> None:
    root = ingested("segmentation")
    windows, _ = read(peer, root, "segmentation", "train", tmp_path, label_fraction=fraction)
    dataset = EvalDataset("segmentation", "train", root=root, label_fraction=fraction)
    assert windows == [dataset.window(i) for i in range(len(dataset))]


# ---------------------------------------------------------------------------------------- tasks


@pytest.fixture(scope="module")
def many(ingested: Ingested, even: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eval root with the datasets of all cases."""
    root = tmp_path_factory.mktemp("many")
    for case in factories.CASES:
        (root / case).symlink_to(ingested(case) / case)
    (root / "even").symlink_to(even / "even")
    rebuild_registry(EvalRoot(root))
    return root


def printed(root: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OLMOEARTH_EVAL_DATASETS", str(root))
        assert cli.main(["tasks", "--format", "olmoearth", *flags]) == 0
    return capsys.readouterr().out


def test_the_printed_python_makes_its_task_configs(
    peer: Peer, many: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = json.loads(printed(many, capsys, "--json"))["tasks"]
    found = peer("python_tasks", code=printed(many, capsys))
    assert set(found) == set(wanted) and len(wanted) == len(factories.CASES) + 2
    for name, fields in wanted.items():
        assert {field: found[name][field] for field in fields} == fields


def test_the_printed_overrides_make_the_same_tasks(
    peer: Peer, many: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = shlex.split(printed(many, capsys, "--as", "overrides"))
    found = peer("overridden_tasks", arguments=arguments)
    assert found.pop("own")["dataset"] == "own"
    assert found == peer("python_tasks", code=printed(many, capsys))


def test_its_evaluators_run_on_the_tasks(
    peer: Peer, many: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """kNN and linear probes of its own, on an encoder of its own with random weights."""
    tasks = json.loads(printed(many, capsys, "--json"))["tasks"]
    assert {task["eval_mode"] for task in tasks.values()} == {"knn", "linear_probe"}
    scores = peer("evaluate", code=printed(many, capsys))
    assert set(scores) == set(tasks)
    main = {"class_mapping": "miou", "even": "accuracy", "scalar_regression": "rmse"}
    assert all(metric in scores[name] for name, metric in main.items())
    for metrics in scores.values():
        (score,) = (metrics[name] for name in ("accuracy", "miou", "rmse") if name in metrics)
        assert np.isfinite(score)


def test_every_crop_of_a_window_equals_ours(peer: Peer, tmp_path: Path) -> None:
    source = factories.class_mapping(tmp_path, windows=12, size=16)
    root = tmp_path / "root"
    pipeline.ingest(make_job(source, root, "crops", all_crops=["val", "test"], crop_size=6))
    compare(peer, root, "crops", None, tmp_path)
    config = peer("configs", registry=root / "registry.json")["crops"]
    assert config["height_width"] == 6
