"""OlmoEarth's own trainer reading our packed samples: olmoearth-pretrain 0.1.2 in .venv-peers."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks.peer_pipe import PYTHON, Peer, PeerError
from eval_ingest import EvalDataset, pipeline
from eval_ingest.adopting import adopt
from eval_ingest.core.entry import OURS_ALONE
from eval_ingest.settings import Settings
from eval_ingest.store.registry import rebuild_registry
from eval_ingest.store.roots.base import EvalRoot
from eval_ingest.sweep.tasks import as_python, trainer_tasks
from eval_ingest_tests.conftest import make_job
from eval_ingest_tests.support import factories
from eval_ingest_tests.support.peer import READ

REPOSITORY = Path(__file__).parents[1]
SPLITS = ("train", "val", "test")

pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="needs .venv-peers: make peers")

Ingested = Callable[[str], Path]


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    script = REPOSITORY / "benchmarks" / "peer_process.py"
    log = tmp_path_factory.mktemp("peer") / "log"
    process = Peer(script, log, PYTHONPATH=str(REPOSITORY), OLMOEARTH_EVAL_DATASETS="/nowhere")
    yield process
    process.close()


def samples_of(path: Path) -> list[dict[str, np.ndarray]]:
    samples: dict[int, dict[str, np.ndarray]] = {}
    with np.load(path) as stored:
        for key in stored.files:
            number, _, field = key.partition(".")
            samples.setdefault(int(number), {})[field] = stored[key]
    return [samples[k] for k in sorted(samples)]


def both(
    peer: Peer, root: Path, name: str, split: str, tmp_path: Path, **arguments: object
) -> tuple[list[dict[str, np.ndarray]], list[dict[str, np.ndarray]]]:
    """Samples by its own loader, and through ours with its dates; the windows are the same."""
    windows = peer(
        "read", registry=root / "registry.json", name=name, split=split,
        out=tmp_path / "theirs.npz", arguments=arguments,
    )  # fmt: skip
    kind, *ours = peer(
        "read_through", root=root, name=name, split=split, out=tmp_path / "ours.npz",
        dates="monthly", arguments=arguments,
    )  # fmt: skip
    assert kind == "TrainerSamples" and ours == windows
    *batched, single = samples_of(tmp_path / "ours.npz")
    assert_equal(single, batched[-1])  # asked for alone it is the same sample
    return samples_of(tmp_path / "theirs.npz"), batched


def assert_equal(theirs: dict[str, np.ndarray], ours: dict[str, np.ndarray]) -> None:
    """The same fields, types, shapes and values; ours may be padded to a batch's timesteps."""
    assert theirs.keys() == ours.keys()
    for key, expected in theirs.items():
        found = ours[key]
        assert found.dtype == expected.dtype, key
        if key == "timestamps":
            found = found[: len(expected)]
        elif expected.ndim == 4:
            assert (found[:, :, expected.shape[2] :] == (3 if "mask" in key else 0)).all()
            found = found[:, :, : expected.shape[2]]
        assert found.shape == expected.shape, key
        assert np.allclose(found, expected, rtol=1e-5, atol=1e-5, equal_nan=True), key


@pytest.mark.parametrize(("case", "modalities"), READ)
@pytest.mark.parametrize("pretrained", [True, False])
def test_samples_equal_its_own_loader_s(
    case: str,
    modalities: list[str] | None,
    pretrained: bool,
    peer: Peer,
    ingested: Ingested,
    tmp_path: Path,
) -> None:
    root = ingested(case)
    for split in SPLITS:
        theirs, ours = both(
            peer, root, case, split, tmp_path,
            input_modalities_override=modalities, norm_stats_from_pretrained=pretrained,
        )  # fmt: skip
        assert len(theirs) == len(ours) > 0
        for expected, found in zip(theirs, ours, strict=True):
            assert_equal(expected, found)


def test_dates_are_the_rasters_own_unless_told_otherwise(
    peer: Peer, ingested: Ingested, tmp_path: Path
) -> None:
    root = ingested("segmentation")
    peer("read_through", root=root, name="segmentation", split="val", out=tmp_path / "x.npz")
    *found, _ = samples_of(tmp_path / "x.npz")
    dataset = EvalDataset("segmentation", "val", root=root)
    for i, sample in enumerate(found):
        expected = dataset[i]["timestamps"]["sentinel2_l2a"].numpy()
        assert np.array_equal(sample["timestamps"], expected)
        assert sample["timestamps"][0].tolist() != [1, 8, 2022]


@pytest.mark.parametrize("fraction", [0.1, 0.5])
def test_label_fractions_are_the_same_subsets(
    fraction: float, peer: Peer, ingested: Ingested, tmp_path: Path
) -> None:
    root = ingested("segmentation")
    theirs, ours = both(peer, root, "segmentation", "train", tmp_path, label_fraction=fraction)
    assert len(theirs) == len(ours)


