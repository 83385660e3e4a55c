"""A copy that is there already, when something has changed: it is never taken for what it isn't."""

import json
import shutil
from pathlib import Path

import pytest

from eval_ingest import EvalDataset, api, pipeline
from eval_ingest.store.manifest import JOURNAL, Manifest
from eval_ingest.store.roots.base import EvalRoot
from eval_ingest.sweep.results import write_row
from eval_ingest_tests.conftest import make_job
from eval_ingest_tests.support import factories, faults, places
from eval_ingest_tests.support.damaging import Damage, cut, emptied, one
from eval_ingest_tests.support.fake_scores import score
from eval_ingest_tests.support.places import Place

place = places.place

OTHERS = {"strategy": "random", "seed": 5}


@pytest.fixture
def root(reference: Path, tmp_path: Path) -> Path:
    """An eval root with the dataset `crops`."""
    return shutil.copytree(reference, tmp_path / "root")


# ---------------------------------------------------------------------------------- categories


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source whose labels are those of several tasks; don't change it."""
    return factories.two_tasks(tmp_path_factory.mktemp("labelled"))


def stored(root: Path) -> set[str]:
    """The categories in the labels of the copy."""
    labels = (root / "crops" / "windows").rglob("data.geojson")
    return {
        feature["properties"]["category"]
        for label in labels
        for feature in json.loads(label.read_text())["features"]
        if "category" in feature["properties"]
    }


