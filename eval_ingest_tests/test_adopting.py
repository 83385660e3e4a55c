"""Datasets that the existing OlmoEarth eval code has ingested, taken over where they are.

`make peers` installs it in .venv-peers; without that these tests are skipped.
"""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks.peer_pipe import PYTHON, Peer
from eval_ingest import EvalDataset, cli
from eval_ingest.adopting import adopt, adoptable
from eval_ingest.core.registry_text import RegistryText
from eval_ingest.errors import NotOursError, UnknownDatasetError
from eval_ingest.report.writing import write_report
from eval_ingest.settings import Settings
from eval_ingest.store.catalog import find_spec
from eval_ingest.store.ownership import Whose, whose
from eval_ingest.store.registry import read_registry, rebuild_registry, remove_dataset
from eval_ingest.store.roots.base import EvalRoot
from eval_ingest_tests.support.team_root import KINDS, write_sources

SPLITS = ("train", "val", "test")

pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="needs .venv-peers: make peers")

Samples = tuple[list[str], dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    script = Path(__file__).parent / "support" / "team_process.py"
    environment = {"OLMOEARTH_INGEST_WORKERS": "0", "NUM_WORKERS": "0", "OMP_NUM_THREADS": "1"}
    process = Peer(script, tmp_path_factory.mktemp("peer") / "log", **environment)
    yield process
    process.close()


@pytest.fixture(scope="module")
def theirs(peer: Peer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root as the tool leaves it, with one dataset a level deeper; don't change it."""
    root = tmp_path_factory.mktemp("team") / "root"
    root.mkdir()
    sources = write_sources(tmp_path_factory.mktemp("sources"))
    peer("ingest_all", sources={n: str(p) for n, p in sources.items()}, root=root)
    (root / "fires").rename(root / "aside")
    (root / "fires").mkdir()
    (root / "aside").rename(root / "fires" / "dataset")
    path = root / "registry.json"
    path.write_text(path.read_text().replace(f'{root}/fires"', f'{root}/fires/dataset"'))
    return root


def moved(theirs: Path, target: Path) -> Path:
    """A copy of the root; its registry goes on to speak of the old place, as on another mount."""
    shutil.copytree(theirs, target, symlinks=True)
    return target


def settings(root: Path) -> Settings:
    return Settings(eval_root=str(root), workers=2)


def read(peer: Peer, root: Path, name: str, split: str, out: Path, **arguments: float) -> Samples:
    """A split as the tool's own loader gives it."""
    path = out / "samples.npz"
    registry = root / "registry.json"
    windows = peer("read", registry=registry, name=name, split=split, out=path, arguments=arguments)
    with np.load(path) as stored:
        return windows, {key: stored[key] for key in stored.files}


def files(folder: Path, names: set[str]) -> dict[str, tuple[bytes, int]]:
    """Bytes and times of the files that were there before."""
    found = {}
    for path in folder.rglob("*"):
        inside = str(path.relative_to(folder))
        if path.is_file() and inside.split("/")[0] in names:
            found[inside] = (path.read_bytes(), path.stat().st_mtime_ns)
    return found


@pytest.fixture(scope="module")
def before(
    peer: Peer, theirs: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Samples]:
    out = tmp_path_factory.mktemp("before")
    return {f"{n}/{s}": read(peer, theirs, n, s, out) for n in KINDS for s in SPLITS}


@pytest.fixture(scope="module")
def adopted(
    theirs: Path, before: dict[str, Samples], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """The root with all five adopted, and what it was like before."""
    kept = moved(theirs, tmp_path_factory.mktemp("kept") / "root")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OLMOEARTH_EVAL_DATASETS", str(theirs))
        patch.setenv("EVAL_INGEST_WORKERS", "2")
        assert cli.main(["adopt", "--all"]) == 0
    return theirs, kept


def test_their_files_and_values_are_as_they_were(adopted: tuple[Path, Path]) -> None:
    root, kept = adopted
    for name in KINDS:
        names = {path.name for path in (kept / name).iterdir()}
        assert files(root / name, names) == files(kept / name, names)
    now, then = (RegistryText.parse((r / "registry.json").read_text()) for r in (root, kept))
    assert [entry.name for entry in now.entries] == [entry.name for entry in then.entries]
    for entry in then.entries:
        value = read_registry(EvalRoot(root))[entry.name]
        assert {key: value[key] for key in entry.value} == entry.value
        assert value["fingerprint"] and value["copy"] == "adopted"
        assert (root / entry.name / "report" / "report.html").is_file()
    (copy,) = root.glob("registry.*.json")
    assert copy.read_text() == (kept / "registry.json").read_text()


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", KINDS)
def test_their_loader_gives_the_same_tensors_and_ours_the_same_samples(
    name: str,
    split: str,
    adopted: tuple[Path, Path],
    before: dict[str, Samples],
    peer: Peer,
    tmp_path: Path,
) -> None:
    root, _ = adopted
    windows, samples = read(peer, root, name, split, tmp_path)
    assert windows == before[f"{name}/{split}"][0] and windows
    assert samples.keys() == before[f"{name}/{split}"][1].keys()
    for key, value in before[f"{name}/{split}"][1].items():
        assert np.array_equal(samples[key], value, equal_nan=True)
    dataset = EvalDataset(name, split, root=root, normalize="pretrained")
    assert str(dataset.task.kind) == KINDS[name]
    assert windows == [dataset.window(i) for i in range(len(dataset))]
    for i in range(len(dataset)):
        sample = dataset[i]
        for modality in dataset.bands:
            ours = sample[modality].numpy()
            assert np.allclose(samples[f"{i}.{modality}"], ours, rtol=1e-5, atol=1e-5)
        wanted = samples[f"{i}.target"]
        assert np.allclose(wanted, sample["target"].numpy(), rtol=1e-6, equal_nan=True)


def test_label_fractions_are_theirs(adopted: tuple[Path, Path], peer: Peer, tmp_path: Path) -> None:
    root, _ = adopted
    for fraction in (0.1, 0.5):
        windows, _ = read(peer, root, "crops", "train", tmp_path, label_fraction=fraction)
        dataset = EvalDataset("crops", "train", root=root, label_fraction=fraction)
        assert windows == [dataset.window(i) for i in range(len(dataset))]


def test_a_second_adoption_does_nothing(
    adopted: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root, _ = adopted
    state = files(root, {path.name for path in root.iterdir() if not path.name.endswith(".lock")})
    monkeypatch.setenv("OLMOEARTH_EVAL_DATASETS", str(root))
    assert cli.main(["adopt", "--all"]) == 0
    assert "nothing to adopt" in capsys.readouterr().out
    assert cli.main(["adopt", "--name", "fires"]) == 0
    assert "adopted already: nothing was to be done" in capsys.readouterr().out
    assert cli.main(["ingest", "--name", "crops"]) == 0  # as Dagster does it
    assert "nothing was to be done" in capsys.readouterr().out
    assert cli.main(["verify", "--name", "crops"]) == 0
    now = files(root, {path.name for path in root.iterdir() if not path.name.endswith(".lock")})
    assert now == state
    assert find_spec(settings(root), "fires").source == str(root / "fires" / "dataset")


def test_what_is_otherwise_is_told_and_written_only_when_it_is_asked_for(
    theirs: Path, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    (root / "fires").parent.mkdir()
    shutil.copytree(theirs / "fires" / "dataset", root / "fires")
    entry = read_registry(EvalRoot(theirs))["fires"]
    entry = {k: v for k, v in entry.items() if k not in ("fingerprint", "ingested_at")}
    entry |= {"modalities": ["sentinel2_l2a", "sentinel2_l2a"], "window_size": 99, "num_classes": 4}
    entry["norm_stats"]["sentinel2_l2a"]["B01"]["std"] = 0.0
    (root / "registry.json").write_text(json.dumps({"datasets": {"fires": entry}}))
    found = adopt(settings(root), "fires")
    told = {difference.field: difference for difference in found.differences}
    assert {"modalities", "window_size", "num_timesteps", "norm_stats", "num_classes"} <= set(told)
    assert "B01 has std 0" in told["norm_stats"].why
    assert read_registry(EvalRoot(root))["fires"]["window_size"] == 99
    adopt(settings(root), "fires", correct=True)
    now = read_registry(EvalRoot(root))["fires"]
    assert now["modalities"] == ["sentinel2_l2a"] and now["window_size"] == 16
    assert now["num_timesteps"] == 4 and now["norm_stats"]["sentinel2_l2a"]["B01"]["std"] > 0
    untouched = ("mean", "max")
    for key in untouched:
        kept = entry["norm_stats"]["sentinel2_l2a"]["B02"][key]
        assert now["norm_stats"]["sentinel2_l2a"]["B02"][key] == kept
    assert rebuild_registry(EvalRoot(root))["fires"] == now


def test_what_was_adopted_is_given_back_as_it_was(theirs: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    copy = root / "moisture"
    shutil.copytree(theirs / "moisture", copy)
    for path in [*copy.glob(".adopted*"), *copy.glob("*.parquet"), *copy.glob("*.json")]:
        if path.name != "config.json":
            path.unlink()
    for name in ("samples", "train", "val", "test", ".window_index", "report"):
        shutil.rmtree(copy / name, ignore_errors=True)
    raw = '{"name": "moisture",  "weka_path": "/weka/evals/moisture", "x": 1e-05}'
    (root / "registry.json").write_text('{"datasets": {"moisture": ' + raw + "}}")
    (copy / "README.md").write_text("theirs")
    state = files(root, {"moisture"})
    adopt(settings(root), "moisture")
    write_report(EvalRoot(root), "moisture")
    card = (copy / "report" / "README.md").read_text()
    assert all((copy / "report" / p).is_file() for p in re.findall(r"\]\((.*?)\)", card))
    (copy / ".metadata.json.x1.tmp").write_text("of a removal that was killed")
    assert whose(EvalRoot(root).dataset("moisture")) is Whose.ADOPTED
    with pytest.raises(NotOursError, match="adopted"):
        from eval_ingest_tests.conftest import make_job

        make_job(theirs / "moisture", root, "moisture")
    remove_dataset(EvalRoot(root), "moisture")
    assert files(root, {"moisture"}) == state
    assert RegistryText.parse((root / "registry.json").read_text()).raw == {"moisture": raw}
    assert adoptable(EvalRoot(root)) == ["moisture"]


def _stopping(replace: Callable[..., None], allowed: int) -> Callable[..., None]:
    """os.replace that a run is stopped at, after some calls."""
    calls = iter(range(allowed))

    def stops(*arguments: object) -> None:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        replace(*arguments)

    return stops


def test_an_adoption_that_was_stopped_goes_on(
    theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    shutil.copytree(theirs / "fires" / "dataset", root / "fires")
    for allowed in (1, 3, 5, 7, 9, 11):
        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            patch.setattr(os, "replace", _stopping(os.replace, allowed))
            adopt(settings(root), "fires")
        stopped = not (root / "fires" / "metadata.json").exists()
        assert adoptable(EvalRoot(root)) == (["fires"] if stopped else [])
    found = adopt(settings(root), "fires")
    dataset = EvalDataset("fires", "train", root=root)
    assert len(dataset) == found.metadata.splits["train"].count > 0
    assert read_registry(EvalRoot(root))["fires"]["weka_path"] == str(root / "fires")


def test_what_can_not_be_adopted_is_told(theirs: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "crops" / "windows").mkdir(parents=True)
    (root / "crops" / "config.json").write_text("{}")
    (root / "crops" / "samples").mkdir()
    with pytest.raises(NotOursError, match="samples of another tool"):
        adopt(settings(root), "crops")
    with pytest.raises(UnknownDatasetError, match="did you mean crops"):
        adopt(settings(root), "crop")
    (root / "registry.json").write_text('{"datasets": {"gone": {"weka_path": "/weka/no/gone"}}}')
    with pytest.raises(NotOursError, match="no copy of its windows"):
        adopt(settings(root), "gone")


def test_the_printed_tasks_find_ours_theirs_and_the_package_s_own_in_one_run(
    adopted: tuple[Path, Path], peer: Peer, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    root, kept = adopted
    monkeypatch.setenv("OLMOEARTH_EVAL_DATASETS", str(kept))  # where nothing is ours
    assert cli.main(["tasks", "--format", "olmoearth"]) == 0
    assert set(peer("python_tasks", code=capsys.readouterr().out)) == set(KINDS)
    monkeypatch.setenv("OLMOEARTH_EVAL_DATASETS", str(root))
    assert cli.main(["tasks", "--format", "olmoearth"]) == 0
    code = capsys.readouterr().out
    found = peer("lookups", code=code, names=["crops", "fires", "yemen_crop"])
    assert found["crops"] == str(root / "crops")
    assert found["fires"] == str(root / "fires" / "dataset")
    assert found["yemen_crop"].endswith("/olmoearth/eval_datasets/yemen_crop")


def test_every_setting_of_the_catalog_makes_a_task_of_the_real_class(
    peer: Peer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The registry of the package itself, and the trainer's own list of tasks."""
    (package,) = PYTHON.parents[1].glob("lib/python3*/site-packages/olmoearth_pretrain")
    shutil.copy(package / "evals" / "studio_ingest" / "registry.json", tmp_path)
    monkeypatch.setenv("OLMOEARTH_EVAL_DATASETS", str(tmp_path))
    assert cli.main(["tasks", "--format", "olmoearth"]) == 0
    found = peer("python_tasks", code=capsys.readouterr().out)
    assert {task["dataset"] for task in found.values()} == set(read_registry(EvalRoot(tmp_path)))
    theirs = {n: t for n, t in peer("own_tasks").items() if t["dataset"] in found}
    assert len(theirs) > 20
    for name, task in theirs.items():
        ours = {**found[name], "norm_method": task["norm_method"]}
        assert {key: ours[key] for key in task} == task