def test_all_it_replaces_is_put_back(peer: Peer, ingested: Ingested) -> None:
    found = peer("replaced", root=ingested("segmentation"))
    assert found["left"] == [] and found["callback"]
    package = "olmoearth_pretrain.evals"
    assert found["changed"] == [
        f"{package}.datasets.configs.get_dataset_entry",
        f"{package}.datasets.from_registry_entry",
        f"{package}.datasets.get_dataset_entry",
        f"{package}.datasets.utils.eval_collate_fn_variable_time",
        f"{package}.studio_ingest.get_dataset_entry",
        f"{package}.studio_ingest.registry.get_dataset_entry",
    ]


def test_an_entry_that_is_not_ours_goes_its_usual_way(
    peer: Peer, ingested: Ingested, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "segmentation").mkdir()
    for entry in (ingested("segmentation") / "segmentation").iterdir():
        if entry.name not in ("metadata.json", "samples"):
            (root / "segmentation" / entry.name).symlink_to(entry)
    registry = json.loads((ingested("segmentation") / "registry.json").read_text())
    registry["datasets"]["segmentation"]["weka_path"] = str(root / "segmentation")
    (root / "registry.json").write_text(json.dumps(registry))
    out = tmp_path / "x.npz"
    arguments = {"registry": root / "registry.json", "name": "segmentation"}
    with pytest.raises(PeerError, match="object has no attribute 'window'"):  # it is rslearn's
        peer("read_through", root=root, split="val", out=out, **arguments)
    with pytest.raises(PeerError, match="not found in registry"):
        peer("read_through", root=root, name="no_such", split="val", out=out)


def test_ours_adopted_and_another_tool_s_are_opened_in_one_run(
    peer: Peer, ingested: Ingested, tmp_path: Path
) -> None:
    root, case = tmp_path / "root", "vector_classification"
    root.mkdir()
    (root / "segmentation").symlink_to(ingested("segmentation") / "segmentation")
    source = ingested(case) / case
    entry = json.loads((ingested(case) / "registry.json").read_text())["datasets"][case]
    entries = {}
    for name in ("taken", "theirs"):
        for folder in ("windows", ".rslearn_dataset_index"):
            shutil.copytree(source / folder, root / name / folder)
        for file in ("config.json", "model.yaml"):
            shutil.copy(source / file, root / name / file)
        theirs = {key: value for key, value in entry.items() if key not in OURS_ALONE}
        entries[name] = theirs | {"name": name, "weka_path": str(root / name)}
    (root / "registry.json").write_text(json.dumps({"version": "1.0", "datasets": entries}))
    rebuild_registry(EvalRoot(root))
    adopt(Settings(eval_root=str(root), workers=1), "taken")
    found = peer("opened_by", root=root, names=["segmentation", "taken", "theirs"], split="val")
    kinds = {name: kind for name, (kind, _) in found.items()}
    assert kinds.pop("theirs") == "RslearnToOlmoEarthDataset"
    assert set(kinds.values()) == {"TrainerSamples"}
    assert found["taken"][1] == found["theirs"][1] > 0
    read, through = both(peer, root, "taken", "val", tmp_path)
    for expected, sample in zip(read, through, strict=True):
        assert_equal(expected, sample)


def test_its_evaluators_give_the_same_scores(
    peer: Peer, ingested: Ingested, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """kNN and linear probes of its own, one per task kind, on an encoder with random weights."""
    cases = ("segmentation", "vector_classification", "per_pixel_regression", "scalar_regression")
    root = tmp_path_factory.mktemp("kinds")
    for case in cases:
        (root / case).symlink_to(ingested(case) / case)
    rebuild_registry(EvalRoot(root))
    code = as_python(trainer_tasks(EvalRoot(root)))
    theirs = peer("evaluate", code=code)
    ours = peer("evaluate_through", root=root, code=code)
    assert set(theirs) == set(ours) == set(cases)
    for case in cases:
        assert theirs[case].keys() == ours[case].keys()
        for metric, expected in theirs[case].items():
            assert ours[case][metric] == pytest.approx(expected, rel=1e-3, abs=1e-3), (case, metric)


def test_modalities_of_different_lengths_are_joined_by_date(peer: Peer, tmp_path: Path) -> None:
    source = factories.three_modalities(tmp_path / "source", windows=12)
    root = tmp_path / "root"
    pipeline.ingest(make_job(source, root, "three"))
    arguments = {"input_modalities_override": ["sentinel2_l2a", "sentinel1"]}
    out = tmp_path / "x.npz"
    peer("read_through", root=root, name="three", split="train", out=out, arguments=arguments)
    *found, _ = samples_of(out)
    for sample in found:
        slots = len(sample["timestamps"])
        assert sample["sentinel2_l2a"].shape[2] == sample["sentinel1"].shape[2] == slots
        assert {0, 3} >= set(np.unique(sample["sentinel1_mask"]))