def test_the_copy_has_the_categories_of_the_task_that_it_is_of(
    labelled: Path, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    for _ in range(2):
        pipeline.ingest(make_job(labelled, root, task="plain"))
        assert stored(root) == {"coca", "flood", "Trees", "Grassland"}
        pipeline.ingest(make_job(labelled, root, task="merged"))
        assert stored(root) == {"agriculture", "river", "Trees", "Grassland"}
        assert faults.verified(root) == []


def test_a_window_that_is_the_same_for_another_task_is_not_copied_again(
    labelled: Path, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    pipeline.ingest(make_job(labelled, root, task="plain"))
    before = {path: path.stat().st_ino for path in (root / "crops" / "windows").rglob("*")}
    pipeline.ingest(make_job(labelled, root, task="sorted"))
    assert {path: path.stat().st_ino for path in before} == before


def test_what_stopped_runs_of_two_tasks_have_copied_is_not_mixed(
    labelled: Path, tmp_path: Path
) -> None:
    root, expected = tmp_path / "root", tmp_path / "expected"
    pipeline.ingest(make_job(labelled, expected, task="plain"))
    for task in ("plain", "merged"):
        faults.Run(str(labelled), root, shard_bytes=1, spec={"task": task}).stop()
    pipeline.ingest(make_job(labelled, root, task="plain"))
    assert stored(root) == {"coca", "flood", "Trees", "Grassland"}
    assert faults.verified(root) == []
    windows = [Manifest(EvalRoot(r).dataset("crops").layout).windows for r in (root, expected)]
    assert windows[0] == windows[1]


# -------------------------------------------------------------------------- damage, then splits


def no_json(path: Path) -> None:
    path.write_text("{")


def no_object(path: Path) -> None:
    path.write_text("[1]")


def no_options(path: Path) -> None:
    path.write_text('{"options": [1]}')


def no_text(path: Path) -> None:
    path.write_bytes(b"\xff\xfe")


def nested(path: Path) -> None:
    path.write_text("[" * 100_000)


@pytest.mark.parametrize(
    "damage", [no_json, no_object, no_options, no_text, nested, cut, emptied, Path.unlink]
)
def test_a_damaged_window_is_copied_again_when_its_split_changes(
    damage: Damage, root: Path, small: Path, tmp_path: Path
) -> None:
    pipeline.ingest(make_job(small, tmp_path / "expected", splits=OTHERS))
    before, after = splits_of(root), splits_of(tmp_path / "expected")
    moved = {window for window in before if before[window] != after[window]}
    for window in before:
        damage(root / "crops" / "windows" / window / "metadata.json")
    pipeline.ingest(make_job(small, root, splits=OTHERS))
    told = {text.split(":")[0].removeprefix("windows/") for text in faults.verified(root)}
    gone = damage is Path.unlink  # a look tells
    assert moved and told == (set() if gone else before.keys() - moved)
    run = faults.Run(str(small), root, overwrite=True, spec={"splits": OTHERS})
    run.do()
    assert faults.verified(root) == []
    assert windows_of(root) == windows_of(tmp_path / "expected")


def splits_of(root: Path | None) -> dict[str, str]:
    found = {split: EvalDataset("crops", split, root=root) for split in ("train", "val", "test")}
    return {ds.window(k): split for split, ds in found.items() for k in range(len(ds))}


def windows_of(root: Path) -> dict[str, bytes]:
    folder = root / "crops" / "windows"
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("place", ["local", "gs"], indirect=True)
def test_a_window_that_lost_its_metadata_is_copied_again_in_every_root(
    place: Place, few: Path
) -> None:
    place.ingest(few)
    names = sorted(n for n in place.names() if n.endswith("metadata.json") and "/windows/" in n)
    names = [name for name in names if name.count("/") == 4]
    place.remove(names[0])
    for name in names[1:]:
        place.write(name, b"[")
    before = splits_of(None)
    place.ingest(few, splits=OTHERS)
    after = splits_of(None)
    told = "\n".join(api.verify("crops").problems)
    for name in names[1:]:
        window = "/".join(name.split("/")[2:4])
        assert (window in told) == (before[window] == after[window])
    assert "/".join(names[0].split("/")[2:4]) not in told


def test_a_run_that_was_stopped_at_splits_trusts_no_window_that_was_damaged_since(
    root: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("eval_ingest.store.window_files.with_metadata", fails)
        pipeline.ingest(make_job(small, root, splits=OTHERS))
    for path in (root / "crops" / "windows").rglob("*.tif"):
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    pipeline.ingest(make_job(small, root, splits=OTHERS))
    told = "\n".join(faults.verified(root))
    for path in (root / "crops" / "windows").rglob("*.tif"):  # those that had to move were copied
        window = path.relative_to(root / "crops")
        assert path.read_bytes().endswith(b"?") == ("/".join(window.parts[:3]) in told)


@pytest.mark.parametrize("at", ["windows copied", "windows read"])
def test_overwriting_takes_nothing_that_a_stopped_run_has_left(
    at: str, small: Path, root: Path, tmp_path: Path
) -> None:
    run = faults.Run(str(small), tmp_path / "stopped")
    run.stop(at, 4)
    damaged = list((tmp_path / "stopped" / "crops").rglob("*.tif"))
    assert damaged
    for path in damaged:
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    run.into(run.root, overwrite=True).do()
    assert faults.verified(run.root) == []
    assert windows_of(tmp_path / "stopped") == windows_of(root)


def test_what_is_damaged_while_it_waits_for_its_split_is_not_vouched_for(
    small: Path, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    pipeline.run_stage(make_job(small, root), "window_index")
    waiting = sorted((root / "crops" / ".copied_ahead").glob("*/metadata.json"))
    no_json(waiting[0])
    no_object(waiting[1])
    other = json.loads(waiting[2].read_text())
    waiting[2].write_text(json.dumps({**other, "bounds": [0, 0, 1, 1]}))
    pipeline.ingest(make_job(small, root))
    (found,) = faults.verified(root)
    assert "recorded" in found
    pipeline.forget(make_job(small, root))
    pipeline.ingest(make_job(small, root))
    assert faults.verified(root) == []


# -------------------------------------------------------------------------------- stale journals


@pytest.mark.parametrize("place", ["local", "gs"], indirect=True)
def test_a_journal_beside_what_is_published_says_nothing(place: Place, few: Path) -> None:
    place.ingest(few)
    journal = place.root.dataset("crops").layout.path / JOURNAL
    manifest = Manifest(place.root.dataset("crops").layout)
    manifest.forget([*manifest.windows][:3])
    assert journal.exists()
    assert api.verify("crops").problems == []
    place.ingest(few, splits=OTHERS)
    assert api.verify("crops").problems == []
    assert not journal.exists()


# ------------------------------------------------------------------- texts beside the windows


def test_texts_of_the_source_beside_the_windows_are_as_they_are_there(
    tmp_path: Path, small: Path
) -> None:
    source, root = shutil.copytree(small, tmp_path / "source"), tmp_path / "root"
    names = {"model.yaml": "model.original.yaml", "olmoearth_run.yaml": "olmoearth_run.yaml"}
    assert (source / "model.yaml").exists()
    for step in range(4):
        text = f"# {step}\n"
        (source / "model.yaml").write_text(text + (small / "model.yaml").read_text())
        run_yaml = source / "olmoearth_run.yaml"
        if step in (1, 2):
            run_yaml.write_text(f"config_version: '0.7.1'\n{text}")
        else:
            run_yaml.unlink(missing_ok=True)
        outcomes = pipeline.ingest(make_job(source, root))
        if step:
            assert not outcomes[-1].ran  # it is the same version
        for name, copied in names.items():
            there, here = root / "crops" / copied, source / name
            assert there.exists() == here.exists()
            assert not here.exists() or there.read_bytes() == here.read_bytes()
        assert faults.verified(root) == []
        assert not any(o.ran for o in pipeline.ingest(make_job(source, root)))


# ------------------------------------------------------------------------------- stray files


def test_files_of_others_stop_no_ingest(small: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    pipeline.ingest(make_job(small, root))
    out = root / "sweep_results"
    for encoder in ("pixels", "constant"):
        write_row(out, score("crops", "v", encoder, 0.5, "2026-01-01T00:00:00"))
    window = one(root, "crops/windows/*/*")
    folders = [root, *(path for path in root.rglob("*") if path.is_dir())]
    strays = [f / n for f in folders for n in (".DS_Store", ".nfs000001", "Thumbs.db", "a stray")]
    strays += [path.with_name(f"._{path.name}") for path in root.rglob("*") if path.is_file()]
    for path in strays:
        path.write_bytes(b"\xff?")
    for folder in folders:
        (folder / ".snapshot").mkdir()
        (folder / ".snapshot" / "x").write_text("?")
    inside = {path.parent for path in strays if path.parent.is_relative_to(window.parent)}
    told = faults.verified(root)
    assert len(told) == 10 and all("windows/" in text for text in told) and inside
    for splits in (OTHERS, {"strategy": "random", "seed": 6}):
        pipeline.ingest(make_job(small, root, splits=splits))
        assert len(EvalDataset("crops", "train", root=root))
    faults.Run(str(small), root, overwrite=True).do()
    assert faults.verified(root) == []
    assert (root / ".DS_Store").exists() and (root / "crops" / "windows" / ".DS_Store").exists()
    assert list(api.list_datasets(root)) == ["crops"]
    assert api.leaderboard(out=out)
    api.remove("crops", root)
    assert not (root / "crops").exists()
